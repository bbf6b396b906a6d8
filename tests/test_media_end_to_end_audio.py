"""Audio and speech: the official SDK through the whole stack, and the money of every call."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from .media_house import file, house, way
from .media_provider import HEARD, SOUND, SPOKEN
from .test_units import usd, wav

__all__ = ["way"]


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
