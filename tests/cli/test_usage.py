"""``usage``: what was called, as a table, CSV and JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

from ..servers import ROOT, TEAM, environment, fetch, free_port, gateway, running
from .commands import CHAT, SERVE

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
