"""For how much money: held before, settled after, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.errors import GatewayError, StoreError
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.limits import usd
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.prices import DEFAULT_PRICES, PriceTable, prices_of
from asgi_llm_gateway.records import (
    Amount,
    Balance,
    CallRecord,
    Hold,
    Identity,
    Limit,
    Price,
    Refusal,
    Target,
    Tenant,
    Usage,
)
from asgi_llm_gateway.settings import ModelConfig, forget
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.shared import shared_ledger
from asgi_llm_gateway.tokens import FIXED_TOKENS

from ..conversation import CHAT, JSON, Answer, ask, call, get
from . import DONE, Gate, Stranger, Streamer, counts, event, words

# A prompt token costs one nano-USD, a completion token two.
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000), "dear": Price(1_000_000, 20_000_000)})
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
BOUND = len(json.dumps(ASKED)) + FIXED_TOKENS
"""At most so many prompt tokens, and so many nano-USD for them."""

QUARTER = -(-len(json.dumps(ASKED)) // 4)
"""The estimate of the same prompt."""


class As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: Any, tenant: Tenant, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._tenant = tenant

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = Identity(self._tenant, None)
        await self.forward(exchange, scope, receive, send)


class Purse:
    """A tenant with a budget in nano-USD, and a stack round an app."""

    def __init__(self, app: Any, budget: int | None, *, ledger: MemoryLedger | None = None, **more: Any) -> None:
        self.app = app
        self.ledger = ledger or MemoryLedger()
        paths = more.pop("paths", None)
        layer = BudgetMiddleware(app, ledger=self.ledger, prices=more.pop("prices", PRICES), paths=paths, **more)
        self.stack = As(layer, Tenant("t", budget=budget), paths=paths)

    async def ask(self, body: Any = ASKED, path: str = "/v1/chat/completions") -> Answer:
        """A call."""
        return await ask(self.stack, body, path)

    async def balance(self) -> tuple[int, int]:
        """Spent and held."""
        balance = await self.ledger.balance("t")
        return balance.spent, balance.held

    async def record(self) -> CallRecord:
        """The one record there is."""
        (record,) = (await self.ledger.records("t")).records
        return record


def limited(tokens: int, **more: Any) -> dict[str, Any]:
    """A request with an output limit, of the same length as ASKED's bound plus what that adds."""
    return {**ASKED, "max_tokens": tokens, **more}


def bound(body: dict[str, Any]) -> int:
    """At most so many prompt tokens."""
    return len(json.dumps(body)) + FIXED_TOKENS


# -- alone -------------------------------------------------------------------------------------------------------------


async def test_alone_it_books_on_the_shared_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """``BudgetMiddleware(app)`` and nothing else: the tenant is default, without a limit, and the call is booked."""
    monkeypatch.setenv("DEFAULT_MAX_OUTPUT_TOKENS", "77")
    forget()
    app, ledger = Stranger((10, 20)), await shared_ledger()
    before = (await ledger.balance("default")).spent
    answer = await ask(BudgetMiddleware(app), {**CHAT, "model": "gpt-4"})
    assert answer.status == 200
    assert json.loads(app.bodies[0])["max_tokens"] == 77
    after = await ledger.balance("default")
    assert (after.spent - before, after.held) == (10 * 30_000 + 20 * 60_000, 0)


async def test_alone_it_takes_prices_from_the_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """``[models.NAME]`` sets a price in USD per million tokens."""
    (tmp_path / "gateway.toml").write_text('[models.own]\nusd_per_million_in = "3"\nusd_per_million_out = 0.5\n')
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    forget()
    ledger = MemoryLedger()
    await ask(BudgetMiddleware(Stranger((10, 20)), ledger=ledger), {**CHAT, "model": "own"})
    assert (await ledger.balance("default")).spent == 10 * 3000 + 20 * 500


# -- the entry hold ----------------------------------------------------------------------------------------------------


