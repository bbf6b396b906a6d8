"""Images, audio, speech and moderation: the official SDK through the whole stack, and the money of every call."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import openai
import pytest

from asgi_llm_gateway import (
    BudgetMiddleware,
    MeteredTransport,
    RateLimitMiddleware,
    TenantMiddleware,
    TracingMiddleware,
    multipart,
)
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.prices import DEFAULT_PRICES, PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import CallRecord, Price, Tenant, UnitPrice
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from .media_provider import HEARD, IMAGE_USAGE, PNG, SOUND, SPOKEN, Provider, served
from .test_units import usd, wav

OWN = PriceTable({"mine": Price(0, 0, units=UnitPrice(image=usd("0.03"))), "gpt-4o-mini-tts": Price(600, 12_000)})


class House:
    """The stack round a stranger, a tenant with a budget, and the SDK."""

    def __init__(self, url: str, key: str, provider: Provider, ledger: MemoryLedger, traces: TraceLog) -> None:
        self.url = url
        self.key = key
        self.provider = provider
        self.ledger = ledger
        self.traces = traces
        self.client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0)

    async def record(self) -> CallRecord:
        """The one record, when it is there; nothing is held any more."""
        async with asyncio.timeout(10):
            while True:
                found = (await self.ledger.records("acme")).records
                if found:
                    break
                await asyncio.sleep(0.01)
        (record,) = found
        balance = await self.ledger.balance("acme")
        assert (balance.spent, balance.held) == (record.cost, 0)
        return record

    async def post(self, path: str, **more: Any) -> httpx.Response:
        """A call without the SDK."""
        async with httpx.AsyncClient(trust_env=False) as client:
            headers = {"authorization": f"Bearer {self.key}", **more.pop("headers", {})}
            return await client.post(self.url + path, headers=headers, **more)


WAYS: list[str] = []


@pytest.fixture(autouse=True, params=["wrapped", "proxied"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether the layers stand round the stranger itself, or round a ProxyApp that asks it over the network."""
    WAYS.append(request.param)
    yield
    WAYS.pop()


MODELS = ("dall-e-2", "dall-e-3", "gpt-image-1", "mine", "whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-4o-mini-tts",
          "omni-moderation-latest")  # fmt: skip


@asynccontextmanager
async def answering(provider: Provider) -> AsyncIterator[Any]:
    """Who answers, further in than all layers."""
    if WAYS[-1] == "wrapped":
        yield provider
        return
    async with served(provider) as url:
        router = Router(
            [OpenAIAdapter("openai", url + "/v1", "sk-theirs")], {name: [f"openai/{name}"] for name in MODELS}
        )
        app = ProxyApp(router=router)
        yield app
        await app.aclose()


@asynccontextmanager
async def house(budget: str = "100", *, prices: PriceTable = DEFAULT_PRICES, **fields: Any) -> AsyncIterator[House]:
    """A running one."""
    store, ledger, traces, provider = MemoryStore(), MemoryLedger(), TraceLog(), Provider()
    await store.add_tenant(Tenant("acme", budget=usd(budget), **fields))
    key, secret = new_key("acme")
    await store.add_key(key)
    async with answering(provider) as innermost:
        app: Any = BudgetMiddleware(innermost, ledger=ledger, prices=prices)
        app = TracingMiddleware(TenantMiddleware(RateLimitMiddleware(app), store=store), traces=traces)
        async with served(app) as url:
            made = House(url, secret, provider, ledger, traces)
            async with made.client:
                yield made


def file(seconds: float = 1.0) -> tuple[str, io.BytesIO, str]:
    """A WAV file as the SDK takes it."""
    return ("a.wav", io.BytesIO(wav(seconds)), "audio/wav")


# -- images ------------------------------------------------------------------------------------------------------------


async def test_images_are_charged_by_their_number() -> None:
    """What came counts; the cost stands on the answer, in the record and in the trace."""
    async with house() as at:
        raw = await at.client.images.with_raw_response.generate(prompt="a cat", model="dall-e-2", n=3, size="512x512")
        images = raw.parse()
        assert [image.url for image in images.data or ()] == ["https://x/y.png"] * 3
        record = await at.record()
        assert raw.headers["x-llm-cost-usd"] == "0.054"
        assert (record.cost, record.usage.total, record.usage.estimated) == (usd("0.054"), 0, False)
        assert at.provider.bodies == [raw.http_request.content]
        (trace,) = at.traces.recent()
        assert (trace.tenant, trace.model, trace.cost, trace.status) == ("acme", "dall-e-2", usd("0.054"), 200)


