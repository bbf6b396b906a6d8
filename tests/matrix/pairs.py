"""The scenarios: each is written once, and runs for every client with every provider, whole and as a stream."""

from __future__ import annotations

import asyncio
import json
from itertools import permutations
from typing import Any, ClassVar

import pytest

from ..upstream import until
from .clients import EVERY_WAY, PICTURE, WAYS, Ask, City, Client, Seen, entered, everything
from .model import CITY, EXPLAINED, HELLO, LONG, THOUGHTS, WEATHER, Called, Heard, think
from .provider import KEYS
from .stage import MODELS, Account, Stage, exact_cost

every_provider = pytest.mark.parametrize("provider", list(MODELS))
both_ways = pytest.mark.parametrize("way", WAYS)
every_way = pytest.mark.parametrize("way", EVERY_WAY)

# A provider's status, to the error class of each SDK. The gateway's own key being refused is not the client's fault, and
# 529 is no status that OpenAI's clients know.
FAILURES = {
    400: ("BadRequestError", "BadRequestError"),
    401: ("InternalServerError", "InternalServerError"),
    404: ("NotFoundError", "NotFoundError"),
    429: ("RateLimitError", "RateLimitError"),
    500: ("InternalServerError", "InternalServerError"),
    529: ("InternalServerError", "ServiceUnavailableError"),
}