async def test_what_a_call_can_cost_is_held_while_it_runs() -> None:
    """The prompt's bound and the whole output limit; then what it did cost."""
    gate = Gate(Stranger((3, 4)))
    purse = Purse(gate, 10_000)
    body = limited(100)
    running = asyncio.ensure_future(purse.ask(body))
    await gate.reached.wait()
    assert await purse.balance() == (0, bound(body) + 200)
    gate.open.set()
    assert (await running).status == 200
    assert await purse.balance() == (3 + 8, 0)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_explicit_limit_is_never_changed(name: str) -> None:
    """Where it fits, the body goes through byte for byte; where it does not, the call is refused and says what is free."""
    app = Stranger()
    body = {**ASKED, name: 100}
    need = bound(body) + 200
    assert (await Purse(app, need).ask(body)).status == 200
    assert app.bodies == [json.dumps(body).encode()]
    purse = Purse(app, need - 1)
    answer = await purse.ask(body)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        402,
        "would_exceed_budget",
        "insufficient_quota",
    )
    assert answer.headers["x-should-retry"] == "false"
    assert usd(need) in answer.error["message"]
    assert usd(need - 1) in answer.error["message"]
    assert app.calls == 1
    assert await purse.balance() == (0, 0)


async def test_a_missing_limit_is_chosen_and_put_into_the_request() -> None:
    """The default where it fits, and the hold is for just that."""
    app = Stranger()
    purse = Purse(app, 10**9, default_max_output=500)
    assert (await purse.ask()).status == 200
    assert json.loads(app.bodies[0]) == {**ASKED, "max_tokens": 500}
    assert app.bodies[0].startswith(json.dumps(ASKED).encode()[:-1])


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/responses", "max_output_tokens"), ("/v1/completions", "max_tokens"), ("/v1/messages", "max_tokens")],
)
async def test_the_chosen_limit_has_its_dialects_name(path: str, field: str) -> None:
    """So that the one who answers obeys it."""
    app = Stranger()
    body = {**ASKED, "prompt": "x", "input": "x"}
    assert (await Purse(app, 10**9, default_max_output=500).ask(body, path)).status == 200
    assert json.loads(app.bodies[0]) == {**body, field: 500}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/responses", "max_tokens"),
        ("/v1/chat/completions", "max_output_tokens"),
        ("/v1/completions", "max_completion_tokens"),
    ],
)
async def test_a_limit_under_another_dialects_name_is_none(path: str, field: str) -> None:
    """Providers pass such a field over: the real one is chosen and held beside it."""
    app = Stranger()
    body = {**ASKED, "prompt": "x", "input": "x", field: 1}
    await Purse(app, 10**9, default_max_output=500).ask(body, path)
    sent = json.loads(app.bodies[0])
    assert 500 in (sent.get("max_tokens"), sent.get("max_output_tokens"))


async def test_a_chosen_limit_is_lowered_to_what_the_budget_holds() -> None:
    """But not below the fewest tokens that are worth a call."""
    app = Stranger()
    assert (await Purse(app, BOUND + 2 * 40, default_max_output=500, min_output=16).ask()).status == 200
    assert json.loads(app.bodies[0])["max_tokens"] == 40
    assert (await Purse(app, BOUND + 2 * 16, default_max_output=500, min_output=16).ask()).status == 200
    answer = await Purse(app, BOUND + 2 * 16 - 1, default_max_output=500, min_output=16).ask()
    assert (answer.status, answer.error["code"]) == (402, "would_exceed_budget")
    assert app.calls == 2


@pytest.mark.parametrize(("fields", "times"), [({"n": 3}, 3), ({"best_of": 4, "n": 2}, 4)])
async def test_every_answer_asked_for_is_held(fields: dict[str, int], times: int) -> None:
    """``n`` and ``best_of`` multiply what a call can cost."""
    body = limited(100, **fields)
    need = bound(body) + 2 * 100 * times
    assert (await Purse(Stranger(), need).ask(body)).status == 200
    assert (await Purse(Stranger(), need - 1).ask(body)).status == 402


