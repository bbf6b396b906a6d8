"""Images: the official SDK through the whole stack, and the money of every call."""

from __future__ import annotations

from typing import Any

from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import Price, UnitPrice

from .media_house import house, way
from .media_provider import IMAGE_USAGE, PNG
from .test_units import usd

__all__ = ["way"]

OWN = PriceTable({"mine": Price(0, 0, units=UnitPrice(image=usd("0.03"))), "gpt-4o-mini-tts": Price(600, 12_000)})


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
