"""What Prometheus itself says: its tool checks the page, the rules and the dashboard, and its server scrapes two workers.

``promtool`` and ``prometheus`` are Debian's package ``prometheus``; where it is missing, those tests say so and are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.meters import families
from asgi_llm_gateway.meters.exposition import render
from asgi_llm_gateway.meters.families import Family
from asgi_llm_gateway.meters.meters import Meters, Reading
from asgi_llm_gateway.meters.shared import log_lines, rate_events, traces
from asgi_llm_gateway.records import CallRecord, Usage

from .metrics_parts import Samples, samples, value
from .servers import ROOT, Server, environment, fetch, free_port, uvicorn

EXAMPLES = ROOT / "examples" / "observability"
TOKEN = "a-token-for-prometheus"
ADMIN = "an-admin-key-of-32-characters-or-more"
PRICED = """
[models.echo]
targets = ["echo/echo"]
usd_per_million_in = 1.5
usd_per_million_out = 7.3

[tenants.team]
keys = ["${TEAM_KEY}"]
budget_usd = 0.5

[tenants.poor]
keys = ["${POOR_KEY}"]
budget_usd = 0.000000001
"""
POOR = "gw-poor-key-for-the-tests"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}

ALL: dict[str, Family] = {family.name: family for family in vars(families).values() if isinstance(family, Family)}


def tool(*arguments: str, told: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """``promtool ...``."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return subprocess.run([path, *arguments], input=told, capture_output=True, timeout=60, check=False)


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stdout + done.stderr).decode()


def every_metric() -> Meters:
    """Meters in which each metric has samples."""
    meters = Meters()
    meters.booked(CallRecord("h", "team", model="gpt-4", usage=Usage(5, 4, 3, 2, 1), cost=7, status=200))
    for counts in meters.counted:
        counts.add(tuple("x" for _ in counts.family.labels), 1)
    for histograms in meters.observed:
        histograms.observe(tuple("x" for _ in histograms.family.labels), 0.5, "0" * 31 + "1")
    meters.sources += (rate_events, log_lines, traces)
    return meters


def every_reading() -> list[Reading]:
    """What the page adds."""
    told = (families.IN_FLIGHT, families.RATE_REDIS_DOWN)  # by the meters themselves
    gauges = [family for family in ALL.values() if family.kind == "gauge" and family not in told]
    return [Reading(family, tuple("x" for _ in family.labels), 1.0) for family in gauges]


def test_the_page_passes_promtool() -> None:
    """Every metric, with a help, a unit and a name as they should be."""
    page, _ = render(every_metric(), "", every_reading())
    shown = set(samples(page.decode()))
    for family in ALL.values():
        assert {family.name, f"{family.name}_count"} & shown, family.name
    done = tool("check", "metrics", told=page)
    assert (done.returncode, said(done)) == (0, "")


def test_promtool_would_tell_of_a_bad_page() -> None:
    """Else the test above were worth nothing."""
    assert tool("check", "metrics", told=b"badName 1\n").returncode != 0


def test_the_alert_rules_fire_where_they_should_and_nowhere_else() -> None:
    """Unit tests of the rules, by promtool."""
    done = tool("check", "rules", str(EXAMPLES / "alerts.yml"))
    assert done.returncode == 0, said(done)
    done = tool("test", "rules", str(ROOT / "tests" / "alerts_test.yml"))
    assert done.returncode == 0, said(done)