@pytest.mark.parametrize(("prompt", "times"), [("abc", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)])
async def test_every_prompt_of_a_list_is_held(prompt: Any, times: int) -> None:
    """Completions answer each prompt of a list; a list of numbers is one prompt in tokens."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 100, "n": 2}
    need = bound(body) + 2 * 100 * 2 * times
    assert (await Purse(Stranger(), need).ask(body, "/v1/completions")).status == 200
    assert (await Purse(Stranger(), need - 1).ask(body, "/v1/completions")).status == 402
    app = Stranger()
    del body["max_tokens"]
    await Purse(app, bound(body) + 2 * 50 * 2 * times, default_max_output=500).ask(body, "/v1/completions")
    assert json.loads(app.bodies[0])["max_tokens"] == 50


async def test_embeddings_have_no_output_to_hold() -> None:
    """And no limit is put in."""
    app = Stranger((5, 0))
    body = {"model": "m", "input": "some words"}
    purse = Purse(app, bound(body))
    assert (await purse.ask(body, "/v1/embeddings")).status == 200
    assert app.bodies == [json.dumps(body).encode()]
    assert await purse.balance() == (5, 0)


async def test_a_spent_budget_says_so() -> None:
    """``budget_exceeded`` is for good; ``would_exceed_budget`` is about this request."""
    purse = Purse(Stranger((100, 100)), 1000)
    assert (await purse.ask(limited(300))).status == 200
    assert await purse.balance() == (300, 0)
    assert (await purse.ask(limited(400))).error["code"] == "would_exceed_budget"
    broke = Purse(Stranger(), 0)
    answer = await broke.ask(limited(1))
    assert (answer.status, answer.error["code"]) == (402, "budget_exceeded")


async def test_a_tenant_without_a_budget_is_metered_and_not_limited() -> None:
    """``None`` is no limit."""
    purse = Purse(Stranger((3, 4)), None)
    assert (await purse.ask(limited(2**31 - 1))).status == 200
    assert await purse.balance() == (11, 0)


# -- prices ------------------------------------------------------------------------------------------------------------


async def test_an_unknown_price_is_refused_where_there_is_a_budget() -> None:
    """A model of unknown price would be a way round."""
    app = Stranger()
    answer = await Purse(app, 10**9).ask({**ASKED, "model": "unheard-of"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unpriced_model", "model")
    assert app.calls == 0
    free = Purse(app, 10**9, unknown_price="free")
    assert (await free.ask({**ASKED, "model": "unheard-of"})).status == 200
    assert await free.balance() == (0, 0)
    assert (await Purse(app, None).ask({**ASKED, "model": "unheard-of"})).status == 200


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/v1/images/variations", "/v1/files", "/v1/rerank"])
async def test_an_endpoint_without_a_price_is_refused_where_there_is_a_budget(path: str) -> None:
    """Also a GET on it; unless the operator lists the path."""
    app = Stranger()
    for answer in (await Purse(app, 10**9).ask(ASKED, path), await get(Purse(app, 10**9).stack, path)):
        assert (answer.status, answer.error["code"]) == (403, "unpriced_endpoint")
    assert app.calls == 0
    assert (await Purse(app, None).ask(ASKED, path)).status == 200
    assert (await Purse(app, 10**9, paths={path: "metered"}).ask(ASKED, path)).status == 200


async def test_what_costs_nothing_is_let_through() -> None:
    """The list of models, counting tokens, and opening a realtime session, whose messages are calls themselves."""
    app = Stranger()
    stack = Purse(app, 0).stack
    for path in ("/v1/models", "/v1/models/gpt-4", "/v1/realtime/sessions"):
        assert (await get(stack, path)).status == 200, path
    for path in ("/v1/messages/count_tokens", "/v1/realtime/sessions"):
        assert (await ask(stack, ASKED, path)).status == 200, path
    assert (await ask(stack, ASKED, "/v1/models")).status == 403
    assert (await get(stack, "/v1/models-of-mine")).status == 403


async def test_another_method_on_a_metered_path_is_405() -> None:
    """Whatever the app would make of it."""
    app = Stranger()
    answer = await get(Purse(app, None).stack, "/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert app.calls == 0


# -- what a strangers's answer costs -----------------------------------------------------------------------------------


async def test_a_strangers_json_answer_is_metered() -> None:
    """By the usage in its bytes."""
    purse = Purse(Stranger((30, 40)), 10_000)
    await purse.ask()
    assert await purse.balance() == (30 + 80, 0)
    record = await purse.record()
    assert (record.usage, record.cost, record.model, record.status) == (Usage(30, 40), 110, "m", 200)
    assert (record.aborted, record.overdraft, record.tenant) == (False, 0, "t")


async def test_a_strangers_event_stream_is_metered() -> None:
    """By its usage event; every byte goes out as it came."""
    events = [*words(5), counts(30, 5), DONE]
    purse = Purse(Streamer(events), 10_000)
    answer = await purse.ask({**ASKED, "stream": True})
    assert answer.body == b"".join(events)
    assert await purse.balance() == (30 + 10, 0)
    assert (await purse.record()).usage == Usage(30, 5)


async def test_an_answer_that_tells_nothing_is_estimated_and_flagged() -> None:
    """Unknown is never zero: prompt and JSON answer by their length, a stream by its events."""
    plain = Purse(Stranger(None), 10_000)
    answer = await plain.ask(limited(100))
    guessed = Usage(-(-len(json.dumps(limited(100))) // 4), len(answer.body) // 4, estimated=True)
    assert (await plain.record()).usage == guessed
    streamed = Purse(Streamer([*words(5), DONE]), 10_000)
    await streamed.ask({**ASKED, "stream": True})
    record = await streamed.record()
    assert record.usage.estimated
    assert record.usage.completion >= 5
    assert record.cost > 0


@pytest.mark.parametrize("lie", [(-5, -5), (10**30, 1), (True, 0)])
async def test_a_senseless_usage_is_no_free_call(lie: tuple[int, int]) -> None:
    """It counts as unknown."""
    purse = Purse(Stranger(lie), 10_000)
    await purse.ask()
    record = await purse.record()
    assert record.usage.estimated
    assert record.cost >= QUARTER


async def test_an_explicit_zero_is_zero() -> None:
    """Who says so is believed."""
    purse = Purse(Stranger((0, 0)), 10_000)
    await purse.ask()
    assert await purse.balance() == (0, 0)
    assert (await purse.record()).usage == Usage()


async def test_what_costs_more_than_was_held_is_booked_and_flagged() -> None:
    """The provider billed it; the record says by how much it passed the hold."""
    body = limited(10)
    purse = Purse(Stranger((0, 1000)), 10_000)
    await purse.ask(body)
    assert await purse.balance() == (2000, 0)
    assert (await purse.record()).overdraft == 2000 - (bound(body) + 20)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_refusal_of_the_app_costs_nothing(status: int) -> None:
    """The hold is released and nothing is booked."""
    purse = Purse(Stranger((3, 4), status=status), 10_000)
    assert (await purse.ask()).status == status
    assert await purse.balance() == (0, 0)
    assert not (await purse.ledger.records("t")).records


async def test_the_call_is_settled_before_its_last_message_goes_out() -> None:
    """Who has the answer and asks for its balance finds it in there; a JSON answer waits for it as a whole."""
    purse = Purse(Stranger((3, 4)), 10_000)
    balances: list[tuple[int, int]] = []
    heads: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(ASKED).encode()}

    async def send(message: Message) -> None:
        balances.append(await purse.balance())
        heads.extend(message.get("headers", ()))

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [JSON]}
    await purse.stack(scope, receive, send)
    assert balances == [(11, 0)] * 2
    assert dict(heads)[b"x-llm-cost-usd"] == b"0.000000011"


@pytest.mark.parametrize("asked", [True, False])
async def test_a_streams_cost_is_told_with_its_usage(asked: bool) -> None:
    """Beside ``usage``, in the event that the client asked for; it is booked before that event or ``[DONE]`` goes out."""
    body: dict[str, Any] = {**ASKED, "stream": True, **({"stream_options": {"include_usage": True}} if asked else {})}
    purse = Purse(Streamer([*words(3), counts(3, 4), DONE]), 10_000)
    seen: list[tuple[bytes, tuple[int, int]]] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Message) -> None:
        seen.append((message.get("body", b""), await purse.balance()))

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [JSON]}
    await purse.stack(scope, receive, send)
    told, balance = next((piece, balance) for piece, balance in seen if b'"usage"' in piece)
    assert balance == (11, 0)
    assert (b'"cost_usd":0.000000011}' in told) == asked
    assert all(balance == (11, 0) for piece, balance in seen if b"[DONE]" in piece)
    assert b"".join(piece for piece, _ in seen).replace(b',"cost_usd":0.000000011', b"") == b"".join(
        [*words(3), counts(3, 4), DONE]
    )


async def test_a_long_json_answer_goes_on_before_its_cost_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: beyond the limit the start goes out, without the header, and every byte follows."""
    monkeypatch.setattr("asgi_llm_gateway.watching.HELD_BACK", 1000)
    usage = b'],"usage":{"prompt_tokens":3,"completion_tokens":4}}'

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        for piece in (b'{"choices":[', b'"' + b"a" * 2000 + b'",', b'"b"', usage):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != usage})

    purse = Purse(app, 10_000)
    answer = await purse.ask()
    assert answer.body == b'{"choices":["' + b"a" * 2000 + b'","b"' + usage
    assert "x-llm-cost-usd" not in answer.headers
    assert await purse.balance() == (11, 0)


