"""Media through the whole stack: moderation, who may and for how much, and calls that a handler makes itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import httpx2
import openai
import pytest

from asgi_llm_gateway import BudgetMiddleware, MeteredTransport, multipart
from asgi_llm_gateway.stores.memory import MemoryLedger

from .media_house import file, house, way
from .media_provider import SOUND, Provider, served
from .test_units import usd, wav

__all__ = ["way"]


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