async def test_images_that_tell_tokens_are_charged_by_them() -> None:
    """gpt-image-1: text, image and output tokens at their own prices."""
    async with house() as at:
        answer = await at.client.images.generate(prompt="a cat", model="gpt-image-1", quality="low", size="1024x1024")
        assert answer.usage is not None
        assert answer.usage.output_tokens == IMAGE_USAGE["output_tokens"]
        record = await at.record()
        assert record.cost == 10 * 5_000 + 40 * 10_000 + 272 * 40_000
        assert record.usage[:2] == (50, 272)


async def test_a_streamed_image_is_charged_when_it_is_complete() -> None:
    """Each event goes out when it came; the cost stands beside the usage."""
    async with house() as at:
        at.provider.gate.clear()
        stream = await at.client.images.generate(
            prompt="a cat", model="gpt-image-1", quality="low", size="1024x1024", stream=True, partial_images=1
        )
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            at.provider.gate.set()  # only now does the provider go on
        assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
        assert events[1].b64_json == PNG
        record = await at.record()
        assert record.cost == 10 * 5_000 + 40 * 10_000 + 272 * 40_000
        assert usd(str(events[1].cost_usd)) == record.cost


async def test_a_price_of_ones_own_is_charged() -> None:
    """``usd_per_image``: for any model, and an edit from a form."""
    async with house(prices=OWN) as at:
        png = ("a.png", b"\x89PNG" + bytes(50_000), "image/png")
        answer = await at.client.images.edit(image=[png, png], prompt="a hat", model="mine", n=2)
        assert len(answer.data or ()) == 2
        assert (await at.record()).cost == usd("0.06")


async def test_an_edit_from_json_is_charged_like_one_from_a_form() -> None:
    """The newer way: images by URL."""
    async with house() as at:
        body = {"model": "gpt-image-1", "prompt": "a hat", "images": [{"image_url": "https://x/y.png"}]}
        answer = await at.post("/v1/images/edits", json=body)
        assert answer.status_code == 200
        assert (await at.record()).cost == 10 * 5_000 + 40 * 10_000 + 272 * 40_000


async def test_images_without_a_word_of_usage_cost_what_was_held() -> None:
    """Tokens that nobody told are taken for all that was asked, and flagged."""
    async with house() as at:
        at.provider.silent = True
        await at.client.images.generate(prompt="a cat", model="gpt-image-1", quality="low", size="1024x1024")
        record = await at.record()
        assert record.usage.estimated
        assert record.cost >= 272 * 40_000


# -- transcription and translation -------------------------------------------------------------------------------------


async def test_a_transcription_is_charged_by_the_seconds_told() -> None:
    """And its form reaches the stranger byte for byte."""
    async with house() as at:
        raw = await at.client.audio.transcriptions.with_raw_response.create(file=file(), model="whisper-1")
        assert raw.parse().text == "a b"
        record = await at.record()
        assert record.cost == usd("0.0007")
        assert raw.headers["x-llm-cost-usd"] == "0.0007"
        assert (record.usage.total, record.usage.estimated, record.model) == (0, False, "whisper-1")
        assert wav(1.0) in at.provider.bodies[0]
        assert at.provider.lengths[0] == len(at.provider.bodies[0]) == int(raw.http_request.headers["content-length"])


async def test_a_transcription_by_tokens_is_charged_by_them() -> None:
    """gpt-4o-transcribe: heard tokens are dearer than read ones; the answer's come on top."""
    async with house() as at:
        answer = await at.client.audio.transcriptions.create(file=file(), model="gpt-4o-transcribe")
        assert answer.text == "a b"
        record = await at.record()
        assert record.cost == 10 * 2_500 + 100 * 6_000 + 20 * 10_000
        assert record.usage[:2] == (HEARD["input_tokens"], HEARD["output_tokens"])