# -- hang-ups and crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["told", "cancelled"])
async def test_a_hang_up_mid_stream_is_settled_once_and_is_not_free(how: str) -> None:
    """A client that leaves pays for the events it got, and its hold is gone; by ``receive`` or by cancelling."""
    ledger = Counting()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for one in words(6):
            await send({"type": "http.response.body", "body": one, "more_body": True})
        await receive()  # as frameworks do: it ends without a last message

    purse = Purse(app, 10_000, ledger=ledger)
    async with call(purse.stack, {**ASKED, "stream": True}) as talk:
        for _ in range(7):
            await talk.next()
        if how == "told":
            await talk.hang_up()
        else:
            talk.task.cancel()
            await asyncio.wait({talk.task})
    record = await purse.record()
    assert record.usage == Usage(-(-len(json.dumps({**ASKED, "stream": True})) // 4), 6, estimated=True)
    assert record.aborted
    assert await purse.balance() == (record.cost, 0)
    assert ledger.ended == ["settle"]


async def test_a_hang_up_after_the_counts_is_settled_exactly() -> None:
    """Many clients leave at ``[DONE]``, before the connection's own end: nothing is to be estimated then."""
    purse = Purse(Streamer([*words(3), counts(30, 3), DONE], endless=True), 10_000)
    async with call(purse.stack, {**ASKED, "stream": True}) as talk:
        for _ in range(6):
            await talk.next()
        await talk.hang_up()
    assert (await purse.record()).usage == Usage(30, 3)


async def test_a_hang_up_amid_anthropics_stream_counts_its_events() -> None:
    """Its start tells the prompt exactly, and of the answer only the beginning."""
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 1}}})
    deltas = [event({"type": "content_block_delta", "delta": {"text": f"w{at}"}}) for at in range(9)]
    purse = Purse(Streamer([start, *deltas], endless=True), 10_000)
    async with call(purse.stack, {**ASKED, "stream": True}, "/v1/messages") as talk:
        for _ in range(11):
            await talk.next()
        await talk.hang_up()
    assert (await purse.record()).usage == Usage(30, 9, estimated=True)


