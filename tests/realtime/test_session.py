"""A session: calls side by side, cancelled, refused; and how sessions end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send

from .stage import CHAT, LIVELY, SLOW, STREAM, stage

BIG = ('"\\' * 50 + " ") * 3_000
"""A text whose answer takes many messages: all of it is escaped, and escaped again in a part."""


def words(found: list[dict[str, Any]]) -> str:
    """The text of a stream's chunks."""
    chunks = [one["data"]["choices"] for one in found if one["type"] == "response.chunk"]
    return "".join(choices[0]["delta"].get("content") or "" for choices in chunks if choices)


def code(found: list[dict[str, Any]]) -> tuple[int, str]:
    """Status and code of the error that a call ended with."""
    assert found[-1]["type"] == "error", found
    return found[-1]["status"], found[-1]["error"]["code"]


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_a_stream_comes_event_by_event_and_ends_with_its_cost() -> None:
    """The events' own data, then usage and cost; the ledger has the same."""
    async with stage() as st:
        peer = await st.connect()
        found = await peer.ask("1")
        assert [one["type"] for one in found] == ["response.chunk"] * (len(found) - 1) + ["response.done"]
        assert words(found) == "one two three"
        done = found[-1]
        assert (done["usage"]["prompt_tokens"], done["usage"]["completion_tokens"]) == (3, 3)
        assert round(done["cost_usd"] * 10**9) == await st.spent() == 9_000
        assert done["headers"]["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("chat.completions.create", CHAT),
        ("embeddings.create", {"model": "echo", "input": "one two"}),
        ("messages.create", {"model": "echo", "max_tokens": 9, "messages": CHAT["messages"]}),
        ("messages.create", {"model": "echo", "max_tokens": 9, "messages": CHAT["messages"], "stream": True}),
        ("responses.create", {"model": "echo", "input": "one two"}),
        ("responses.create", {"model": "echo", "input": "one two", "stream": True}),
    ],
)
async def test_every_type_is_answered_as_over_http(kind: str, body: dict[str, Any]) -> None:
    """The same data, ids and times aside; JSON answers are one chunk."""
    paths = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings", "messages": "/v1/messages",
             "responses": "/v1/responses"}  # fmt: skip
    async with stage() as st:
        peer = await st.connect()
        found = await peer.ask("1", kind, body)
        assert round(found[-1]["cost_usd"] * 10**9) == await st.spent()
        http = await st.http("POST", paths[kind.partition(".")[0]], body)
        wanted = [json.loads(one) for one in http.events if one != "[DONE]"] if body.get("stream") else [http.json()]
        told = [one["data"] for one in found[:-1]]
        assert found[-1]["type"] == "response.done"
        assert [shape(one) for one in told] == [shape(one) for one in wanted]


def shape(value: Any) -> Any:
    """A value without what differs from call to call."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()
                if name not in ("id", "created", "created_at", "completed_at", "item_id", "cost")}  # fmt: skip
    return [shape(one) for one in value] if isinstance(value, list) else value


async def test_calls_side_by_side_do_not_wait_for_each_other() -> None:
    """One that is slow to begin holds up no other, and each has its own frames."""
    async with stage() as st:
        peer = await st.connect()
        peer.chat("slow", SLOW)
        for number in range(10):
            peer.chat(str(number), {**STREAM, "messages": [{"role": "user", "content": f"word{number} " * 20}]})
        found = await peer.rest(*map(str, range(10)))
        for number in range(10):
            assert words(found[str(number)]).split() == [f"word{number}"] * 20
        peer.say("cancel", id="slow")
        assert code((await peer.rest("slow"))["slow"]) == (499, "cancelled")


async def test_cancelling_settles_one_call_and_leaves_the_others() -> None:
    """A hang-up for the call: its hold ends, what was used is paid, and its last frame says so."""
    async with stage() as st:
        peer = await st.connect()
        paced = {**STREAM, "metadata": {"echo_delay_ms": "20"}, "messages": [{"role": "user", "content": "w " * 60}]}
        peer.chat("kept", paced)
        peer.chat("stopped", paced)
        seen = [await peer.hear() for _ in range(6)]
        assert {one["id"] for one in seen} == {"kept", "stopped"}
        peer.say("cancel", id="stopped")
        found = await peer.rest("kept", "stopped")
        assert code(found["stopped"]) == (499, "cancelled")
        assert found["stopped"][-1]["cost_usd"] > 0
        assert found["kept"][-1]["type"] == "response.done"
        records = (await st.store.records("a")).records
        assert sorted(record.aborted for record in records) == [False, True]


async def test_a_cancel_for_a_call_that_has_ended_or_never_was_is_passed_over() -> None:
    """It may have crossed the call's last frame."""
    async with stage() as st:
        peer = await st.connect()
        await peer.ask("1")
        peer.say("cancel", id="1")
        peer.say("cancel", id="never")
        assert (await peer.ask("2"))[0]["id"] == "2"