async def test_a_streamed_transcription_is_charged_at_its_end() -> None:
    """Its last event tells the tokens."""
    async with house() as at:
        stream = await at.client.audio.transcriptions.create(file=file(), model="gpt-4o-transcribe", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds == ["transcript.text.delta", "transcript.text.done"]
        assert (await at.record()).cost == 10 * 2_500 + 100 * 6_000 + 20 * 10_000


@pytest.mark.parametrize("how", ["text", "srt", "vtt"])
async def test_a_transcript_as_text_costs_what_was_held(how: Any) -> None:
    """Nothing tells its length but the file: the seconds of a plain WAV, and one."""
    async with house() as at:
        text = await at.client.audio.transcriptions.create(file=file(9.5), model="whisper-1", response_format=how)
        assert text == "a b\n"
        record = await at.record()
        assert (record.cost, record.usage.estimated) == (usd("0.001"), True)


async def test_a_verbose_transcript_tells_how_long_it_was() -> None:
    """Seconds that have begun are charged."""
    async with house() as at:
        answer = await at.client.audio.transcriptions.create(
            file=file(), model="whisper-1", response_format="verbose_json"
        )
        assert answer.duration == 6.2
        assert (await at.record()).cost == usd("0.0007")


async def test_a_translation_is_charged_too() -> None:
    """Packed audio of unknown length, of which nobody tells: by the lowest rate of its codec."""
    async with house() as at:
        answer = await at.client.audio.translations.create(file=("a.mp3", b"ID3" + bytes(59_997)), model="whisper-1")
        assert answer.text == "a b"
        record = await at.record()
        assert (record.cost, record.usage.estimated) == (usd("0.006"), True)


# -- speech ------------------------------------------------------------------------------------------------------------


async def test_sound_passes_as_it_comes() -> None:
    """Nobody holds it back: the first piece is here while the stranger waits; the cost is that of the characters."""
    async with house() as at:
        at.provider.gate.clear()
        make = at.client.audio.speech.with_streaming_response.create
        got = b""
        async with make(model="tts-1", voice="alloy", input="zwölf €") as answer:
            assert answer.headers["content-type"] == "audio/mpeg"
            async for piece in answer.iter_bytes():
                got += piece
                at.provider.gate.set()
        assert got == SOUND
        record = await at.record()
        assert (record.cost, record.usage.total, record.usage.estimated) == (7 * 15_000, 0, False)


async def test_speech_as_a_whole_is_the_sdks_own_bytes() -> None:
    """``audio.speech.create``: by tokens that nobody tells, it is an estimate and not free."""
    async with house() as at:
        answer = await at.client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="one two three")
        assert answer.content == SOUND
        record = await at.record()
        assert record.usage.estimated
        assert record.cost > 0


async def test_speech_in_events_tells_its_tokens() -> None:
    """And is charged by them."""
    async with house() as at:
        make = at.client.audio.speech.with_streaming_response.create
        async with make(model="gpt-4o-mini-tts", voice="alloy", input="one", stream_format="sse") as answer:
            lines = [line async for line in answer.iter_lines() if line.startswith("data: ")]
        done = json.loads(lines[-1][6:])
        assert done["usage"] == SPOKEN
        record = await at.record()
        assert record.cost == 5 * 600 + 60 * 12_000
        assert usd(str(done["cost_usd"])) == record.cost
        assert not record.usage.estimated


async def test_a_listener_who_hangs_up_pays() -> None:
    """P5: what was asked for is charged, though it was not all heard."""
    async with house() as at:
        at.provider.gate.clear()
        make = at.client.audio.speech.with_streaming_response.create
        async with make(model="tts-1", voice="alloy", input="one two three") as answer:
            await anext(answer.iter_bytes())
            await answer.close()
        at.provider.gate.set()
        assert (await at.record()).cost == 13 * 15_000


async def test_sound_that_breaks_off_is_paid() -> None:
    """P5: the provider may well charge for it; and the listener is not told that it was all."""
    async with house() as at:
        at.provider.breaks = True
        make = at.client.audio.speech.with_streaming_response.create
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012
            async with make(model="tts-1", voice="alloy", input="one two three") as answer:
                async for _ in answer.iter_bytes():
                    pass
        assert (await at.record()).cost == 13 * 15_000


# -- moderation --------------------------------------------------------------------------------------------------------


async def test_moderation_is_free_and_names_its_model() -> None:
    """The SDK sends none; the stranger is asked for the default by name, with a length that is right."""
    async with house("0.000001") as at:
        answer = await at.client.moderations.create(input="one two")
        assert answer.model == "omni-moderation-latest"
        assert answer.results[0].flagged is False
        assert json.loads(at.provider.bodies[0]) == {"input": "one two", "model": "omni-moderation-latest"}
        assert at.provider.lengths == [len(at.provider.bodies[0])]
        assert (await at.record()).cost == 0


# -- who may, and for how much -----------------------------------------------------------------------------------------


async def test_the_gateways_own_field_does_not_reach_the_stranger() -> None:
    """In a form as in JSON; the length is that of what is sent."""
    async with house() as at:
        await at.client.audio.transcriptions.create(file=file(), model="whisper-1", extra_body={"tenant": "acme"})
        await at.client.images.generate(prompt="p", model="dall-e-2", extra_body={"tenant": "acme"})
        assert not any(b"acme" in body or b"tenant" in body for body in at.provider.bodies)
        assert at.provider.lengths == [len(body) for body in at.provider.bodies]
        form, kind = at.provider.bodies[0], at.provider.kinds[0]
        read = multipart.read(form, multipart.boundary_of(kind) or b"")
        assert {part.name for part in read.parts} == {"model", "file"}
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await at.client.audio.transcriptions.create(file=file(), model="whisper-1", extra_body={"tenant": "other"})
        assert caught.value.code == "tenant_not_found"