async def test_a_hang_up_before_the_first_byte_is_not_free() -> None:
    """The model may have worked all the same; nobody said that it did not."""
    gate = Gate(Stranger())
    purse = Purse(gate, 10_000)
    async with call(purse.stack, ASKED) as talk:
        await gate.reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    record = await purse.record()
    assert (record.usage, record.aborted, record.status) == (Usage(QUARTER, 0, estimated=True), True, None)
    assert await purse.balance() == (QUARTER, 0)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_crash_is_not_free(begun: bool) -> None:
    """Before the answer or within it."""

    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    purse = Purse(crashing, 10_000)
    with pytest.raises(ZeroDivisionError):
        await purse.ask()
    assert (await purse.record()).aborted
    assert await purse.balance() == (QUARTER, 0)


# -- calls of a handler ------------------------------------------------------------------------------------------------


class Calling:
    """A handler that makes upstream calls itself, and tells the exchange of them."""

    def __init__(self, *models: str, usage: Usage | None = Usage(1, 1), together: bool = False) -> None:  # noqa: B008
        self._models = models
        self._usage = usage
        self._together = together
        self.made: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        exchange: Exchange = scope[KEY]
        exchange.exact = True
        targets = [Target("p", model) for model in self._models]
        if self._together:
            calls = await asyncio.gather(*(exchange.begin_call(target) for target in targets))
            self.made += self._models
            for one in calls:
                one.end(self._usage)
        else:
            for target in targets:
                one = await exchange.begin_call(target)
                self.made.append(target.model)
                one.end(self._usage)
        await exchange.end()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def test_the_sum_over_a_calls_upstream_calls_is_settled() -> None:
    """Each at its own target's price; the record holds their tokens together."""
    purse = Purse(Calling("m", "dear", usage=Usage(5, 10)), 100_000)
    assert (await purse.ask(limited(10))).status == 200
    assert await purse.balance() == ((5 + 20) + (5 + 200), 0)
    assert (await purse.record()).usage == Usage(10, 20)
    assert (await purse.record()).provider == "p"


