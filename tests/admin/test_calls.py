"""Records and statistics: what was called, shown exactly, in pages and as a file."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.admin import calls
from asgi_llm_gateway.admin.answers import RecordAnswer
from asgi_llm_gateway.admin.export import COLUMNS, Exact, csv_lines
from asgi_llm_gateway.admin.models import moment
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import Amount, Usage, usd_number

from ..conversation import call
from .conftest import ADMIN_KEY, NOON, USAGE, Office, bearer, exact

RECORDS = "/api/tenants/team/records"


def rows_of(text: bytes) -> list[dict[str, str]]:
    """A CSV file as its reader sees it."""
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


async def test_a_record_shows_all_of_a_call(office: Office) -> None:
    """Whose, what, how many tokens of each kind, what it cost, how it ended."""
    await office.team()
    usage = USAGE._replace(estimated=True, provider_cost=12_345)
    await office.settle(held=Amount(999_999_001, 10), request_id="req-1", trace_id="a" * 32, key="key_1", model="fast",
                        provider="echo", usage=usage, cost=1_000_000_001, status=200, aborted=True, local=True)  # fmt: skip
    answer = await office.get(RECORDS)
    (row,) = exact(answer)["records"]
    assert row == {
        "request_id": "req-1", "trace_id": "a" * 32, "model": "fast", "provider": "echo", "prompt_tokens": 100,
        "completion_tokens": 20, "cached_tokens": 30, "cache_write_tokens": 5, "reasoning_tokens": 7,
        "cost_usd": Decimal("1.000000001"), "provider_cost_usd": Decimal("0.000012345"), "status": 200, "started": NOON,
        "ended": Decimal(NOON) + Decimal("1.5"), "key_id": "key_1",
        "flags": ["estimated", "aborted", "overdraft", "local"], "overdraft_usd": Decimal("0.000001"),
    }  # fmt: skip
    assert set(row) == set(RecordAnswer.model_fields)


async def test_what_is_not_known_of_a_call_is_null(office: Office) -> None:
    """No model, no provider's cost, no status: ``null``, not nothing and not zero. A lapsed call is flagged."""
    await office.team()
    await office.settle(lapsed=True)
    (row,) = (await office.get(RECORDS)).json()["records"]
    unknown = ("model", "provider", "provider_cost_usd", "status", "key_id")
    assert [row[name] for name in unknown] == [None] * 5
    assert (row["flags"], row["cost_usd"]) == (["lapsed"], 0)