async def test_an_id_may_be_used_again_when_its_call_has_ended() -> None:
    """And not before: that is an error of no call, and the one in flight goes on."""
    async with stage() as st:
        peer = await st.connect()
        peer.chat("1", SLOW)
        peer.chat("1")
        error = await peer.hear()
        assert (error["id"], error["error"]["code"], error["error"]["param"]) == (None, "duplicate_id", "id")
        peer.say("cancel", id="1")
        await peer.rest("1")
        assert words(await peer.ask("1")) == "one two three"


async def test_only_so_many_calls_are_in_flight() -> None:
    """A further one is refused by its id, before it costs anything."""
    async with stage(limits=replace(LIVELY, messages=2)) as st:
        peer = await st.connect()
        peer.chat("1", SLOW)
        peer.chat("2", SLOW)
        assert code(await peer.ask("3")) == (429, "too_many_messages")
        peer.say("cancel", id="1")
        await peer.rest("1")
        assert words(await peer.ask("3")) == "one two three"


async def test_a_bad_request_is_told_as_over_http() -> None:
    """The stack's own error, with its status and the field."""
    async with stage() as st:
        peer = await st.connect()
        found = await peer.ask("1", body={"model": "echo"})
        assert (found[-1]["status"], found[-1]["error"]["param"]) == (400, "messages")
        found = await peer.ask("2", body={**CHAT, "model": "nobody's"})
        assert code(found) == (400, "unpriced_model")
        found = await peer.ask("3", "messages.create", {"model": "echo", "messages": []})
        assert found[-1]["status"] == 400
        assert found[-1]["error"]["type"] == "invalid_request_error"


async def test_a_stream_that_fails_after_its_beginning_ends_with_an_error_frame() -> None:
    """Never with ``response.done``; what came before is paid."""
    async with stage() as st:
        peer = await st.connect()
        found = await peer.ask("1", body={**STREAM, "metadata": {"echo_fault": "cut@2"}})
        assert len(found) == 3
        assert (found[-1]["type"], found[-1]["status"]) == ("error", 502)
        assert found[-1]["cost_usd"] > 0