async def test_the_hold_is_raised_before_a_further_call_or_the_call_is_refused() -> None:
    """The entry hold covers the first; a second that does not fit does not go out."""
    body = limited(100)
    first = bound(body) + 200
    app = Calling("m", "m", usage=Usage(bound(body), 100))
    purse = Purse(app, 2 * first)
    assert (await purse.ask(body)).status == 200
    assert await purse.balance() == (2 * first, 0)
    app = Calling("m", "m", usage=Usage(bound(body), 100))
    purse = Purse(app, 2 * first - 1)
    answer = await purse.ask(body)
    assert (answer.status, answer.error["code"]) == (402, "would_exceed_budget")
    assert app.made == ["m"]
    assert await purse.balance() == (first, 0)


async def test_a_dearer_target_raises_the_hold() -> None:
    """A fallback is held at its own price."""
    body = limited(100)
    app = Calling("dear")
    purse = Purse(app, bound(body) + 2000 - 1)
    assert (await purse.ask(body)).error["code"] == "would_exceed_budget"
    assert app.made == []


async def test_calls_that_begin_side_by_side_are_held_together() -> None:
    """Also where the ledger takes its time."""
    body = limited(100)
    first = bound(body) + 200
    app = Calling("m", "m", "m", usage=Usage(bound(body), 100), together=True)
    purse = Purse(app, 3 * first, ledger=Counting())
    assert (await purse.ask(body)).status == 200
    assert await purse.balance() == (3 * first, 0)
    purse = Purse(Calling("m", "m", "m", together=True), 3 * first - 1, ledger=Counting())
    assert (await purse.ask(body)).error["code"] == "would_exceed_budget"


async def test_a_call_that_ended_unknown_is_estimated() -> None:
    """Never zero."""
    purse = Purse(Calling("m", usage=None), 10_000)
    await purse.ask()
    assert (await purse.record()).usage.estimated
    assert (await purse.balance())[0] > 0


async def test_a_users_own_path_holds_nothing_until_it_calls() -> None:
    """Its body is not read; a call of a model without a price is refused before it goes out."""
    app = Calling("m")
    purse = Purse(app, 10_000, paths={"/ask": "metered"})
    assert (await purse.ask(b"any words", "/ask")).status == 200
    assert await purse.balance() == (3, 0)
    app = Calling("unheard-of")
    purse = Purse(app, 10_000, paths={"/ask": "metered"})
    assert (await purse.ask(b"any words", "/ask")).error["code"] == "unpriced_model"
    assert app.made == []
    assert await purse.balance() == (0, 0)