def test_the_example_configuration_is_one(tmp_path: Path) -> None:
    """As it stands, beside its rules and a token."""
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "metrics-token").write_text(TOKEN, "utf-8")
    done = tool("check", "config", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, said(done)


def metrics_in(text: str) -> set[str]:
    """The names of ours in an expression."""
    return set(re.findall(r"\b(?:llm|http)_[a-z_]+\b", text))


def exposed() -> set[str]:
    """All sample names that a page can have."""
    found = set()
    for family in ALL.values():
        histogram = family.kind == "histogram"
        found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")} if histogram else {family.name}
    return found


def dashboard() -> list[tuple[str, str]]:
    """Each panel's title and expression."""
    document = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
    return [(panel["title"], target["expr"]) for panel in document["panels"] for target in panel.get("targets", ())]


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    """A renamed metric would leave an empty panel, and an alert that never fires."""
    names = exposed()
    for _, text in [("alerts", (EXAMPLES / "alerts.yml").read_text("utf-8")), *dashboard()]:
        assert metrics_in(text) <= names, metrics_in(text) - names


def test_the_dashboard_shows_every_metric() -> None:
    """What is measured is looked at; a booked call is a request, and a budget's size is in what is left of it."""
    shown = set().union(*(metrics_in(text) for _, text in dashboard()))
    for family in ALL.values():
        if family not in (families.CALLS, families.UNLISTED):
            assert any(name.startswith(family.name) for name in shown), family.name


def test_the_dashboards_expressions_are_expressions(tmp_path: Path) -> None:
    """As Grafana fills its variables in."""
    rules = []
    for at, (_, text) in enumerate(dashboard()):
        filled = text.replace("$__rate_interval", "5m").replace("$tenant", ".*").replace("$model", ".*")
        assert "$" not in filled
        rules.append({"record": f"panel:{at}", "expr": filled})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")  # JSON is YAML
    done = tool("check", "rules", str(file))
    assert done.returncode == 0, said(done)


# -- real processes ----------------------------------------------------------------------------------------------------


@contextmanager
def workers(folder: Path, count: int, **more: str) -> Iterator[Server]:
    """The gateway with all its observers, as so many processes that share a folder for their metrics."""
    env = environment(
        folder,
        file=PRICED,
        POOR_KEY=POOR,
        METRICS_TOKEN=TOKEN,
        GATEWAY_ADMIN_KEY=ADMIN,
        PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics"),
        WEB_CONCURRENCY=str(count),
        **more,
    )
    (folder / "metrics").mkdir()
    with uvicorn("tests.observed:app", env, folder, "--workers", str(count), "--no-access-log") as server:
        yield server


def page_of(server: Server) -> Samples:
    """The metrics as the token shows them."""
    answer = fetch(f"{server.url}/metrics", key=TOKEN)
    assert answer.status == 200, answer.body
    return samples(answer.body.decode())


def settled(server: Server) -> Decimal:
    """What the ledger has settled, in USD, as the admin API tells it."""
    told = json.loads(fetch(f"{server.url}/api/stats", key=ADMIN).body, parse_float=Decimal)
    return Decimal(told["cost_total_usd"])


def eventually(check: Any, seconds: float = 30.0) -> Any:
    """The check's answer once it is true."""
    until = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


def load(server: Server, calls: int) -> None:
    """JSON, streams, refusals and mistakes, over many connections: every worker gets some."""
    for at in range(calls):
        assert fetch(f"{server.url}/v1/chat/completions", CHAT).status == 200
        assert fetch(f"{server.url}/v1/chat/completions", {**CHAT, "stream": True}).status == 200
        if at % 3 == 0:
            assert fetch(f"{server.url}/v1/chat/completions", {**CHAT, "n": -1}).status == 400
            assert fetch(f"{server.url}/v1/chat/completions", CHAT, key=POOR).status == 402
            assert fetch(f"{server.url}/v1/chat/completions", CHAT, key="gw-wrong-key").status == 401


def test_two_workers_are_one_set_of_metrics_and_their_money_is_the_ledgers(tmp_path: Path) -> None:
    """Whichever worker is asked, also when one of them was killed; its counts stay, its gauges go."""
    with workers(tmp_path, 2) as server:
        rounds = 0
        while rounds == 0 or len(list((tmp_path / "metrics").glob("counter_*.db"))) < 2:  # until both had calls
            assert rounds < 20
            load(server, 30)
            rounds += 1
        # A call is counted when its application returns, which may be after its client has read everything.
        eventually(lambda: value(page_of(server), "http_requests_total", route="/v1/chat/completions") == 90 * rounds)
        pages = [page_of(server) for _ in range(6)]
        for found in pages:
            assert value(found, "http_requests_total", route="/v1/chat/completions") == 90 * rounds
            assert value(found, "http_request_duration_seconds_count", route="/v1/chat/completions") == 90 * rounds
            assert value(found, "llm_budget_exceeded_total", tenant="poor") == 10 * rounds
            assert value(found, "llm_calls_total", tenant="team") == 60 * rounds
            assert value(found, "llm_time_to_first_token_seconds_count", model="echo") == 30 * rounds
            assert abs(Decimal(value(found, "llm_cost_total")) - settled(server)) < Decimal("1e-9")
            assert value(found, "llm_store_up") == 1
            assert value(found, "llm_budget_usd", tenant="team") == 0.5
        one = next((tmp_path / "metrics").glob("counter_*.db"))
        subprocess.run(["kill", "-9", one.stem.rpartition("_")[2]], check=True)
        before = settled(server)
        found = eventually(lambda: page_of(server))
        assert abs(Decimal(value(found, "llm_cost_total")) - before) < Decimal("1e-9")
        load(server, 3)
        after = settled(server)
        assert after > before
        assert abs(Decimal(value(page_of(server), "llm_cost_total")) - after) < Decimal("1e-9")


def test_a_breaker_that_is_open_in_one_worker_is_open_on_every_page(tmp_path: Path) -> None:
    """Each worker has its own; the worst is what counts. When its process is gone, so is its word."""
    provider = f"http://127.0.0.1:{free_port()}"
    more = {"LLAMACPP_URL": provider, "GATEWAY_MAX_RETRIES": "0", "BREAKER_FAILURES": "2"}
    with workers(tmp_path, 2, **more, BREAKER_COOLDOWN_SECONDS="600") as server:
        body = {**CHAT, "model": "llamacpp/tiny"}
        priced = {"name": "free", "budget_usd": None}
        assert fetch(f"{server.url}/api/tenants/team", priced, key=ADMIN, method="PUT").status == 200
        for _ in range(3):
            assert fetch(f"{server.url}/v1/chat/completions", body).status in (502, 503)
        eventually(lambda: value(page_of(server), "llm_breaker_open", provider="llamacpp", model="tiny") == 1)
        found = page_of(server)
        assert value(found, "llm_breaker_open", provider="llamacpp") == 1
        assert value(found, "llm_upstream_attempts_total", provider="llamacpp") >= 2
        assert value(found, "llm_upstream_attempts_total", outcome="ok") == 0


@contextmanager
def prometheus(folder: Path, target: Server) -> Iterator[str]:
    """A real Prometheus with the example's rules, that scrapes the gateway as the example does, only more often."""
    path = shutil.which("prometheus")
    if path is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    folder.mkdir()
    config = (EXAMPLES / "prometheus.yml").read_text("utf-8")
    config = config.replace("15s", "500ms").replace("127.0.0.1:8080", f"127.0.0.1:{target.port}")
    (folder / "prometheus.yml").write_text(config, "utf-8")
    shutil.copy(EXAMPLES / "alerts.yml", folder)
    (folder / "metrics-token").write_text(TOKEN, "utf-8")
    port = free_port()
    command = [
        path,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        eventually(lambda: process.poll() is None and _ready(url))
        yield url
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(15)


def _ready(url: str) -> bool:
    try:
        return fetch(f"{url}/-/ready", key=None).status == 200
    except OSError:
        return False


def query(url: str, text: str, path: str = "query", **more: str) -> list[Any]:
    """What Prometheus answers."""
    asked = urllib.parse.urlencode({"query": text, **more})
    told = fetch(f"{url}/api/v1/{path}?{asked}", key=None).json()
    assert told["status"] == "success", told
    data = told["data"]
    found: list[Any] = data["result"] if isinstance(data, dict) else data
    return found


@pytest.mark.real
def test_a_real_prometheus_scrapes_the_workers_and_raises_the_alerts(tmp_path: Path) -> None:
    """Its sum is the ledger's, and the budget that is gone is an alert."""
    with workers(tmp_path, 2) as server, prometheus(tmp_path / "prometheus", server) as url:
        load(server, 15)
        total = settled(server)
        assert total > 0

        def agrees() -> bool:
            found = query(url, "sum(llm_cost_total)")
            return bool(found) and abs(Decimal(found[0]["value"][1]) - total) < Decimal("1e-9")

        eventually(agrees)
        assert query(url, 'up{job="llm-gateway"}')[0]["value"][1] == "1"
        assert {one["metric"]["tenant"] for one in query(url, "llm_budget_left_usd")} == {"team", "poor"}
        told = eventually(lambda: fetch(f"{url}/api/v1/rules", key=None).json()["data"]["groups"])
        rules = [rule for group in told for rule in group["rules"]]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        load(server, 15)
        eventually(
            lambda: [
                one for one in query(url, 'ALERTS{alertname="LLMBudgetExceeded"}') if one["metric"]["tenant"] == "poor"
            ]
        )


@pytest.mark.real
def test_a_real_prometheus_keeps_the_exemplars_of_one_process(tmp_path: Path) -> None:
    """A slow call leads to its trace. With several processes there are none: their files have no room for them."""
    env = environment(tmp_path, file=PRICED, POOR_KEY=POOR, METRICS_TOKEN=TOKEN)
    with (
        uvicorn("tests.observed:app", env, tmp_path, "--no-access-log") as server,
        prometheus(tmp_path / "prometheus", server) as url,
    ):
        answer = fetch(f"{server.url}/v1/chat/completions", CHAT)
        trace = answer.headers["x-trace-id"]
        name, now = "http_request_duration_seconds_bucket", time.time()
        span = {"start": str(now - 60), "end": str(now + 60)}
        eventually(lambda: trace in json.dumps(query(url, name, "query_exemplars", **span)))