async def test_records_are_read_in_pages_newest_first(office: Office) -> None:
    """``next`` leads to the end; each record once, also while new ones come in."""
    await office.team()
    for number in range(25):
        await office.settle(request_id=f"r{number}", started=NOON + number)
    seen, cursor = [], ""
    while True:
        page = (await office.get(f"{RECORDS}?limit=7{cursor}")).json()
        assert len(page["records"]) <= 7
        seen += [row["request_id"] for row in page["records"]]
        if page["next"] is None:
            break
        await office.settle(request_id="late", started=NOON + 100)
        cursor = f"&cursor={page['next']}"
    assert seen == [f"r{number}" for number in reversed(range(25))]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("since=1792065602", [3, 2]),
        ("until=1792065602", [1, 0]),
        ("since=1792065601&until=1792065603", [2, 1]),
        ("since=2026-10-15T12:00:02Z", [3, 2]),
        ("since=2026-10-15T14:00:02%2B02:00", [3, 2]),
        ("since=2026-10-15T14:00:02+02:00", [3, 2]),
        ("since=2026-10-15T12:00:02.000", [3, 2]),
        ("since=2026-10-16", []),
        ("until=20261016T000000Z", [3, 2, 1, 0]),
        ("model=odd", [3, 1]),
        ("model=odd&since=1792065602", [3]),
        ("model=nobody", []),
    ],
)
async def test_records_are_chosen_by_time_and_model(office: Office, query: str, found: list[int]) -> None:
    """Begun in [since, until), Unix seconds or ISO 8601, UTC where it names no zone; in JSON as in CSV."""
    await office.team()
    for number in range(4):
        await office.settle(request_id=str(number), started=NOON + number, model="odd" if number % 2 else "even")
    shown = (await office.get(f"{RECORDS}?{query}")).json()["records"]
    assert [int(row["request_id"]) for row in shown] == found
    listed = await office.get(f"{RECORDS}?{query}&format=csv")
    assert [int(row["request_id"]) for row in rows_of(listed.body)] == found


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "1001"), ("limit", "-1"), ("limit", "1e3"), ("limit", ""), ("cursor", "x"),
     ("cursor", "9" * 300), ("cursor", "%00"), ("since", "yesterday"), ("since", "nan"), ("since", "-5"), ("since", "1e400"),
     ("since", "9" * 20), ("since", ""), ("since", "2026-13-01"), ("until", "1_000"), ("until", "+5"), ("model", ""),
     ("model", "x" * 300), ("model", "%00"), ("format", "xml"), ("page", "1"), ("tenant", "other"), ("key", "x")],
)  # fmt: skip
async def test_a_query_that_is_none_is_refused(office: Office, name: str, value: str) -> None:
    """422 that names the parameter."""
    await office.team()
    await office.settle()
    answer = await office.get(f"{RECORDS}?{name}={value}")
    assert (answer.status, answer.error["param"]) == (422, name)


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "", "application/json"),
        ("", "*/*", "application/json"),
        ("", "text/csv", "text/csv; charset=utf-8"),
        ("", "text/html, text/csv;q=0.9", "text/csv; charset=utf-8"),
        ("", "application/json, text/csv", "application/json"),
        ("?format=csv", "application/json", "text/csv; charset=utf-8"),
        ("?format=json", "text/csv", "application/json"),
    ],
)
async def test_csv_is_asked_for_by_accept_or_by_name(office: Office, query: str, accept: str, kind: str) -> None:
    """The name in the query wins."""
    await office.team()
    assert (await office.get(RECORDS + query, accept=accept)).headers["content-type"] == kind