async def test_no_call_can_be_made_for_a_settled_exchange() -> None:
    """A handler's background task has no money left."""
    kept: list[Exchange] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(scope[KEY])
        await Stranger()(scope, receive, send)

    await Purse(app, 10_000).ask()
    with pytest.raises(GatewayError, match="no further upstream call"):
        await kept[0].begin_call(Target("p", "m"))


# -- the ledger --------------------------------------------------------------------------------------------------------


class Counting(MemoryLedger):
    """A ledger that takes its time, notes how holds end, and watches what must never happen."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.ended: list[str] = []
        self.limit = limit

    async def check(self) -> None:
        """``settled + held <= budget``, after every verb."""
        balance = await self.balance("t")
        assert balance.held >= 0
        if self.limit is not None:
            assert balance.spent + balance.held <= self.limit

    async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
        """See Ledger."""
        await asyncio.sleep(0)
        found = await super().hold(tenant, **more)
        await self.check()
        return found

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        await asyncio.sleep(0)
        found = await super().raise_hold(hold, amount, limits=limits)
        await self.check()
        await asyncio.sleep(0)
        return found

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().settle(hold, record)
        if done:
            self.ended.append("settle")
        await self.check()
        await asyncio.sleep(0)
        return done

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().release(hold)
        if done:
            self.ended.append("release")
        await self.check()
        return done


class Obedient:
    """A model that uses no more than it was allowed: answers, streams, refuses, crashes or waits, as the call says."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        body = json.loads((await receive())["body"])
        how, part = body["user"].split(":")
        made = int(body["max_tokens"] * body.get("n", 1) * float(part))
        await asyncio.sleep(0)
        if how == "crash":
            raise ZeroDivisionError
        if how == "refuse":
            await Stranger((1, 1), status=500)(scope, nothing, send)
        elif how == "json":
            await Stranger((int(20 * float(part)), made))(scope, nothing, send)
        elif how == "stream":
            await Streamer([*words(min(made, 3)), counts(5, made), DONE])(scope, nothing, send)
        else:  # a stream that ends when the client leaves, or is cancelled
            await Streamer(words(min(made, 4)), endless=True)(scope, once_read(receive), send)


def once_read(receive: Receive) -> Receive:
    """A ``receive`` whose body was read already, and that then tells the truth."""
    first = [nothing]

    async def receive_on() -> Message:
        return await (first.pop() if first else receive)()

    return receive_on


async def nothing() -> Message:
    """A body that was read already."""
    return {"type": "http.request", "body": b""}


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["json", "json", "stream", "refuse", "crash", "hang", "cancel"]),
        st.sampled_from(["0.0", "0.3", "1.0"]),
        st.one_of(st.none(), st.integers(1, 300)),
        st.integers(1, 3),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(0, 6000))
def test_settled_and_held_never_pass_the_budget(calls: list[Any], budget: int) -> None:
    """P1 and P2 under random calls at once, hang-ups and crashes: checked after every verb; every hold ends once."""

    async def run() -> None:
        ledger = Counting(budget)
        purse = Purse(Obedient(), budget, ledger=ledger, default_max_output=200)

        async def one(how: str, part: str, limit: int | None, choices: int, steps: int) -> None:
            body: dict[str, Any] = {**ASKED, "user": f"{how}:{part}", "n": choices}
            if limit is not None:
                body["max_tokens"] = limit
            async with call(purse.stack, body) as talk:
                for _ in range(steps):
                    await asyncio.sleep(0)
                if how == "cancel":
                    talk.task.cancel()
                elif how == "hang":
                    await talk.hang_up()
                async with asyncio.timeout(10):
                    await asyncio.wait({talk.task})
                if not talk.task.cancelled():
                    talk.task.exception()

        await asyncio.gather(*(one(*made) for made in calls))
        await ledger.check()
        spent, held = await purse.balance()
        assert held == 0
        records = (await ledger.records("t")).records
        assert sum(record.cost for record in records) == spent  # P3, within one ledger
        assert len(records) == ledger.ended.count("settle")
        assert not ledger._book.holds

    asyncio.run(run())


