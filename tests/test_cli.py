"""The command line, as real processes: what an operator types, sees and gets back."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.__main__ import main
from asgi_llm_gateway.settings import forget

from .servers import KEY, ROOT, TEAM, Server, environment, fetch, free_port, gateway, running

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
ADMIN_KEY = "an-admin-key-of-thirty-two-characters-or-more"
SERVE = [sys.executable, "-m", "asgi_llm_gateway", "serve"]


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """``python -m asgi_llm_gateway serve`` on a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(folder, PORT=str(free_port()), **settings)
    with running(SERVE, env, folder) as server:
        yield server


def demo_key(server: Server) -> str:
    """The key in the printed curl line."""
    found = re.search(r"Bearer (gw-[\w-]+)", server.out)
    assert found is not None, server.out
    return found[1]


def curl_line(server: Server) -> list[str]:
    """The printed command, as a shell would read it."""
    text = server.out
    return shlex.split(text[text.index("curl -N") :].replace("\\\n", " "))


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """A command in this process, where a process for each case would take a second: exit code, stdout, stderr."""

    def run(*arguments: str, env: Mapping[str, str]) -> tuple[int, str, str]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        forget()
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# -- serve with the demo key -------------------------------------------------------------------------------------------


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


# -- check -------------------------------------------------------------------------------------------------------------

FILE = """
[providers.groq]
api_key = "${GROQ_KEY}"

[providers.slow]
type = "echo"
models = ["slow"]
delay_ms = 20

[models.fast]
targets = ["groq/llama-4"]
usd_per_million_in = 0.1

[tenants.team]
budget_usd = 5
keys = ["${TEAM_KEY}"]
"""


def test_check_prints_what_would_be_served(tmp_path: Path) -> None:
    """Store, admin API, limits, providers and models, and not one secret."""
    secrets = {
        "OPENAI_API_KEY": "sk-secret-of-openai",
        "GROQ_KEY": "gsk-secret-of-groq",
        "GATEWAY_ADMIN_KEY": ADMIN_KEY,
        "DATABASE_URL": f"sqlite:///{tmp_path}/own.db",
    }
    done = gateway("check", env=environment(tmp_path, file=FILE, RATE_LIMIT_MAX_REQUESTS="42", **secrets))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    models = next(line for line in lines if line.startswith("models")).removeprefix("models").strip().split(", ")
    assert {"echo", "slow", "fast", "gpt-4o"} <= set(models)
    assert f"store      sqlite: {tmp_path}/own.db" in lines
    assert "rate limit 42 requests in 60 s a tenant" in lines
    assert "provider   openai: https://api.openai.com/v1" in lines
    assert "provider   groq: https://api.groq.com/openai/v1" in lines
    assert "admin API  open with GATEWAY_ADMIN_KEY" in lines
    for secret in ("sk-secret-of-openai", "gsk-secret-of-groq", ADMIN_KEY, KEY):
        assert secret not in done.stdout