async def test_csv_has_the_whole_range_and_says_what_json_says(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, no record lost or doubled at the seams, every amount to the last digit."""
    monkeypatch.setattr(calls, "MAX_PAGE", 10)
    await office.team()
    for number in range(35):
        await office.settle(request_id=f"r{number}", model="fast", usage=USAGE, cost=number * 111_111_111, status=200)
    answer = await office.get(RECORDS + "?format=csv&limit=3")
    assert answer.headers["content-disposition"] == 'attachment; filename="team-records.csv"'
    rows = rows_of(answer.body)
    assert [row["request_id"] for row in rows] == [f"r{number}" for number in reversed(range(35))]
    told = exact(await office.get(RECORDS + "?limit=1000"))["records"]
    for row, record in zip(rows, told, strict=True):
        assert Decimal(row["cost_usd"]) == record["cost_usd"]
        assert set(row) == set(record) == set(COLUMNS)
        for name in ("prompt_tokens", "status", "model", "trace_id"):
            assert row[name] == str(record[name])
        assert row["provider"] == ""


async def test_csv_is_sent_page_by_page(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is asked for when the one before has gone: memory does not grow with the range."""
    monkeypatch.setattr(calls, "MAX_PAGE", 10)
    await office.team()
    for _ in range(30):
        await office.settle()
    async with call(
        office.app, None, RECORDS, headers=[bearer(ADMIN_KEY)], method="GET", query_string=b"format=csv"
    ) as talk:
        answer = await talk.answer()
    lines = [message["body"].count(b"\n") for message in answer.messages[1:] if message["body"]]
    assert lines == [1, 10, 10, 10]


async def test_a_store_that_fails_on_the_way_breaks_the_file_off(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes half a file for all of it: no last body message is sent."""
    monkeypatch.setattr(calls, "MAX_PAGE", 10)
    await office.team()
    for _ in range(30):
        await office.settle()
    asked = office.store.records

    async def failing(*args: Any, **more: Any) -> Any:
        if more.get("cursor") is not None:
            raise StoreError("gone")
        return await asked(*args, **more)

    monkeypatch.setattr(office.store, "records", failing)
    async with call(
        office.app, None, RECORDS, headers=[bearer(ADMIN_KEY)], method="GET", query_string=b"format=csv"
    ) as talk:
        with pytest.raises((StoreError, ExceptionGroup)):
            await talk.answer()
        while not talk._out.empty():
            assert talk._out.get_nowait().get("more_body", True)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "-2+3+cmd|' /C calc'!A0"]


@pytest.mark.parametrize("text", FORMULAS)
async def test_what_a_client_wrote_is_no_formula(office: Office, text: str) -> None:
    """In CSV such text gets a quote in front; in JSON it is as it was, and numbers stay numbers."""
    await office.team()
    await office.settle(request_id=text, trace_id=text, model=text, provider=text, key=text, cost=5)
    (row,) = rows_of((await office.get(RECORDS + "?format=csv")).body)
    for name in ("request_id", "trace_id", "model", "provider", "key_id"):
        assert row[name] == "'" + text
    assert (row["cost_usd"], row["prompt_tokens"]) == ("0.000000005", "0")
    (record,) = (await office.get(RECORDS)).json()["records"]
    assert record["model"] == text


@given(st.lists(st.lists(st.text(alphabet=st.characters(codec="utf-8")), min_size=2, max_size=4), max_size=5))
def test_any_text_comes_back_from_csv(rows: list[list[str]]) -> None:
    """Quotes, commas, line ends: one cell stays one cell, and begins with no formula."""
    back = list(csv.reader(io.StringIO(csv_lines(rows).decode(), newline="")))
    assert [[cell.removeprefix("'") for cell in row] for row in back] == [
        [cell.removeprefix("'") for cell in row] for row in rows
    ]
    assert not [cell for row in back for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


def test_a_number_is_never_quoted() -> None:
    """Amounts below zero are numbers, not formulas."""
    assert csv_lines([(-5, Exact(usd_number(-5)), -1.5, None)]) == b"-5,-0.000000005,-1.5,\r\n"


# -- statistics --------------------------------------------------------------------------------------------------------


async def test_sums_are_exact_and_by_tenant_and_time(office: Office) -> None:
    """Of all, of one, since a moment; the sum of records is what the sums say."""
    await office.team()
    await office.team("other")
    for number, tenant in enumerate(("team", "team", "other")):
        await office.settle(tenant, started=NOON + number, usage=Usage(10, 3), cost=333_333_333)
    for query, requests, cost in (
        ("", 3, "0.999999999"),
        ("?tenant=team", 2, "0.666666666"),
        ("?since=1792065601", 2, "0.666666666"),
        ("?tenant=team&since=2026-10-15T12:00:01Z", 1, "0.333333333"),
        ("?since=2027-01-01", 0, "0.0"),
    ):
        shown = exact(await office.get("/api/stats" + query))
        assert (shown["requests"], shown["tokens_in"], shown["tokens_out"]) == (requests, 10 * requests, 3 * requests)
        assert shown["cost_total_usd"] == Decimal(cost)
    records = exact(await office.get(RECORDS))["records"]
    assert sum(row["cost_usd"] for row in records) == Decimal("0.666666666")


@pytest.mark.parametrize("query", ["since=soon", "tenant=Team", "until=5", "tenant=a&tenant=b", "since="])
async def test_statistics_refuse_what_they_do_not_know(office: Office, query: str) -> None:
    """422, not the sums of something else."""
    assert (await office.get("/api/stats?" + query)).status == 422


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_a_moment_is_read_from_any_iso_text(at: Any) -> None:
    """To the microsecond; a time without a zone is UTC."""
    from datetime import UTC

    expected = at if at.tzinfo else at.replace(tzinfo=UTC)
    if expected.utcoffset().total_seconds() % 60 == 0:  # ISO 8601 has no seconds in an offset
        assert moment(at.isoformat()) == expected.timestamp()
