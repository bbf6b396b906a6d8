"""What a user installs: the wheel in a fresh environment, alone, with each extra missing, and with the oldest dependencies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from .servers import ROOT, environment, fetch, free_port, running

pytestmark = pytest.mark.real

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# What needs an extra, and what it says where that is not installed. The message is a command that can be pasted.
MISSING = {
    "from asgi_llm_gateway import RateLimitMiddleware": "asgi-llm-gateway[ratelimit]",
    "from asgi_llm_gateway import CacheMiddleware": "asgi-llm-gateway[cache]",
    "from asgi_llm_gateway import MetricsMiddleware": "asgi-llm-gateway[metrics]",
    "from asgi_llm_gateway import LoggingMiddleware; LoggingMiddleware(print)": "asgi-llm-gateway[logging]",
    "from asgi_llm_gateway import create_app": "asgi-llm-gateway[server]",
    "import asgi_llm_gateway.admin.app": "asgi-llm-gateway[server]",
    "import asgi_llm_gateway.stores.sql": "asgi-llm-gateway[sql]",
    "import asgi_llm_gateway.stores.redis": "asgi-llm-gateway[redis]",
    "import asgi_llm_gateway.realtime_client": "asgi-llm-gateway[webrtc]",
    "from asgi_llm_gateway import RealtimeMiddleware; RealtimeMiddleware(print, webrtc=True)": "asgi-llm-gateway[webrtc]",
}

# One call through the four middlewares, in a process that has nothing of the tests.
SMOKE = """
import asyncio, json, sys
import asgi_llm_gateway as gateway
from asgi_llm_gateway.keys import new_key

for name in gateway.__all__:
    getattr(gateway, name)

async def main():
    store = gateway.MemoryStore()
    await store.add_tenant(gateway.Tenant("team", budget=10**9))
    key, secret = new_key("team")
    await store.add_key(key)
    app = gateway.BudgetMiddleware(gateway.ProxyApp(), ledger=store)
    app = gateway.TenantMiddleware(gateway.RateLimitMiddleware(app), store=store)
    app = gateway.TracingMiddleware(app)
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
    pieces = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent = []

    async def receive():
        return pieces.pop() if pieces else await asyncio.Future()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [(b"authorization", b"Bearer " + secret.encode()), (b"content-type", b"application/json")],
        "client": None, "server": None,
    }
    await app(scope, receive, send)
    said = b"".join(message.get("body", b"") for message in sent)
    assert sent[0]["status"] == 200, said
    assert said.endswith(b"data: [DONE]\\n\\n"), said
    assert (await store.balance("team"))[:2] == (0, 0)

    from asgi_llm_gateway.stores.shared import shared_ledger, shared_log, shared_tenants
    shared = await shared_tenants()
    assert await shared.add_tenant(gateway.Tenant("team"))
    assert [tenant.id for tenant in await shared.tenants()] == ["team"]
    assert (await (await shared_ledger()).balance("team"))[:2] == (0, 0)
    assert (await (await shared_log()).stats()).requests == 0
    assert gateway.PriceTable().find("gpt-4o") is not None
    async with gateway.lifespan():
        gateway.create_app()

