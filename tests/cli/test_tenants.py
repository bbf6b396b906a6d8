"""Tenants and keys by the command line: made, used, changed, rotated and ended."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..servers import KEY, environment, fetch, gateway
from .commands import CHAT, Typed, serving


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
