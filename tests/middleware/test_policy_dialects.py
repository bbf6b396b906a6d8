"""A policy in every dialect: a no reaches nobody and is told in the caller's words; an output limit is lowered by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router

from ..caching import PATHS, TEXTS, Counting, asking, text_of, text_of_stream
from ..conversation import ask
from .policy_parts import Rules, always

CASES = [(dialect, stream) for dialect in TEXTS for stream in (False, True)] + [("embeddings", False)]
# What the output limit is called, by dialect; the last is what is set where the client named none.
NAMES = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
SET = {"chat": "max_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}


def body_of(dialect: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A request."""
    body = asking(dialect, "say this and that", **more)
    return {**body, "stream": True} if stream else body


def proxy() -> ProxyApp:
    """ProxyApp with its own provider, which says what it is told, a token a word."""
    return ProxyApp(router=Router([EchoAdapter()], {}))


def obliging(most: int) -> Rules:
    """A policy that allows so many tokens of output."""
    return always({"allow": True, "obligations": {"max_tokens": most}})


@pytest.mark.parametrize(("dialect", "stream"), CASES)
async def test_a_no_reaches_nobody_and_is_told_in_the_dialect(dialect: str, stream: bool) -> None:
    """403 as JSON, for a stream too; the policy was told which dialect it is, and not what was said."""
    rules = always({"allow": False, "reason": "not on sundays"})
    app = Counting()
    answer = await ask(PolicyMiddleware(app, decide=rules), body_of(dialect, stream=stream), PATHS[dialect])
    assert (answer.status, app.calls) == (403, 0)
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told["error"]["message"].endswith(": not on sundays")
    if dialect == "messages":
        assert (told["type"], told["error"]["type"]) == ("error", "permission_error")
    else:
        assert (set(told), told["error"]["code"]) == ({"error"}, "policy_denied")
    [asked] = rules.asked
    assert (asked["dialect"], asked["path"], asked["stream"]) == (dialect, PATHS[dialect], stream)
    assert "say this and that" not in json.dumps(asked)


@pytest.mark.parametrize(("dialect", "stream"), CASES)
async def test_a_no_before_proxyapp(dialect: str, stream: bool) -> None:
    """The same before our own terminal."""
    layer = PolicyMiddleware(proxy(), decide=always(False))
    answer = await ask(layer, body_of(dialect, stream=stream, model="echo"), PATHS[dialect])
    assert (answer.status, "x-llm-provider" in answer.headers) == (403, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("dialect", "name"), [(dialect, name) for dialect in TEXTS for name in NAMES[dialect]])
async def test_an_output_limit_is_lowered_under_its_own_name_and_never_raised(
    dialect: str, name: str, stream: bool
) -> None:
    """What the client named is lowered to what is allowed, and is left where it is less; nothing else is changed."""
    for asked, due in ((50, 20), (20, 20), (7, 7)):
        app = Counting()
        body = {**body_of(dialect, stream=stream), name: asked}
        answer = await ask(PolicyMiddleware(app, decide=obliging(20)), body, PATHS[dialect])
        assert (answer.status, app.asked) == (200, [{**body, name: due}])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", SET)
async def test_an_output_limit_is_set_where_the_client_named_none(dialect: str, stream: bool) -> None:
    """Messages always name one."""
    app = Counting()
    body = body_of(dialect, stream=stream)
    answer = await ask(PolicyMiddleware(app, decide=obliging(20)), body, PATHS[dialect])
    assert (answer.status, app.asked) == (200, [{**body, SET[dialect]: 20}])


async def test_embeddings_have_no_output_limit() -> None:
    """The obligation is met without a change."""
    app = Counting()
    body = body_of("embeddings")
    answer = await ask(PolicyMiddleware(app, decide=obliging(20)), body, PATHS["embeddings"])
    assert (answer.status, app.asked) == (200, [body])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("named", [False, True], ids=["none named", "more named"])
@pytest.mark.parametrize("dialect", TEXTS)
async def test_before_proxyapp_the_answer_is_no_longer_than_the_policy_allows(
    dialect: str, named: bool, stream: bool
) -> None:
    """Two words of four, also where the provider speaks another dialect."""
    body = body_of(dialect, stream=stream, model="echo")
    if named:
        body[NAMES[dialect][-1]] = 50
    answer = await ask(PolicyMiddleware(proxy(), decide=obliging(2)), body, PATHS[dialect])
    assert answer.status == 200
    said = text_of_stream(dialect, answer.body) if stream else text_of(dialect, answer.json())
    assert said == "say this"