asyncio.run(main())
print("smoke:", gateway.__version__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """A command that succeeds, in an environment that knows nothing of this checkout; what it printed."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8", "GATEWAY_DATA_DIR": str(cwd / "data")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fresh(folder: Path, *packages: str | Path, deps: bool = True) -> Path:
    """A new virtual environment with some packages; its Python."""
    venv.create(folder, with_pip=False)
    install(folder / "bin" / "python", *packages, deps=deps)
    return folder / "bin" / "python"


def install(python: Path, *packages: str | Path, deps: bool = True) -> None:
    """Install into an environment by our own pip, which knows where packages come from."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    more = [] if deps else ["--no-deps"]
    done = subprocess.run([*pip, *more, *map(str, packages)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``pip wheel`` builds it from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the package and no extra."""
    return fresh(tmp_path_factory.mktemp("bare") / "venv", wheel)


def test_the_wheel_holds_the_package_and_no_more(wheel: Path) -> None:
    """``py.typed`` and every module, the licence, and nothing of tests, examples or benchmarks."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"asgi_llm_gateway"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "asgi_llm_gateway").rglob("*.py")}
    assert modules <= set(names)
    assert "asgi_llm_gateway/py.typed" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_the_package_imports_without_any_extra(bare: Path, tmp_path: Path) -> None:
    """With the core alone: import, settings, a call through tenant, budget and proxy with a store in memory."""
    listed = json.loads(run(bare, "-c", "import importlib.metadata as m, json; "
                            "print(json.dumps([d.name.lower() for d in m.distributions()]))", cwd=tmp_path))  # fmt: skip
    assert not {"starlette", "uvicorn", "sqlalchemy", "limits", "redis", "httpx", "aiortc"} & set(listed)
    code = """
import asgi_llm_gateway as g
for name in ("BudgetMiddleware", "TenantMiddleware", "TracingMiddleware", "ProxyApp", "MemoryStore", "PriceTable",
             "Settings", "Exchange", "LLMMiddleware", "GatewayError"):
    getattr(g, name)
print(g.TracingMiddleware(g.TenantMiddleware(g.BudgetMiddleware(g.ProxyApp()), store=g.MemoryStore())) is not None)
"""
    assert run(bare, "-c", code, cwd=tmp_path).strip() == "True"


@pytest.mark.parametrize("statement", MISSING)
def test_what_needs_an_extra_says_which(bare: Path, tmp_path: Path, statement: str) -> None:
    """ModuleNotFoundError whose message is the very ``pip install`` line."""
    code = f"""
try:
    {statement}
except ModuleNotFoundError as error:
    print(error)
else:
    print("it imported")
"""
    assert f"pip install '{MISSING[statement]}'" in run(bare, "-c", code, cwd=tmp_path)


def test_the_command_line_says_which_extra_it_needs(bare: Path, tmp_path: Path) -> None:
    """``serve`` and ``tenants`` without their extras: one line, exit code 1, no traceback."""
    for arguments, extra in ((["serve"], "server"), (["tenants", "list"], "sql")):
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GATEWAY_DATA_DIR": str(tmp_path / "data")}
        command = [str(bare), "-m", "asgi_llm_gateway", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"pip install 'asgi-llm-gateway[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_store_that_lacks_its_extra_is_told_to_the_caller(bare: Path, tmp_path: Path) -> None:
    """A middleware alone, whose shared store can't be opened, answers 503 and names the extra."""
    code = """
import asyncio
from asgi_llm_gateway import ProxyApp, TenantMiddleware
sent = []
async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
async def send(message): sent.append(message)
scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"x-api-key", b"gw-some-key-of-a-client")]}
asyncio.run(TenantMiddleware(ProxyApp())(scope, receive, send))
print(sent[0]["status"], sent[1]["body"].decode())
"""
    said = run(bare, "-c", code, cwd=tmp_path)
    assert said.startswith("503 ")
    assert "asgi-llm-gateway[sql]" in said


def lower_bounds() -> list[str]:
    """Each direct dependency of the core and of all extras, at exactly the version that pyproject.toml begins with."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    named = set(re.findall(r"\[(.*)\]", extras["all"][0])[0].split(","))
    assert named == set(extras) - {"all", "dev", "real"}, "the extra 'all' names all others"
    pinned = []
    for text in [*PROJECT["dependencies"], *(one for name in sorted(named) for one in extras[name])]:
        requirement = Requirement(text)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{text}: a lower bound and nothing else"
        inside = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        if requirement.marker is None or requirement.marker.evaluate():
            pinned.append(f"{requirement.name}{inside}=={bound.version}")
    return sorted(set(pinned))


def test_the_lower_bounds_work_together(wheel: Path, tmp_path: Path) -> None:
    """The oldest versions that pyproject.toml allows, all at once: every name imports, and a real server answers."""
    python = fresh(tmp_path / "venv", *lower_bounds())
    install(python, wheel, deps=False)
    assert run(python, "-c", SMOKE, cwd=tmp_path).startswith("smoke: ")
    env = {**environment(tmp_path / "served", PORT=str(free_port())), "PYTHONPATH": ""}
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
    with running([str(python), "-m", "asgi_llm_gateway", "serve"], env, tmp_path / "served") as server:
        answers = [fetch(f"{server.url}/v1/chat/completions", {**body, "stream": stream}) for stream in (True, False)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body.endswith(b"data: [DONE]\n\n")
    assert "Traceback" not in server.err


def test_the_newest_versions_work_together(wheel: Path, tmp_path: Path) -> None:
    """The same with what ``pip install 'asgi-llm-gateway[all]'`` brings today."""
    python = fresh(tmp_path / "venv", f"{wheel}[all]")
    assert run(python, "-c", SMOKE, cwd=tmp_path).startswith("smoke: ")


@pytest.mark.parametrize("extra", ["dev", "real"])
def test_every_other_dependency_has_a_lower_bound_too(extra: str) -> None:
    """A tool without one is installed as old as a resolver likes; stubs follow their package."""
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name.startswith(("types-", "asgi-llm-gateway")):
            continue
        assert [bound.operator for bound in requirement.specifier] == [">="], text
