"""``serve`` with the demo key, without it, and where it can't start."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from ..servers import KEY, Server, environment, fetch, gateway
from .commands import ADMIN_KEY, CHAT, Typed, serving


def demo_key(server: Server) -> str:
    """The key in the printed curl line."""
    found = re.search(r"Bearer (gw-[\w-]+)", server.out)
    assert found is not None, server.out
    return found[1]


def curl_line(server: Server) -> list[str]:
    """The printed command, as a shell would read it."""
    text = server.out
    return shlex.split(text[text.index("curl -N") :].replace("\\\n", " "))


def test_the_printed_curl_line_works(tmp_path: Path) -> None:
    """The very command that the demo prints, run as it is, streams an answer to its end."""
    with serving(tmp_path, GATEWAY_DEMO="1") as server:
        command = curl_line(server)
        assert command[:3] == ["curl", "-N", f"{server.url}/v1/chat/completions"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("data: [DONE]\n\n")
    assert [word in done.stdout for word in ("Hello", "from", "curl")] == [True, True, True]


def test_the_demo_key_is_printed_and_never_logged(tmp_path: Path) -> None:
    """It stands on stdout once, and nowhere else: not in the log, not in the data folder."""
    with serving(tmp_path, GATEWAY_DEMO="1") as server:
        key = demo_key(server)
        assert fetch(f"{server.url}/v1/chat/completions", CHAT, key=key).status == 200
    assert server.out.count(key) == 1
    assert key not in server.err
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if key.encode() in path.read_bytes()]
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_the_demo_key_is_good_for_echo_only(tmp_path: Path) -> None:
    """A provider's key on the machine is no gift to whoever reads the terminal."""
    with serving(tmp_path, GATEWAY_DEMO="1", OPENAI_API_KEY="sk-of-the-operator") as server:
        key = demo_key(server)
        models = fetch(f"{server.url}/v1/models", key=key).json()
        refused = fetch(f"{server.url}/v1/chat/completions", {**CHAT, "model": "gpt-4o"}, key=key)
        slashed = fetch(f"{server.url}/v1/chat/completions", {**CHAT, "model": "openai/gpt-4o"}, key=key)
        assert fetch(f"{server.url}/api/tenants", key=key).status == 403
    assert [model["id"] for model in models["data"]] == ["echo"]
    for answer in (refused, slashed):
        assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_new_start_revokes_the_key_of_the_last(tmp_path: Path) -> None:
    """Each start makes a fresh key, and the one before is refused from then on."""
    with serving(tmp_path, GATEWAY_DEMO="1") as server:
        first = demo_key(server)
    with serving(tmp_path, GATEWAY_DEMO="1") as server:
        second = demo_key(server)
        answers = [fetch(f"{server.url}/v1/chat/completions", CHAT, key=key).status for key in (first, second)]
    assert first != second
    assert answers == [401, 200]


def test_several_workers_share_the_demo_key(tmp_path: Path) -> None:
    """The parent makes one key; with WEB_CONCURRENCY=2 every worker knows it."""
    with serving(tmp_path, GATEWAY_DEMO="1", WEB_CONCURRENCY="2") as server:
        key = demo_key(server)
        answers = {fetch(f"{server.url}/v1/chat/completions", CHAT, key=key).status for _ in range(12)}
    assert answers == {200}
    assert server.out.count("Bearer ") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_the_demo_is_refused_where_others_could_reach_it(typed: Typed, tmp_path: Path, host: str) -> None:
    """A key on the terminal is for this machine: any other HOST ends the start, naming both settings."""
    code, out, err = typed("serve", env=environment(tmp_path, GATEWAY_DEMO="1", HOST=host, PORT="0"))
    assert (code, out) == (1, "")
    assert "GATEWAY_DEMO" in err
    assert "HOST" in err
    assert not (tmp_path / "data" / "gateway.db").exists()


def test_without_the_demo_nothing_is_made_and_nothing_is_open(tmp_path: Path) -> None:
    """A plain start prints no key, makes no tenant, and answers every call 401."""
    with serving(tmp_path, GATEWAY_CONFIG="") as server:
        for key in (None, KEY, "demo", "gw-demo-key-that-nobody-made"):
            assert fetch(f"{server.url}/v1/chat/completions", CHAT, key=key).status == 401
        assert fetch(f"{server.url}/api/tenants", key=ADMIN_KEY).status == 403
        assert fetch(f"{server.url}/health", key=None).status == 200
        listed = gateway("tenants", "list", env=environment(tmp_path, GATEWAY_CONFIG=""))
    assert (server.out, listed.returncode, listed.stdout) == ("", 0, "")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """Where another process listens, the start ends with a failure that names the address, and no traceback."""
    with serving(tmp_path / "one", GATEWAY_DEMO="1") as server:
        done = gateway("serve", env=environment(tmp_path / "two", PORT=str(server.port)))
    assert done.returncode != 0
    assert str(server.port) in done.stderr
    assert "Traceback" not in done.stderr