async def test_frames_in_parts_are_joined_in_both_directions() -> None:
    """A prompt in pieces; an answer of more than a message holds."""
    async with stage() as st:
        peer = await st.connect()
        text = json.dumps({"type": "chat.completions.create", "id": "1",
                           "body": {**CHAT, "messages": [{"role": "user", "content": BIG}]}})  # fmt: skip
        for at in range(0, len(text), 50_000):
            piece = {"part": 7, "index": at // 50_000, "last": at + 50_000 >= len(text), "text": text[at : at + 50_000]}
            peer.say("part", **piece)
        found = (await peer.rest("1"))["1"]
        answer = found[0]["data"]["choices"][0]["message"]["content"]
        assert answer.split() == BIG.split()


async def test_a_big_frame_lets_small_ones_through_between_its_parts() -> None:
    """Its pieces take turns with the others."""
    async with stage() as st:
        peer = await st.connect()
        peer.pause()
        peer.chat("big", {**CHAT, "messages": [{"role": "user", "content": BIG}]})
        await asyncio.sleep(0.3)
        peer.chat("small", CHAT)
        await asyncio.sleep(0.3)
        peer.resume()
        order: list[tuple[str, str]] = []
        while len(order) < 4:
            frame = await peer.hear()
            order.append((frame["id"], frame["type"]))
        assert order[0] == ("small", "response.chunk")


async def test_a_frame_over_the_limit_is_refused_and_the_session_goes_on() -> None:
    """413, in one message or in parts."""
    async with stage(limits=replace(LIVELY, frame_bytes=4096)) as st:
        peer = await st.connect()
        peer.chat("1", {**CHAT, "x": "y" * 5000})
        error = await peer.hear()
        assert (error["status"], error["error"]["code"]) == (413, "frame_too_large")
        for index in range(3):
            peer.say("part", part=1, index=index, last=index == 2, text="z" * 2000)
        error = await peer.hear()
        assert (error["status"], error["error"]["code"]) == (413, "frame_too_large")
        assert words(await peer.ask("2")) == "one two three"


async def test_an_answer_over_the_limit_is_told_and_paid() -> None:
    """Memory is bounded by session: what is no stream may not be longer than a frame."""
    async with stage(limits=replace(LIVELY, frame_bytes=4096)) as st:
        peer = await st.connect()
        found = await peer.ask("2", "embeddings.create", {"model": "echo", "input": ["w"] * 200})
        assert code(found) == (502, "answer_too_large")
        assert found[-1]["cost_usd"] > 0


async def test_binary_messages_are_read_as_text() -> None:
    """Some clients know no other."""
    async with stage() as st:
        peer = await st.connect()
        peer._in.put_nowait({"type": "websocket.receive", "bytes": json.dumps({"type": "ping"}).encode()})
        assert (await peer.hear())["type"] == "pong"


async def test_an_app_that_raises_or_says_nothing_ends_its_call_only() -> None:
    """With an error that tells nothing of the app's own words, and the session goes on."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        if body["metadata"]["do"] == "raise":
            raise RuntimeError("the prompt was one two three")
        if body["metadata"]["do"] == "cut":
            await send({"type": "http.response.start", "status": 200,
                        "headers": [(b"content-type", b"text/event-stream")]})  # fmt: skip
            await send({"type": "http.response.body", "body": b'data: {"choices":[]}\n\n', "more_body": True})

    async with stage(terminal=broken) as st:
        peer = await st.connect()
        for what in ("raise", "nothing", "cut"):
            found = await peer.ask(what, body={**STREAM, "model": "m", "metadata": {"do": what}})
            assert found[-1]["type"] == "error"
            assert found[-1]["status"] >= 500
            assert "prompt was" not in json.dumps(found)
        peer.say("ping")
        assert (await peer.hear())["type"] == "pong"


async def test_events_that_are_no_json_cannot_leave_their_frame() -> None:
    """A provider that sends half a JSON, or a field of our own, changes no frame but its own ``data``."""
    evil = [b'data: 1},"id":"other","x":{"y":2\n\n', b"data: <html>\n\n", b": a comment\n\n", b"data: [DONE]\n\n"]

    async def provider(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for one in evil:
            await send({"type": "http.response.body", "body": one, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with stage(terminal=provider) as st:
        peer = await st.connect()
        found = await peer.ask("1", body={**STREAM, "model": "m"})
        assert [one["id"] for one in found] == ["1"] * 3
        assert [one.get("data") for one in found] == ['1},"id":"other","x":{"y":2', "<html>", None]


async def test_a_cancel_that_crosses_a_calls_last_frame_does_not_take_it_away() -> None:
    """It waits for a peer that does not read just now; each call is told its end."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async with stage(terminal=silent) as st:
        peer = await st.connect()
        peer.pause()
        peer.chat("1", {**CHAT, "model": "m"})
        peer.chat("2", {**CHAT, "model": "m"})
        await asyncio.sleep(0.1)
        peer.say("cancel", id="1")
        peer.say("cancel", id="2")
        await asyncio.sleep(0.1)
        peer.resume()
        found = await peer.rest("1", "2")
        assert [code(found[call]) for call in ("1", "2")] == [(502, "answer_cut")] * 2
