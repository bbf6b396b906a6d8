"""What a caller may take, what its call asks for, and what it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from asgi_llm_gateway.keys import new_key, successor
from asgi_llm_gateway.rates.terms import Terms, expected, plan_of
from asgi_llm_gateway.rates.told import headers_of, refusal
from asgi_llm_gateway.rates.wants import NEVER, Stand, Verdict, want
from asgi_llm_gateway.records import Identity, Tenant
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

TERMS = Terms(60.0, 1, 100, 1000, 10, key_requests=50)
KEY = new_key("a")[0]


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A request as the gateway reads it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **fields}
    return parse(Route("metered", METERED[path], path), json.dumps(body).encode())


def limits(tenant: Tenant, key: Any = None, terms: Terms = TERMS) -> dict[tuple[str, bool], int]:
    """Each limit that holds, by what it limits and whether it is the key's own."""
    plan = plan_of(terms, Identity(tenant, key))
    return {(one.what, bool(one.account)): one.limit for one in plan.wants}


def test_records_go_before_settings() -> None:
    """Of the tenant and of the key, each limit by itself."""
    assert limits(Tenant("a")) == {("requests", False): 100, ("tokens", False): 1000, ("calls", False): 10}
    own = replace(KEY, rate_tokens=7, concurrency=2)
    assert limits(Tenant("a", rate_requests=5, concurrency=0), own) == {
        ("requests", False): 5, ("tokens", False): 1000, ("calls", False): 0,
        ("requests", True): 50, ("tokens", True): 7, ("calls", True): 2,
    }  # fmt: skip
    assert limits(Tenant("a"), None, Terms(60.0, 1, None)) == {}


def test_a_rotated_key_goes_on_with_what_its_predecessor_used() -> None:
    """It is counted on the same account."""
    identity = Identity(Tenant("a"), replace(KEY, rate_requests=3))
    assert identity.key is not None
    after = Identity(identity.tenant, successor(identity.key)[0])
    assert plan_of(TERMS, after) == plan_of(TERMS, identity)


def test_no_two_limits_are_counted_under_one_name() -> None:
    """Whatever tenants and keys are called."""
    names = {
        want(what, tenant, account, 1, 1).name
        for what in ("requests", "tokens", "calls")
        for tenant in ("a", "a.requests", "b")
        for account in ("", "key_a", "a")
    }
    assert len(names) == 27


@given(some.integers(1, 10**6), some.integers(1, 8), some.integers(1, 10**6))
def test_a_call_is_admitted_on_its_prompt_and_all_its_answers(most: int, choices: int, limit: int) -> None:
    """An explicit limit counts whole, whatever the window has."""
    asked = request(max_tokens=most, n=choices)
    assert expected(asked, limit, 4096, 16) == -(-len(asked.raw) // 4) + most * choices


@given(some.integers(0, 10**5), some.integers(1, 10**4), some.integers(1, 64))
def test_without_an_explicit_limit_a_call_fits_an_empty_window(limit: int, output: int, least: int) -> None:
    """If its prompt and the least answer do."""
    asked = request()
    prompt = -(-len(asked.raw) // 4)
    amount = expected(asked, limit, output, least)
    assert prompt + min(least, amount) <= amount <= prompt + max(output, least)
    if prompt + least <= limit:
        assert amount <= limit


def test_an_embedding_has_a_prompt_only() -> None:
    """Nothing is answered in tokens."""
    asked = parse(Route("metered", "embeddings", "/v1/embeddings"), b'{"model":"m","input":"abcdefgh"}')
    assert expected(asked, 1000, 4096, 16) == 8
    assert expected(None, 1000, 4096, 16) == 1


WANTS = [want("requests", "a", "", 5, 1), want("tokens", "a", "k", 100, 40), want("calls", "a", "", 2, 1)]


def told(*retries: float, seconds: float = 60.0) -> tuple[str, dict[bytes, bytes]]:
    """The refusal of a call whose limits are over for so long."""
    verdict = Verdict(False, [Stand(one.limit, 1, 60.0, retry) for one, retry in zip(WANTS, retries, strict=True)])
    error = refusal(WANTS, verdict, seconds)
    return error.message, dict(error.headers)


@pytest.mark.parametrize(
    ("retries", "says", "headers"),
    [
        ((1.5, 0.0, 0.0), "5 requests in 60 s", {b"retry-after": b"2", b"retry-after-ms": b"1501"}),
        ((1.5, 2.5, 0.0), "100 tokens of this key in 60 s (1 are left, 40 asked for", {b"retry-after": b"3"}),
        ((0.0, 0.0, 1.0), "2 calls at once", {b"retry-after": b"1", b"retry-after-ms": b"1000"}),
        ((200.0, 0.0, 0.0), "5 requests", {b"retry-after": b"201", b"x-should-retry": b"false"}),
        ((1.0, NEVER, 0.0), "Ask for fewer tokens", {b"x-should-retry": b"false"}),
        ((NEVER, 0.0, 0.0), "No call can be made", {b"x-should-retry": b"false"}),
    ],
)
def test_a_refusal_names_the_limit_that_holds_longest(
    retries: tuple[float, ...], says: str, headers: dict[bytes, bytes]
) -> None:
    """And when to come back, in seconds and milliseconds; where that is too far off, not to retry."""
    message, found = told(*retries)
    assert says in message
    assert found.items() >= headers.items()
    assert (b"retry-after" in found) == (NEVER not in retries)


def test_headers_tell_the_tighter_of_two_limits() -> None:
    """Tenant and key."""
    wants = [want("requests", "a", "", 9, 1), want("requests", "a", "k", 20, 1)]
    verdict = Verdict(True, [Stand(9, 5, 60.0, 0.0), Stand(20, 3, 61.5, 0.0)])
    assert headers_of(wants, verdict) == [
        (b"x-ratelimit-limit-requests", b"20"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"x-ratelimit-reset-requests", b"1m2s"),
    ]
