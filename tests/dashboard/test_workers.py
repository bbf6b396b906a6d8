"""The dashboard of a real gateway with two workers: one session for both, and one sum everywhere after a mixed load."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from asgi_llm_gateway.stores.migrate import upgrade

from ..metrics_parts import samples
from ..servers import Reply, Server, environment, fetch, running, shown
from .desk import ADMIN_KEY

pytestmark = pytest.mark.real  # servers and processes of its own, for long

FILE = """
[tenants.team]
budget_usd = 1000
keys = ["gw-team-key-for-the-tests"]

[tenants.poor]
budget_usd = 0.000001
keys = ["gw-poor-key-for-the-tests"]

[models.dear]
targets = ["echo/echo"]
usd_per_million_in = "1000.000000001"
usd_per_million_out = "2000.000000003"

# A target of its own: one that fails is left alone for a while, and what does so is to be seen by nobody else.
[providers.shaky]
type = "echo"
models = ["shaky"]

[models.shaky]
targets = ["shaky/shaky"]
usd_per_million_in = "300.000000007"
usd_per_million_out = "1500.000000001"
"""
TEAM, POOR = "gw-team-key-for-the-tests", "gw-poor-key-for-the-tests"


class Browser:
    """A session over HTTP: each request is a connection of its own, so that both workers get some."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        reply = fetch(f"{url}/dashboard/api/login", {"key": key}, key=None)
        assert reply.status == 200, reply.body
        self.csrf = reply.json()["csrf"]
        self.cookie = reply.headers["set-cookie"].partition(";")[0]

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> Reply:
        """A request."""
        headers = {"cookie": self.cookie, "x-csrf-token": self.csrf}
        return fetch(f"{self.url}/dashboard/api/{path}", body, key=None, method=method, headers=headers)

    def read(self, path: str) -> Any:
        """An answer, its numbers by Decimal from the text."""
        reply = self.ask(path)
        assert reply.status == 200, reply.body
        return json.loads(reply.body, parse_float=Decimal)


def statuses(browser: Browser, path: str = "me") -> set[int]:
    """What both workers say, as far as chance has them both asked."""
    return {browser.ask(path).status for _ in range(16)}


