"""What a failed attempt means: whether it is tried again, where, and when."""

from __future__ import annotations

import datetime
import email.utils
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import GatewayError, Header, Unsupported, UpstreamError, UpstreamTimeout
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.failures import (
    LOADING,
    Failed,
    backoff,
    of_answer,
    of_status,
    of_transfer,
    of_unsupported,
    wait_of,
)
from asgi_llm_gateway.proxy.transfer import TransferError

NOW = 1_790_000_000.0
SOME = UpstreamError("It failed.")


def verdict(failed: Failed) -> tuple[bool, bool, bool]:
    """Again here, elsewhere, and blamed."""
    return failed.again, failed.elsewhere, failed.blamed


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, (False, False, False)),
        (401, (False, True, False)),
        (402, (False, True, False)),
        (403, (False, True, False)),
        (404, (False, True, False)),
        (405, (False, True, False)),
        (408, (True, True, True)),
        (409, (True, True, False)),
        (413, (False, False, False)),
        (415, (False, False, False)),
        (422, (False, False, False)),
        (425, (True, True, False)),
        (429, (True, True, False)),
        (500, (True, True, True)),
        (501, (False, True, False)),
        (502, (True, True, True)),
        (503, (True, True, True)),
        (504, (True, True, True)),
        (508, (False, True, False)),
        (520, (True, True, True)),
        (524, (True, True, True)),
        (529, (True, True, True)),
        (599, (False, True, True)),
    ],
)
def test_a_status_says_where_another_attempt_may_help(status: int, expected: tuple[bool, bool, bool]) -> None:
    """As the official SDKs retry; a refusal of the request itself is no other provider's to answer."""
    failed = of_status(status, (), SOME)
    assert verdict(failed) == expected
    assert (failed.status, failed.error, failed.wait) == (status, SOME, None)


def test_a_provider_that_says_not_to_retry_is_not_asked_again() -> None:
    """``x-should-retry: false``; ``true`` does not make a wrong request right."""
    assert verdict(of_status(500, [(b"x-should-retry", b" False ")], SOME)) == (False, True, True)
    assert verdict(of_status(500, [(b"x-should-retry", b"true")], SOME)) == (True, True, True)
    assert verdict(of_status(400, [(b"x-should-retry", b"true")], SOME)) == (False, False, False)


@pytest.mark.parametrize("code", ["insufficient_quota", "upstream_account", "enforced_spend_limit_reached"])
def test_an_account_without_money_is_no_reason_to_wait(code: str) -> None:
    """Another provider may answer; this one is not broken."""
    assert verdict(of_status(429, (), GatewayError("Pay.", status=429, code=code))) == (False, True, False)


def test_a_model_that_is_still_loading_is_no_failure() -> None:
    """The breaker stays closed."""
    loading = of_status(503, (), UpstreamError("Loading.", status=503, code=LOADING))
    assert verdict(loading) == (True, True, False)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("connect", (True, True, True)),
        ("cut", (True, True, True)),
        ("protocol", (True, True, True)),
        ("timeout", (False, True, True)),
        ("pool", (True, True, False)),
    ],
)
def test_a_broken_transfer_says_so_too(kind: str, expected: tuple[bool, bool, bool]) -> None:
    """Who waited for the whole time does not do so twice; full of our own calls, a provider is not to blame."""
    failed = of_transfer(TransferError(kind, "to 10.0.0.1:8000"), "own")
    assert verdict(failed) == expected
    assert "10.0.0.1" not in failed.error.message + str(failed)
    assert isinstance(failed.error, UpstreamTimeout) is (kind == "timeout")


def test_an_answer_that_is_none_is_the_providers_fault_and_what_it_cannot_do_is_not() -> None:
    """One is tried again, the other only elsewhere."""
    assert verdict(of_answer(SOME)) == (True, True, True)
    assert verdict(of_unsupported(Unsupported("No such word."))) == (False, True, False)


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b" 7 ")], 7.0),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after", b"1000000000")], 1e9),
        ([(b"retry-after", b"0")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"inf")], None),
        ([(b"retry-after", b"1e999")], None),
        ([(b"retry-after", b"")], None),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"\xff\xfe")], None),
        ([(b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"?")], 7.0),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"")], 7.0),
        ([(b"x-retry-after", b"7")], None),
    ],
)
def test_a_providers_wish_is_read_in_each_of_its_forms(headers: list[Header], expected: float | None) -> None:
    """Milliseconds first, as the SDKs do; what is no time is no wish."""
    assert wait_of(headers, NOW) == expected


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y",
                                  "%a, %d %b %Y %H:%M:%S -0000", "%a, %d %b %Y %H:%M:%S"])  # fmt: skip
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_date_is_utc_whatever_its_form_and_the_machines_zone(
    form: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9110, 5.6.7: all three forms stand for UTC, also those that do not say so."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        when = datetime.datetime.fromtimestamp(NOW + 90, datetime.UTC)
        assert wait_of([(b"retry-after", when.strftime(form).encode())], NOW) == 90.0
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@given(st.integers(-10_000_000, 10_000_000))
def test_a_date_is_as_far_away_as_it_is(seconds: int) -> None:
    """And a date that is past is no wish."""
    text = email.utils.formatdate(NOW + seconds, usegmt=True).encode()
    assert wait_of([(b"retry-after", text)], NOW) == (seconds if seconds > 0 else None)


@given(st.binary(max_size=60), st.binary(max_size=20) | st.none())
def test_whatever_stands_there_is_a_time_or_none(value: bytes, millis: bytes | None) -> None:
    """Never an exception, never a negative, endless or nonsensical number."""
    headers = [(b"retry-after", value)] + ([(b"retry-after-ms", millis)] if millis is not None else [])
    wait = wait_of(headers, NOW)
    assert wait is None or 0 < wait < float("inf")


_DATES = st.text(alphabet="0123456789 ,:+-GMTadeohursWnFJbD", max_size=40)


@given(_DATES)
def test_what_looks_like_a_date_is_one_or_none(text: str) -> None:
    """Half ones, too long ones, years that do not exist."""
    wait = wait_of([(b"retry-after", text.encode())], NOW)
    assert wait is None or 0 < wait < float("inf")


@given(st.floats(0.001, 1e12))
def test_seconds_and_milliseconds_are_read_as_they_are_written(seconds: float) -> None:
    """Whatever their size: how long is too long, others decide."""
    assert wait_of([(b"retry-after", repr(seconds).encode())]) == seconds
    assert wait_of([(b"retry-after-ms", repr(seconds).encode())]) == seconds / 1000


def test_pauses_double_and_differ() -> None:
    """Between half and all of 0.25, 0.5, 1, ... to 8 seconds; no two workers wait alike."""
    random.seed(7)
    for retry, most in enumerate((0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)):
        waits = [backoff(retry) for _ in range(200)]
        assert most / 2 <= min(waits) < 0.6 * most
        assert 0.9 * most < max(waits) <= most
    assert failures.BACKOFF == 0.25
