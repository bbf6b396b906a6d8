"""What happens while a part is away, and what the package brings: the attacker waits for the gate that fails open."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError

from ..middleware import Stranger
from ..servers import ROOT
from ..test_architecture import FILES
from .house import House, chat, house

VERBS = ("identify", "tenant", "hold", "raise_hold", "settle", "release", "renew")


@pytest.mark.parametrize("verbs", [("identify",), ("hold",), ("identify", "hold"), ("settle",), VERBS])
async def test_a42_a_store_that_is_away_opens_nothing(verbs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gain: free calls, or everybody's. 503 before a call, never 401; a call that ran is paid when the store is back."""
    app = Stranger(usage=(10, 10))
    made = House(terminal=app)
    await made.tenant("a")

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreError("the database does not answer")

    with monkeypatch.context() as broken:
        for verb in verbs:
            broken.setattr(made.store, verb, away)
        answer = await made.ask(chat(max_tokens=9))
        if "identify" in verbs or "hold" in verbs:
            assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
            assert app.calls == 0
        else:
            assert answer.status == 200
    before = app.calls
    assert (await made.ask(chat(max_tokens=9))).status == 200
    assert app.calls == before + 1
    if before:  # its settle came late, or its hold stands: either way it is not free
        assert await made.spent() + await made.held() >= 2 * 30 * 10**3


async def test_a41_a_policy_that_fails_in_any_way_lets_nobody_pass() -> None:
    """Gain: a policy that raises, or answers what is neither yes nor no. 503, and no call goes out."""

    def raises(_: Any) -> Any:
        raise RuntimeError("broken")

    wrong: list[Any] = [None, "yes", 1, {"allow": "true"}, [], {}]
    policies: list[Any] = [raises, *(lambda _, said=said: said for said in wrong)]
    for policy in policies:
        app = Stranger()
        made = House(terminal=app, policy=policy)
        await made.tenant("a")
        answer = await made.ask(chat(max_tokens=9))
        assert answer.status >= 403
        assert app.calls == 0


async def test_a45_a_policy_sees_no_prompt_and_no_secret() -> None:
    """Gain (of whoever reads the policy's log): prompts and keys. Neither is in what it is asked, unless asked for."""
    seen: list[Any] = []

    def look(question: Any) -> bool:
        seen.append(json.dumps(question, default=str))
        return True

    made = await house(policy=look)
    parts = [{"type": "text", "text": "canary-prompt"}]
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "canary-tool", "parameters": {"type": "object"}},
    }
    body = chat(
        max_tokens=3,
        messages=[{"role": "user", "content": parts}],
        tools=[tool],
        stop="canary-stop",
        user="canary-user",
    )
    assert (await made.ask(body)).status == 200
    assert len(seen) == 1
    assert made.secrets["a"] not in seen[0]
    assert "canary-prompt" not in seen[0]
    assert "canary-tool" not in seen[0]
    assert "canary-stop" not in seen[0]


LOAD = """
import sys, importlib
touched = []
sys.addaudithook(lambda name, args: touched.append((name, args)) if name in (
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system",
    "urllib.Request", "ftplib.connect", "http.client.connect") else None)
for module in {modules!r}:
    importlib.import_module(module)
import asgi_llm_gateway
asgi_llm_gateway.create_app()
print(touched)
"""


_WITH_AIORTC = {"realtime._peer", "realtime.webrtc", "realtime_client"}


def test_a44_neither_import_nor_start_touches_network_or_processes(tmp_path: Any) -> None:
    """Gain: a way in (or a word home) on the day that a dependency is taken over. Nothing is connected to, asked or run."""
    modules = ["asgi_llm_gateway" + (f".{module}" if module else "") for module in FILES
               if module and module != "__main__" and "migrations.env" not in module
               # aiortc looks for codecs by ldconfig when it is loaded, which is only where ENABLE_WEBRTC asks for it.
               and module not in _WITH_AIORTC]  # fmt: skip
    environment = {"PATH": "", "GATEWAY_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-x"}
    done = subprocess.run([sys.executable, "-c", LOAD.format(modules=modules)], env=environment, capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a44_the_core_depends_on_little() -> None:
    """Gain: one of a hundred dependencies. A middleware needs four packages; each more is a decision."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    assert names == {"httptools", "orjson", "pydantic", "pydantic-settings"}


def test_a44_nothing_runs_what_it_is_told() -> None:
    """Gain: a command by way of settings or a request (CVE-2026-42271). No module evaluates, unpickles or starts anything."""
    for module, path in FILES.items():
        text = path.read_text("utf-8")
        for word in ("eval(", "exec(", "pickle", "marshal", "shell=True", "os.system", "yaml.load", "literal_eval"):
            assert f" {word}" not in text.replace("asyncio.create_subprocess_exec(", ""), (module, word)