def test_check_never_prints_a_databases_password(typed: Typed, tmp_path: Path) -> None:
    """Host and name of the database, without who may enter it."""
    url = "postgres://gateway:top-secret-password@db.example:5432/gateway"
    redis = "redis://:other-secret@cache.example:6379/0"
    code, out, err = typed("check", env=environment(tmp_path, DATABASE_URL=url, REDIS_URL=redis))
    assert (code, err) == (0, "")
    assert "store      postgresql: db.example/gateway" in out.splitlines()
    assert "budgets    in Redis at cache.example, with the store as the record" in out.splitlines()
    assert "top-secret-password" not in out
    assert "other-secret" not in out


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("[tenants.team]\nbudget = 5\n", "tenants.team.budget"),
        ("[provider.openai]\n", "provider"),
        ("[tenants.team]\nbudget_usd = -1\n", "tenants.team.budget_usd"),
        ("[tenants.team]\nbudget_usd = 0.0000000001\n", "tenants.team.budget_usd"),
        ("[tenants.team]\nbudget_usd = nan\n", "tenants.team.budget_usd"),
        ('[tenants.team]\nbudget_usd = "five"\n', "tenants.team.budget_usd"),
        ("[tenants.team]\nbudget_usd = true\n", "tenants.team.budget_usd"),
        ("[tenants.Team]\n", "tenants.Team"),
        ('[tenants.team]\nkeys = ["short"]\n', "tenants.team"),
        ("[providers.echo]\ndelay_ms = -5\n", "providers.echo.delay_ms"),
        ('[providers.echo]\nfault = "no such"\n', "providers.echo"),
        ("[providers.nobody]\n", "nobody"),
        ('[providers.vllm]\nbase_url = "127.0.0.1:8000"\n', "providers.vllm"),
        ('[models.fast]\ntargets = ["groq/llama"]\n', "models.fast"),
        ('[models.fast]\ntargets = ["fast"]\n', "models.fast"),
        ('[providers.openai]\napi_key = "${NOT_THERE}"\n', "NOT_THERE"),
        ("[tenants\n", "not valid TOML"),
    ],
)
def test_check_names_what_is_wrong_in_the_file(typed: Typed, tmp_path: Path, file: str, named: str) -> None:
    """An unknown key, a bad value, a missing variable: one line on stderr that names it, and exit code 1."""
    code, out, err = typed("check", env=environment(tmp_path, file=file))
    assert (code, out) == (1, "")
    assert named in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "short" not in err  # a value may be a secret


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"PORT": "eighty"}, "PORT"),
        ({"PORT": "99999"}, "PORT"),
        ({"ENABLE_STREAMING": "perhaps"}, "ENABLE_STREAMING"),
        ({"RATE_LIMIT_MAX_REQUESTS": "0"}, "RATE_LIMIT_MAX_REQUESTS"),
        ({"GATEWAY_ADMIN_KEY": "short"}, "GATEWAY_ADMIN_KEY"),
        ({"GATEWAY_CONFIG": "/no/such/file.toml"}, "GATEWAY_CONFIG"),
        ({"DATABASE_URL": "mysql://root:hidden-word@localhost/x"}, "DATABASE_URL"),
        ({"DATABASE_URL": "gateway.db"}, "DATABASE_URL"),
        ({"OPENAI_BASE_URL": "api.openai.com/v1"}, "openai"),
        ({"OPENAI_API_KEY": "sk-hidden-word\nx: y"}, "openai"),
    ],
)
def test_check_names_what_is_wrong_in_the_environment(
    typed: Typed, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    """One line that names the setting and never repeats its value, which may be a secret."""
    code, out, err = typed("check", env={**environment(tmp_path), **settings})
    assert (code, out) == (1, "")
    assert named in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "hidden-word" not in err
    assert "short" not in err


def test_a_mistake_stops_a_real_process_in_one_line(tmp_path: Path) -> None:
    """``check`` and ``serve`` as they are typed: exit code 1, one sentence, no traceback."""
    env = environment(tmp_path, file="[tenants.team]\nbudget = 5\n")
    for command in ("check", "serve"):
        done = gateway(command, env=env)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: GATEWAY_CONFIG={tmp_path}/gateway.toml: unknown key 'tenants.team.budget'\n"


def test_check_warns_of_a_provider_that_is_the_gateway_itself(typed: Typed, tmp_path: Path) -> None:
    """A base URL that points back here is found before the first call is lost in it."""
    for host in ("localhost", "127.0.0.1", "[::1]"):
        url = f"http://{host}:8123/v1"
        code, out, _ = typed("check", env=environment(tmp_path, PORT="8123", OPENAI_BASE_URL=url))
        assert code == 0
        assert [line for line in out.splitlines() if line.startswith("warning:") and "'openai'" in line]
    _, out, _ = typed("check", env=environment(tmp_path, PORT="8123", OPENAI_BASE_URL="http://localhost:8124/v1"))
    assert "warning" not in out


def test_a_gateway_that_points_at_itself_answers_508(tmp_path: Path) -> None:
    """Where nobody heeded the warning, the call ends in 508 and not in a circle."""
    port = free_port()
    env = environment(tmp_path, PORT=str(port), OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1", OPENAI_API_KEY=KEY)
    with running(SERVE, env, tmp_path) as server:
        answer = fetch(f"{server.url}/v1/chat/completions", {**CHAT, "model": "gpt-4o"})
    assert answer.status == 508
    assert answer.json()["error"]["code"] == "gateway_loop"


# -- tenants and keys --------------------------------------------------------------------------------------------------


def test_a_tenant_and_its_key_are_made_used_and_ended(tmp_path: Path) -> None:
    """The whole life of a key by the command line, beside a gateway that runs."""
    with serving(tmp_path) as server:
        env = environment(tmp_path)
        made = gateway("tenants", "create", "acme", "--name", "Acme", "--budget-usd", "2.5", env=env)
        assert (made.returncode, made.stderr) == (0, "")
        assert "keys create acme" in made.stdout
        listed = gateway("tenants", "list", env=env).stdout.splitlines()
        assert "acme\tAcme\tenabled" in listed
        shown = gateway("keys", "create", "acme", "--name", "laptop", env=env)
        key_id, secret = shown.stdout.split()
        assert key_id.startswith("key_")
        assert secret.startswith("gw-")
        assert fetch(f"{server.url}/v1/chat/completions", CHAT, key=secret).status == 200
        ended = gateway("keys", "revoke", key_id, env=env)
        assert (ended.returncode, ended.stdout) == (0, f"revoked {key_id}\n")
        until = time.monotonic() + 5.0  # a look-up is remembered for two seconds
        while fetch(f"{server.url}/v1/chat/completions", CHAT, key=secret).status != 401:
            assert time.monotonic() < until, "a revoked key is still good"
            time.sleep(0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenants", "create", "Acme"),
        ("tenants", "create", "a b"),
        ("tenants", "create", "\N{CYRILLIC SMALL LETTER A}cme"),
        ("tenants", "create", "acme", "--budget-usd", "much"),
        ("tenants", "create", "acme", "--budget-usd", "-1"),
        ("tenants", "create", "acme", "--budget-usd", "nan"),
        ("tenants", "create", "acme", "--budget-usd", "1e400"),
        ("tenants", "create", "acme", "--budget-usd", "0.0000000001"),
        ("tenants", "create", "team"),
        ("keys", "create", "nobody"),
        ("keys", "revoke", "key_nobody"),
        ("tenants", "create", "acme", "--budget-tokens", "-5"),
        ("tenants", "create", "acme", "--budget-tokens", "1.5"),
        ("tenants", "create", "acme", "--period", "yearly"),
        ("tenants", "create", "acme", "--concurrency", "0"),
        ("tenants", "create", "acme", "--metadata", "novalue"),
        ("tenants", "create", "acme", "--name", "nul\x00"),
        ("tenants", "create", "acme", "--name", "half a pair \udcff"),
        ("tenants", "show", "nobody"),
        ("tenants", "update", "team"),
        ("tenants", "update", "nobody", "--name", "x"),
        ("tenants", "update", "team", "--budget-period", "none "),
        ("tenants", "delete", "nobody"),
        ("keys", "create"),
        ("keys", "create", "team", "--admin"),
        ("keys", "create", "--admin", "--budget-usd", "5"),
        ("keys", "create", "--admin", "--rate-tokens", "5"),
        ("keys", "create", "team", "--concurrency", "0"),
        ("keys", "create", "team", "--budget-usd", "five"),
        ("keys", "create", "team", "--expires-in", "soon"),
        ("keys", "create", "team", "--expires-in", "0d"),
        ("keys", "create", "team", "--also-tenants", "nobody"),
        ("keys", "list"),
        ("keys", "list", "nobody"),
        ("keys", "rotate", "key_nobody"),
        ("keys", "rotate", "key_nobody", "--overlap", "31d"),
        ("keys", "rotate", "key_nobody", "--overlap", "1"),
        ("usage", "nobody"),
        ("usage", "Not A Tenant"),
        ("usage", "--records"),
        ("usage", "team", "--since", "yesterday"),
    ],
)
def test_a_mistake_is_told_in_one_line(typed: Typed, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What can't be done ends with exit code 1 and a sentence, never a traceback."""
    code, out, err = typed(*arguments, env=environment(tmp_path))
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: .{10,}\n", err)


def test_a_tenant_is_made_changed_shown_and_deleted(typed: Typed, tmp_path: Path) -> None:
    """Every limit by its option; ``none`` and ``all`` take one away; what is not given stays."""
    env = environment(tmp_path)

    def shown() -> dict[str, Any]:
        code, out, err = typed("tenants", "show", "acme", "--json", env=env)
        assert (code, err) == (0, "")
        return dict(json.loads(out, parse_float=Decimal))

    made = typed(
        *(
            "tenants",
            "create",
            "acme",
            "--budget-usd",
            "2.000000001",
            "--budget-tokens",
            "1000",
            "--budget-period",
            "12h",
        ),
        *("--soft-limit-usd", "1.5", "--max-output-tokens", "256", "--rate-requests", "60", "--rate-tokens", "9000"),
        *("--concurrency", "4", "--models", "echo, fast", "--metadata", "owner=Zo\u00eb", "--metadata", "url=a=b"),
        env=env,
    )
    assert (made[0], made[2]) == (0, "")
    before = shown()
    wanted = {
        "budget_usd": Decimal("2.000000001"), "budget_tokens": 1000, "budget_period": "12h", "soft_limit_usd": Decimal("1.5"),
        "max_output_tokens": 256, "rate_requests": 60, "rate_tokens": 9000, "concurrency": 4,
        "allowed_models": ["echo", "fast"], "metadata": {"owner": "Zo\u00eb", "url": "a=b"}, "enabled": True,
        "spent_usd": 0, "remaining_usd": Decimal("2.000000001"),
    }  # fmt: skip
    assert before.items() >= wanted.items()
    changes = ("--name", "Acme", "--budget-usd", "none", "--concurrency", "none", "--models", "all", "--disable")
    assert typed("tenants", "update", "acme", *changes, env=env)[0] == 0
    changed = {"name": "Acme", "budget_usd": None, "remaining_usd": None, "concurrency": None, "allowed_models": None}
    assert shown() == {**before, **changed, "enabled": False}
    assert typed("tenants", "update", "acme", "--enable", env=env)[0] == 0
    assert shown()["enabled"] is True
    text = typed("tenants", "show", "acme", env=env)[1]
    assert "budget_tokens      1000\n" in text
    listed = json.loads(typed("tenants", "list", "--json", env=env)[1])["data"]
    assert [row["id"] for row in listed] == ["acme", "team"]
    assert typed("tenants", "delete", "acme", env=env)[0] == 0
    assert typed("tenants", "show", "acme", env=env)[0] == 1


def test_a_key_is_rotated_with_an_overlap(typed: Typed, tmp_path: Path) -> None:
    """The successor has the settings of the old key, which is listed with its end; once only."""
    env = environment(tmp_path)
    options = ("--name", "laptop", "--expires-in", "30d", "--budget-usd", "0.5", "--models", "echo", "--json")
    made = json.loads(typed("keys", "create", "team", *options, env=env)[1])
    code, out, _ = typed("keys", "rotate", made["id"], "--overlap", "1h", "--json", env=env)
    new = json.loads(out)
    assert code == 0
    same = ("tenant", "name", "expires", "budget_usd", "allowed_models")
    assert [new[name] for name in same] == [made[name] for name in same]
    assert new["key"] != made["key"]
    rows = {row["id"]: row for row in json.loads(typed("keys", "list", "team", "--json", env=env)[1])["data"]}
    assert 3500 < rows[made["id"]]["revoked"] - time.time() <= 3600
    assert rows[new["id"]]["revoked"] is None
    assert "key" not in rows[new["id"]]
    assert typed("keys", "rotate", made["id"], env=env)[0] == 1
    listed = typed("keys", "list", "team", env=env)[1]
    assert f"{made['id']}\tlaptop\tvalid until " in listed
    assert not [one for one in (new["key"], made["key"]) if one in listed]


def test_an_admin_key_of_the_command_line_opens_the_admin_api(tmp_path: Path) -> None:
    """Where GATEWAY_ADMIN_KEY is unset too, until it is revoked; it makes no calls."""
    with serving(tmp_path) as server:
        env = environment(tmp_path)
        key_id, secret = gateway("keys", "create", "--admin", "--name", "ops", env=env).stdout.split()
        assert fetch(f"{server.url}/api/tenants", key=secret).status == 200
        assert fetch(f"{server.url}/api/tenants", key=KEY).status == 403
        assert fetch(f"{server.url}/v1/chat/completions", CHAT, key=secret).status == 401
        listed = gateway("keys", "list", "--admin", env=env)
        assert listed.stdout == f"{key_id}\tops\tvalid\n"
        assert gateway("keys", "revoke", key_id, env=env).returncode == 0
        assert fetch(f"{server.url}/api/tenants", key=secret).status == 403
        assert secret not in server.out + server.err


PRICED = (
    TEAM
    + """
[tenants.idle]

[models.dear]
targets = ["echo/echo"]
usd_per_million_in = 1000
usd_per_million_out = 2000
"""
)


def test_usage_is_what_was_called(tmp_path: Path) -> None:
    """Sums a tenant and sums a model, as a table, CSV and JSON, and call by call: all say the same."""
    env = environment(tmp_path, file=PRICED)
    with running(SERVE, {**env, "PORT": str(free_port())}, tmp_path) as server:
        for model in ("dear", "dear", "echo"):
            body = {**CHAT, "model": model, "max_tokens": 3}
            assert fetch(f"{server.url}/v1/chat/completions", body).status == 200

        def usage(*arguments: str) -> str:
            done = gateway("usage", *arguments, env=env)
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        shown = [line.split() for line in usage().splitlines()]
        by_model = json.loads(usage("team", "--json"), parse_float=Decimal)
        chosen = json.loads(usage("--model", "dear", "--json"), parse_float=Decimal)
        lines = usage("team", "--csv").splitlines()
        calls = [json.loads(line, parse_float=Decimal) for line in usage("team", "--records", "--json").splitlines()]
        table = usage("team", "--records", "--since", "2020-01-01").splitlines()
        later = usage("--since", "2100-01-01", "--csv").splitlines()
    assert shown[0] == ["tenant", "requests", "tokens_in", "tokens_out", "cost_usd"]
    assert [row[:2] for row in shown[1:]] == [["idle", "0"], ["team", "3"], ["all", "3"]]
    assert [(row["model"], row["requests"]) for row in by_model["data"]] == [("dear", 2), ("echo", 1)]
    assert by_model["data"][0]["cost_usd"] == by_model["total"]["cost_usd"] == Decimal("0.018")
    assert chosen["total"] == {name: value for name, value in by_model["data"][0].items() if name != "model"}
    assert lines[0] == "model,requests,tokens_in,tokens_out,cost_usd"
    assert lines[1].split(",")[0::4] == ["dear", "0.018"]
    assert [call["model"] for call in calls] == ["echo", "dear", "dear"]
    assert sum(call["cost_usd"] for call in calls) == Decimal("0.018")
    assert len(table) == 4
    assert later == ["tenant,requests,tokens_in,tokens_out,cost_usd", "idle,0,0,0,0.0", "team,0,0,0,0.0"]


def test_usage_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    """``usage | head`` closes the pipe: no traceback."""
    env = environment(tmp_path, file=TEAM + "".join(f"[tenants.t{number}]\n" for number in range(50)))
    command = f"{shlex.quote(sys.executable)} -m asgi_llm_gateway tenants list | true"
    done = subprocess.run(
        ["sh", "-c", command], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_database_is_migrated_before_anything_runs(typed: Typed, tmp_path: Path) -> None:
    """``migrate`` makes the tables, says where, and may be run again."""
    env = environment(tmp_path)
    for _ in range(2):
        code, out, err = typed("migrate", env=env)
        assert (code, err) == (0, "")
        assert out.startswith(f"sqlite: {tmp_path}/data/gateway.db is at revision ")
    assert typed("tenants", "create", "acme", env=env)[0] == 0


@pytest.mark.parametrize(
    "command", [[], ["tenants"], ["tenants", "create"], ["tenants", "update"], ["keys", "create"], ["keys", "rotate"],
                ["usage"], ["migrate"], ["keys", "list"], ["keys", "revoke"], ["tenants", "delete"], ["tenants", "show"]],
)  # fmt: skip
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` works, and money is said to be US dollars wherever it is taken."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "usd" not in told or "US dollars" in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # aiosqlite's thread may outlive us
def test_a_store_that_is_not_there_is_told_in_one_line(typed: Typed, tmp_path: Path) -> None:
    """A database that nobody serves, and a data folder that can't be made, are named without a traceback."""
    url = f"postgresql://gateway:hidden-word@127.0.0.1:{free_port()}/gateway"
    (tmp_path / "file").write_text("")
    missing = f"sqlite:///{tmp_path}/no/such/folder/gateway.db"
    wrong: list[dict[str, str]] = [
        {"DATABASE_URL": url},
        {"DATABASE_URL": missing},
        {"GATEWAY_DATA_DIR": str(tmp_path / "file" / "below"), "DATABASE_URL": ""},
    ]
    for settings in wrong:
        code, out, err = typed("tenants", "list", env={**environment(tmp_path), **settings})
        assert (code, out) == (1, "")
        assert re.fullmatch(r"error: .{10,}\n", err)
        assert "hidden-word" not in err


def test_an_unknown_command_shows_how_to_call_it(tmp_path: Path) -> None:
    """argparse's own refusal (exit code 2) lists the commands."""
    done = gateway("fly", env=environment(tmp_path))
    assert done.returncode == 2
    assert "serve" in done.stderr
    assert "Traceback" not in done.stderr