async def test_models_that_are_not_allowed_are_not_there() -> None:
    """Also in a form, and the default of a moderation."""
    async with house(allowed_models=("tts-1",)) as at:
        for refused in (
            at.client.audio.transcriptions.create(file=file(), model="whisper-1"),
            at.client.images.generate(prompt="p", model="dall-e-2"),
            at.client.moderations.create(input="x"),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                await refused
            assert caught.value.code == "model_not_found"
        assert at.provider.bodies == []


@pytest.mark.parametrize(
    ("path", "setting", "body"),
    [
        ("/v1/images/generations", "usd_per_image", {"prompt": "p"}),
        ("/v1/audio/speech", "usd_per_million_characters", {"input": "x"}),
        ("/v1/moderations", "usd_per_million_in", {"input": "x"}),
    ],
)
async def test_what_has_no_price_is_refused_and_says_what_to_set(path: str, setting: str, body: Any) -> None:
    """403, naming model and setting; also for a model that is priced in another measure."""
    async with house() as at:
        wrong = "whisper-1" if "moderations" not in path else "unheard-of"
        for model in ("unheard-of", wrong):
            answer = await at.post(path, json={"model": model, **body})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (403, "unpriced_endpoint", "model")
            assert model in error["message"]
            assert setting in error["message"]
        assert at.provider.bodies == []


async def test_an_image_model_is_no_way_to_a_free_chat() -> None:
    """A price by the image says nothing of a chat's tokens."""
    async with house() as at:
        answer = await at.post(
            "/v1/chat/completions", json={"model": "dall-e-3", "messages": [{"role": "user", "content": "x"}]}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unpriced_model")


async def test_a_budget_pays_for_as_many_images_as_it_can() -> None:
    """P1: ten at once for money that pays for four; what is refused was not asked of the stranger."""
    async with house("0.17") as at:
        asks = [at.client.images.generate(prompt="p", model="dall-e-3", size="1024x1024") for _ in range(10)]
        done = await asyncio.gather(*asks, return_exceptions=True)
        passed = [one for one in done if not isinstance(one, BaseException)]
        refused = [one for one in done if isinstance(one, openai.APIStatusError)]
        assert (len(passed), len(refused), len(at.provider.bodies)) == (4, 6, 4)
        assert {one.status_code for one in refused} == {402}
        balance = await at.ledger.balance("acme")
        assert (balance.spent, balance.held) == (usd("0.16"), 0)


async def test_a_budget_of_tokens_counts_what_has_tokens() -> None:
    """An image's tokens are held; a transcription by the minute has none."""
    async with house(budget_tokens=2_000) as at:
        with pytest.raises(openai.APIStatusError) as caught:
            await at.client.images.generate(prompt="p", model="gpt-image-1")
        assert caught.value.code == "would_exceed_budget"
        await at.client.audio.transcriptions.create(file=file(), model="whisper-1")
        assert (await at.ledger.balance("acme")).tokens_spent == 0


async def test_the_bound_covers_a_form_of_any_size() -> None:
    """A body over the limit is 413, before it is parsed."""
    async with house() as at:
        answer = await at.post(
            "/v1/audio/transcriptions", files={"file": ("a", bytes(33 * 1024 * 1024))}, data={"model": "whisper-1"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


# -- a handler's own calls ---------------------------------------------------------------------------------------------


async def test_a_handlers_own_calls_are_paid_by_the_request() -> None:
    """MeteredTransport: images, a form with a file and sound, made with the SDK inside a handler."""
    provider, ledger = Provider(), MemoryLedger()
    async with served(provider) as url:
        http = httpx2.AsyncClient(transport=MeteredTransport(provider="openai"))
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-theirs", http_client=http, max_retries=0)

        async def handler(scope: Any, receive: Any, send: Any) -> None:
            await client.images.generate(prompt="p", model="dall-e-3")
            await client.audio.transcriptions.create(file=file(), model="whisper-1")
            sound = await client.audio.speech.create(model="tts-1", voice="alloy", input="one")
            assert sound.content == SOUND
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        app = BudgetMiddleware(handler, ledger=ledger, paths={"/ask": "metered"})
        async with client, served(app) as mine, httpx.AsyncClient(trust_env=False) as browser:
            assert (await browser.post(mine + "/ask")).text == "done"
    balance = await ledger.balance("default")
    assert (balance.spent, balance.held) == (usd("0.04") + usd("0.0007") + 3 * 15_000, 0)
    assert wav(1.0) in provider.bodies[1]