def ended(browser: Browser) -> bool:
    """Whether the session ends everywhere, within a few seconds."""
    until = time.monotonic() + 30
    while statuses(browser) != {401}:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers on a SQLite file."""
    folder = tmp_path_factory.mktemp("workers")
    with serve(folder) as server:
        yield server


def serve(folder: Path, **more: str) -> Any:
    """``python -m asgi_llm_gateway serve`` with two workers."""
    env = environment(folder, file=FILE, GATEWAY_ADMIN_KEY=ADMIN_KEY, WEB_CONCURRENCY="2", PORT="0", **more)
    return running([sys.executable, "-m", "asgi_llm_gateway", "serve"], env, folder)


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """The same for each test."""
    with shown(started) as server:
        yield server


def test_a_session_is_one_in_both_workers_until_it_is_signed_out(server: Server) -> None:
    """Another session of the same key goes on."""
    one, other = Browser(server.url, ADMIN_KEY), Browser(server.url, ADMIN_KEY)
    assert statuses(one) == statuses(one, "tenants") == {200}
    assert one.ask("logout", {}).status == 204
    assert ended(one)
    assert statuses(other) == {200}


def test_a_key_that_is_revoked_ends_its_session_in_both_workers(server: Server) -> None:
    """Whichever of them was told."""
    admin = Browser(server.url, ADMIN_KEY)
    made = admin.ask("tenants/team/keys", {})
    assert made.status == 201
    tenant = Browser(server.url, made.json()["key"])
    assert statuses(tenant) == {200}
    assert admin.ask(f"tenants/team/keys/{made.json()['id']}", method="DELETE").status == 204
    assert ended(tenant)


def test_no_key_and_no_token_is_in_what_the_gateway_said(server: Server) -> None:
    """Neither printed nor logged."""
    one = Browser(server.url, TEAM)
    one.read("overview")
    for secret in (TEAM, ADMIN_KEY, one.csrf, one.cookie.partition("=")[2]):
        assert secret not in server.out + server.err


def load(url: str) -> None:
    """Calls of all kinds: whole, as streams, aborted, cut by the provider, failed by it, refused by each layer."""
    chat = {
        "model": "dear",
        "messages": [{"role": "user", "content": "one two three four five six seven"}],
        "max_tokens": 50,
    }
    faults = [None, "500", "503", "429", "cut@2", "half"]
    jobs: list[tuple[str, dict[str, Any], bool]] = []
    for number in range(24):
        fault = faults[number % len(faults)]
        body = {**chat, "stream": number % 4 in (1, 2)}
        if fault is not None and number % 2:
            body |= {"model": "shaky", "metadata": {"echo_fault": fault}}
        jobs.append((TEAM, body, number % 8 == 2))
    jobs += [(POOR, chat, False)] * 3 + [("gw-nobodys-key-at-all", chat, False)] * 3
    jobs += [(TEAM, {**chat, "model": "no-such-model"}, False)] * 2 + [(TEAM, {"model": "dear"}, False)] * 2

    def run(job: tuple[str, dict[str, Any], bool]) -> None:
        key, body, leaves = job
        if leaves:
            leave(url, key, {**body, "metadata": {"echo_delay_ms": "200"}})
        else:
            fetch(f"{url}/v1/chat/completions", body, key=key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, jobs))


def leave(url: str, key: str, body: dict[str, Any]) -> None:
    """Ask for a stream and hang up after its first bytes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), headers)
    assert connection.getresponse().read(10)
    connection.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_dashboard_stats_and_records_are_one_sum_after_a_mixed_load(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Metrics, too. Over both workers, to the last nano-USD; what was not booked is counted as what it was."""
    more = {}
    if kind == "postgresql":
        more["DATABASE_URL"] = request.getfixturevalue("postgres_url")
        upgrade(more["DATABASE_URL"])
    more["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "metrics")
    with serve(tmp_path, ENABLE_RATE_LIMIT="false", **more) as server:
        load(server.url)
        admin = Browser(server.url, ADMIN_KEY)
        found = settled(admin)
        stats, totals = admin.read("stats"), found["totals"]
        records = [
            row for tenant in ("team", "poor") for row in admin.read(f"tenants/{tenant}/records?limit=1000")["records"]
        ]
        assert totals["cost_usd"] == stats["cost_total_usd"] == sum(row["cost_usd"] for row in records) > 0
        assert totals["booked"] == stats["requests"] == len(records) >= 12
        assert totals["tokens_in"] == stats["tokens_in"] == sum(row["prompt_tokens"] for row in records)
        assert totals["tokens_out"] == stats["tokens_out"] == sum(row["completion_tokens"] for row in records)
        for rows in (found["series"], found["by_model"], found["by_tenant"]):
            assert sum(row["cost_usd"] for row in rows) == totals["cost_usd"]
        (team,) = [row for row in found["budgets"] if row["tenant"] == "team"]
        assert (team["spent_usd"], team["held_usd"]) == (totals["cost_usd"], 0)
        counted = {name: summed(server.url, name) for name in ("llm_cost_total", "llm_tokens_total")}
        assert abs(counted["llm_cost_total"] - totals["cost_usd"]) < Decimal("1e-9")
        assert counted["llm_tokens_total"] == totals["tokens_in"] + totals["tokens_out"]
        assert totals["calls"] == len(admin.read("traces?limit=1000")["data"]) == 34
        assert totals["refused"] >= 10  # no money, nobody's key, no such model, no messages
        assert totals["errors"] > 0
        assert totals["aborted"] > 0
        assert totals["p50_ms"] is not None
        tenant = Browser(server.url, TEAM)
        own = tenant.read("overview")["totals"]
        assert (own["cost_usd"], own["booked"]) == (totals["cost_usd"], totals["booked"])
        assert own["calls"] < totals["calls"]
        assert tenant.read("stats")["cost_total_usd"] == own["cost_usd"]
        assert "Traceback" not in server.err


def summed(url: str, name: str) -> Decimal:
    """A counter over all its labels and both workers."""
    page = fetch(f"{url}/metrics", key=ADMIN_KEY).body.decode()
    return sum((Decimal(str(value)) for value in samples(page)[name].values()), Decimal(0))


def settled(admin: Browser) -> Any:
    """The overview when nothing is held any more and all calls are there."""
    until = time.monotonic() + 60
    while True:
        found = admin.read("overview")
        if found["totals"]["calls"] >= 34 and not any(row["held_usd"] for row in found["budgets"]):
            return found
        assert time.monotonic() < until, found["totals"]
        time.sleep(0.2)