class Pairs:
    """All scenarios of one client; its subclass says which."""

    client: ClassVar[Client]

    def opened(self, account: Account, way: str = "whole", **more: Any) -> Any:
        """The SDK's client for a way to ask."""
        return entered(self.client.open(account.url, account.key, sync="async" not in way, **more))

    async def ask(self, client: Any, fields: dict[str, Any], way: str) -> Seen:
        """An answer in that way."""
        return await (self.client.stream if "stream" in way else self.client.whole)(client, fields)

    async def seen(self, account: Account, ask: Ask, way: str) -> Seen:
        """The answer to one request."""
        async with self.opened(account, way) as client:
            return await self.ask(client, self.client.fields(ask), way)

    async def plain(self, account: Account, ask: Ask, way: str) -> Seen:
        """The answer to one request, where SDKs' stream helpers raise instead of returning it."""
        if way == "whole":
            return await self.seen(account, ask, way)
        async with self.opened(account, way) as client:
            return self.client.put_together(await everything(await self.client.begun(client, self.client.fields(ask))))

    # -- answers -------------------------------------------------------------------------------------------------------

    @every_provider
    @every_way
    async def test_a_text(self, stage: Stage, account: Account, provider: str, way: str) -> None:
        """Every character, the reason of the end, and counts with all their parts; what it cost is told and booked."""
        seen = await self.seen(account, Ask("hello", MODELS[provider][0]), way)
        assert (seen.text, seen.end, seen.refusal, seen.calls) == (HELLO, "stop", "", [])
        assert seen.counts == stage.providers.billed[0]
        account.settled()
        (record,) = account.records()
        assert (record["provider"], record["status"]) == (provider, 200)
        if "whole" in way:
            assert seen.cost == record["cost_usd"] == float(exact_cost(stage.providers.billed))
            assert seen.trace == record["trace_id"]

    @every_provider
    @pytest.mark.parametrize("way", ["stream", "async stream"])
    async def test_the_plain_events(self, stage: Stage, account: Account, provider: str, way: str) -> None:
        """Event by event without the SDK's helper: the same text in pieces, and once what it cost, to the last digit."""
        async with self.opened(account, way) as client:
            events = await everything(
                await self.client.begun(client, self.client.fields(Ask("hello", MODELS[provider][0])))
            )
        pieces = [piece for event in events if (piece := self.client.piece(event))]
        assert "".join(pieces) == HELLO
        assert len(pieces) > 2
        costs = [cost for event in events if (cost := self.client.cost(event)) is not None]
        assert costs == [float(exact_cost(stage.providers.billed))]
        account.settled()

    @every_provider
    @both_ways
    async def test_instructions(self, account: Account, provider: str, way: str) -> None:
        """They arrive as such, letter by letter."""
        system = 'Be exact.\n\n  „Ää“ <system-reminder> \\n {"a": 1}'
        seen = await self.seen(account, Ask("system", MODELS[provider][0], system=system), way)
        assert seen.text == system
        account.settled()

    @every_provider
    @both_ways
    @pytest.mark.parametrize("thinks", [False, True], ids=["", "thinking"])
    async def test_a_loop_of_tools(self, stage: Stage, account: Account, provider: str, way: str, thinks: bool) -> None:
        """Three calls at once, one without arguments; the results go back out of order, each to its own call."""
        ask = Ask("weather", MODELS[provider][0], tools=True, thinks=thinks)
        async with self.opened(account, way) as client:
            fields = self.client.fields(ask)
            seen = await self.ask(client, fields, way)
            made = think(Heard("weather", tools=["weather", "now"])).calls
            assert [(call.name, call.arguments) for call in seen.calls] == [(one.name, one.arguments) for one in made]
            assert len({call.id for call in seen.calls}) == len(made)
            assert (seen.text, seen.end) == ("Let me look.", "calls")
            results = {call.id: WEATHER.get(call.arguments.get("city", ""), "noon") for call in reversed(seen.calls)}
            last = await self.ask(client, self.client.goes_on(fields, seen, results), way)
        said = [f"Köln: {WEATHER['Köln']}", f"Rom: {WEATHER['Rom']}", "now: noon"]
        assert sorted(last.text.split("; ")) == sorted(said)
        assert (last.end, last.calls) == ("stop", [])
        heard = stage.providers.heard[1]
        assert sorted(heard.history) == sorted(seen.calls)
        assert heard.thinks == thinks
        if thinks:
            assert heard.replayed == (provider in self.client.replays_thoughts)
        account.settled()

    @pytest.mark.parametrize(("provider", "other"), list(permutations(MODELS, 2)))
    @both_ways
    async def test_a_conversation_that_moves(
        self, stage: Stage, account: Account, provider: str, other: str, way: str
    ) -> None:
        """What one provider thought and called is answered by another, as after a fallback or another choice of model."""
        ask = Ask("weather", MODELS[provider][0], tools=True, thinks=True)
        async with self.opened(account, way) as client:
            fields = self.client.fields(ask)
            seen = await self.ask(client, fields, way)
            results = {call.id: WEATHER.get(call.arguments.get("city", ""), "noon") for call in seen.calls}
            moved = {**self.client.goes_on(fields, seen, results), "model": MODELS[other][0]}
            if provider in self.client.tells_thoughts and other in self.client.cannot_move_to:
                with pytest.raises(self.client.sdk.BadRequestError):
                    await self.ask(client, moved, way)
                stage.providers.objections.clear()
                return
            last = await self.ask(client, moved, way)
        assert sorted(last.text.split("; "))[0] == f"Köln: {WEATHER['Köln']}"
        assert sorted(stage.providers.heard[1].history) == sorted(seen.calls)
        account.settled()

    @every_provider
    @both_ways
    async def test_a_picture(self, stage: Stage, account: Account, provider: str, way: str) -> None:
        """Byte for byte, beside the words."""
        seen = await self.seen(account, Ask("look", MODELS[provider][0], image=PICTURE), way)
        assert seen.text == "".join(think(Heard("look", images=[PICTURE])).texts)
        assert stage.providers.heard[0].images == [PICTURE]
        account.settled()

    @every_provider
    @both_ways
    @pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
    async def test_a_structured_answer(
        self, stage: Stage, account: Account, provider: str, way: str, sync: bool
    ) -> None:
        """``parse`` gives an instance of the class whose schema the provider was held to."""
        fields = self.client.fields(Ask("city", MODELS[provider][0]))
        async with entered(self.client.open(account.url, account.key, sync=sync)) as client:
            found = await self.client.parsed(client, fields, stream=way == "stream")
        assert found == City(**CITY)  # type: ignore[arg-type]
        schema = stage.providers.heard[0].schema
        assert schema is not None
        assert set(schema["required"]) == set(CITY)
        account.settled()

    @every_provider
    @both_ways
    async def test_thoughts(self, stage: Stage, account: Account, provider: str, way: str) -> None:
        """The model is asked to think; its thoughts come apart from the text where the provider tells them."""
        seen = await self.seen(account, Ask("hello", MODELS[provider][0], thinks=True), way)
        assert stage.providers.heard[0].thinks
        assert seen.thoughts == ("".join(THOUGHTS) if provider in self.client.tells_thoughts else "")
        assert (seen.text, seen.counts) == (HELLO, stage.providers.billed[0])
        assert stage.providers.billed[0].thought > 0
        account.settled()

    @every_provider
    async def test_a_long_stream(self, account: Account, provider: str) -> None:
        """All of it, in order."""
        seen = await self.seen(account, Ask("long", MODELS[provider][0]), "stream")
        assert seen.text == "".join(LONG)
        account.settled()

    @every_provider
    @both_ways
    async def test_a_refusal(self, account: Account, provider: str, way: str) -> None:
        """It is told as one, with its words, and paid for."""
        seen = await self.plain(account, Ask("refuse", MODELS[provider][0]), way)
        assert (seen.refusal, seen.end) == (EXPLAINED, "refusal")
        account.settled()

    @every_provider
    @both_ways
    async def test_the_limit_of_the_output(self, stage: Stage, account: Account, provider: str, way: str) -> None:
        """It arrives as the limit and ends the answer; the reason says so."""
        seen = await self.plain(account, Ask("talk", MODELS[provider][0], limit=20), way)
        assert (seen.text.split()[-1], seen.end) == ("w19", "length")
        assert stage.providers.heard[0].limit == 20
        account.settled()

    @every_provider
    async def test_many_at_once(self, stage: Stage, provider: str) -> None:
        """Ten calls of one client side by side, whole and streamed: each gets its own, and the sum is booked."""
        account = Account(stage, concurrency=20)
        async with self.opened(account, "async") as client:
            asks = [Ask("system", MODELS[provider][0], system=f"number {number}") for number in range(10)]
            ways = [self.ask(client, self.client.fields(ask), WAYS[at % 2]) for at, ask in enumerate(asks)]
            seen = await asyncio.gather(*ways)
        assert [one.text for one in seen] == [ask.system for ask in asks]
        account.settled()

    # -- failures ------------------------------------------------------------------------------------------------------

    @every_provider
    @both_ways
    @pytest.mark.parametrize("status", list(FAILURES))
    async def test_a_failure(self, account: Account, provider: str, way: str, status: int) -> None:
        """The SDK raises the class of it, with no key in it; nothing is charged and nothing stays held."""
        name = FAILURES[status][self.client.sdk.__name__ == "anthropic"]
        with pytest.raises(self.client.sdk.APIStatusError) as caught:
            await self.seen(account, Ask(f"fail {status}", MODELS[provider][0]), way)
        assert type(caught.value).__name__ == name
        assert not [
            key for key in (*KEYS.values(), "127.0.0.1") if key in f"{caught.value} {caught.value.response.text}"
        ]
        self.check_free(account, 1)

    def check_free(self, account: Account, calls: int) -> None:
        """So many calls that reached a provider are booked, for nothing; nothing is held."""
        found = account.closed(calls)
        assert (found["spent_usd"], found["tokens_spent"]) == (0, 0)

    @every_provider
    @pytest.mark.parametrize("words", ["error", "cut"])
    @pytest.mark.parametrize("way", ["stream", "async stream"])
    async def test_a_stream_that_breaks_off(
        self, stage: Stage, account: Account, provider: str, way: str, words: str
    ) -> None:
        """The provider tells of an error in the middle, or dies: raised by the SDK's helper, never taken for a whole
        answer, and it is not free."""
        stage.providers.go.clear()
        async with self.opened(account, way) as client:
            fields = self.client.fields(Ask(words, MODELS[provider][0]))
            told = words == "error" and provider in self.client.hands_over_errors
            with pytest.raises(RuntimeError if told else self.client.sdk.APIError) as caught:
                await self.client.stream(client, fields, stage.providers.go.set)
        assert words == "cut" or told or "Overloaded" in str(caught.value)
        account.charged_for_a_part()

    @every_provider
    @pytest.mark.parametrize("words", ["error", "cut"])
    async def test_what_came_before_a_break_is_read(
        self, stage: Stage, account: Account, provider: str, words: str
    ) -> None:
        """Event by event: all pieces that the provider sent, then the error."""
        stage.providers.go.clear()
        seen, error = "", None
        async with self.opened(account) as client:
            events = await self.client.begun(client, self.client.fields(Ask(words, MODELS[provider][0])))
            try:
                for event in events:
                    seen += self.client.piece(event)
                    stage.providers.go.set()
                    if words == "error" and provider in self.client.hands_over_errors and event.type == "error":
                        error = event.message
            except self.client.sdk.APIError as raised:
                error = raised.message
        assert seen == "one two three "
        assert error is not None
        assert words == "cut" or "Overloaded" in error
        account.charged_for_a_part()

    @every_provider
    async def test_a_beginning_with_its_error_in_one_piece(self, account: Account, provider: str) -> None:
        """Whether the client gets the beginning or a 5xx: what the provider had made by then is not free."""
        with pytest.raises(self.client.sdk.APIError, match="Overloaded"):
            await self.seen(account, Ask("error", MODELS[provider][0]), "stream")
        account.charged_for_a_part(None)

    @every_provider
    async def test_an_answer_that_is_cut(self, account: Account, provider: str) -> None:
        """Half a JSON answer is a 502, and not free: the provider may have made all of it."""
        with pytest.raises(self.client.sdk.InternalServerError):
            await self.seen(account, Ask("cut", MODELS[provider][0]), "whole")
        account.charged_for_a_part(None)

    @every_provider
    @pytest.mark.parametrize("way", ["stream", "async stream", "async whole"])
    async def test_a_hang_up(self, stage: Stage, provider: str, way: str) -> None:
        """The client leaves in the middle, or before there is an answer: the provider's work ends at once, it is charged
        for, and the tenant's only slot is free again."""
        account = Account(stage, concurrency=1)
        fields = self.client.fields(Ask("hang", MODELS[provider][0]))
        async with self.opened(account, way) as client:
            if "whole" in way:
                call = asyncio.ensure_future(self.client.whole(client, fields))
                await until(lambda: len(stage.providers.heard) == 1)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            else:
                await self._leave(await self.client.begun(client, fields))
            await until(lambda: stage.providers.left == 1)
            account.charged_for_a_part(None)
            async with asyncio.timeout(20):  # the slot is freed after the booking
                while (last := await self._try(client, provider)) is None:  # noqa: ASYNC110 - in another process
                    await asyncio.sleep(0.01)
        assert last.text == HELLO

    async def _leave(self, stream: Any) -> None:
        if hasattr(stream, "__aiter__"):
            async for event in stream:
                if self.client.piece(event):
                    break
        else:
            for event in stream:
                if self.client.piece(event):
                    break
        closing = stream.close()
        if closing is not None:
            await closing

    async def _try(self, client: Any, provider: str) -> Seen | None:
        try:
            return await self.client.whole(client, self.client.fields(Ask("hello", MODELS[provider][0])))
        except self.client.sdk.RateLimitError:
            return None

    # -- what the gateway itself refuses -------------------------------------------------------------------------------

    @every_provider
    @both_ways
    async def test_no_money(self, stage: Stage, provider: str, way: str) -> None:
        """A budget that can't pay for the least answer: the SDK's own error, not tried again, and nobody was asked."""
        account = Account(stage, budget_usd=0.000001)
        with pytest.raises(self.client.sdk.APIStatusError) as caught:
            async with self.opened(account, way, max_retries=2) as client:
                await self.ask(client, self.client.fields(Ask("hello", MODELS[provider][0])), way)
        assert caught.value.status_code in (402, 429)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "budget" in caught.value.response.text
        assert stage.providers.asked == []
        self.check_free(account, 0)

    @every_provider
    @both_ways
    async def test_no_slot(self, stage: Stage, provider: str, way: str) -> None:
        """A tenant's second call at a time where it may have one is a rate limit error; the first goes on."""
        account = Account(stage, concurrency=1)
        async with self.opened(account, "async") as client:
            fields = self.client.fields(Ask("hang", MODELS[provider][0]))
            first = asyncio.ensure_future(self.client.whole(client, fields))
            await until(lambda: len(stage.providers.heard) == 1)
            with pytest.raises(self.client.sdk.RateLimitError):
                await self.ask(client, self.client.fields(Ask("hello", MODELS[provider][0])), way)
            assert not first.done()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await until(lambda: stage.providers.left == 1)
        assert len(stage.providers.asked) == 1
        account.closed(1)


def called(id: str, name: str, arguments: str) -> Called:
    """A call from the text of its arguments."""
    return Called(id, name, json.loads(arguments))
