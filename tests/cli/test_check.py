"""``check``: what would be served, and what is wrong with the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..servers import KEY, environment, fetch, free_port, gateway, running
from .commands import ADMIN_KEY, CHAT, SERVE, Typed

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