class Failing(MemoryLedger):
    """A ledger that is away for some verbs."""

    def __init__(self, *verbs: str) -> None:
        super().__init__()
        self.verbs = verbs

    async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
        """See Ledger."""
        if "hold" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().hold(tenant, **more)

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        if "raise" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().raise_hold(hold, amount, limits=limits)

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        if "settle" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().settle(hold, record)


async def test_a_ledger_fault_at_the_start_is_503_and_no_call() -> None:
    """Nothing was decided, so nothing goes out; it is over when the ledger is back."""
    app, ledger = Stranger(), Failing("hold")
    purse = Purse(app, 10_000, ledger=ledger)
    answer = await purse.ask()
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert app.calls == 0
    assert "away" not in answer.error["message"], "what a driver says is for the log"
    ledger.verbs = ()
    assert (await purse.ask()).status == 200


@pytest.mark.parametrize("how", ["comes back", "stays away"])
async def test_a_ledger_fault_at_the_end_does_not_free_the_call(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """The answer goes out; the settle is tried again, or the hold lapses and is charged whole."""
    ledger = Failing("settle")
    purse = Purse(Stranger((3, 4)), 10_000, ledger=ledger)
    with caplog.at_level(logging.ERROR, "asgi_llm_gateway"):
        body = limited(100)
        answer = await purse.ask(body)
    assert answer.status == 200
    assert "x-llm-cost-usd" not in answer.headers
    assert "could not be settled" in caplog.text
    assert await purse.balance() == (0, bound(body) + 200)
    if how == "comes back":  # the settle is tried again
        ledger.verbs = ()
        async with asyncio.timeout(10):
            while (await purse.balance())[1]:  # noqa: ASYNC110 - the ledger has no event for it
                await asyncio.sleep(0.05)
        assert await purse.balance() == (3 + 2 * 4, 0)
    else:
        assert await ledger.sweep(1e12) == 1
        assert await purse.balance() == (bound(body) + 200, 0)
    assert sum(record.cost for record in (await ledger.records("t")).records) == (await purse.balance())[0]


async def test_a_ledger_fault_before_a_further_call_is_503() -> None:
    """No yes, no call."""
    app = Calling("m", "m")
    purse = Purse(app, 10_000, ledger=Failing("raise"))
    assert (await purse.ask(limited(100))).status == 503
    assert app.made == ["m"]


# -- small things ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (1, "0.000000001"), (10**9, "1.00"), (1_500_000_000, "1.50"), (123_456_789, "0.123456789")],
)
def test_money_is_told_exactly(nano: int, text: str) -> None:
    """At least two decimals, at most nine."""
    assert usd(nano) == text


def test_the_files_prices_come_first() -> None:
    """And one price alone leaves the other side free."""
    own = prices_of({"gpt-4": ModelConfig(usd_per_million_in=7), "x": ModelConfig()})
    assert own.find("gpt-4") == Price(7_000_000_000, 0)
    assert own.find("x") is None
    assert prices_of({}) is DEFAULT_PRICES


def test_a_senseless_setting_is_refused_when_it_is_made() -> None:
    """Not at the first call."""
    with pytest.raises(ValueError, match="unknown_price"):
        BudgetMiddleware(Stranger(), unknown_price="maybe")  # type: ignore[arg-type]


async def test_a_client_that_leaves_while_the_hold_is_taken_leaves_no_hold() -> None:
    """The ledger may have said yes already: the hold is released by the id that the gateway made."""

    class Slow(MemoryLedger):
        async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
            found = await super().hold(tenant, **more)
            taken.set()
            await asyncio.Event().wait()
            return found

    taken = asyncio.Event()
    ledger = Slow()
    async with call(BudgetMiddleware(Stranger(None), ledger=ledger), limited(10)) as talk:
        await taken.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    assert await ledger.balance("default") == Balance()
