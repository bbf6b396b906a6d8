"""A real llama.cpp server in every dialect: natively, translated to chat, and translated to Messages; the money each time.

One server is three providers here: one whose own dialects are used (``llamacpp``), one that is asked for chat alone
(as a vendor that has no more), and one that is asked for Anthropic's Messages.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .matrix.clients import EVERY_WAY, Ask, Client, Seen, entered
from .matrix.model import Counts
from .matrix.provider import Providers
from .matrix.stage import ADMIN, PRICES, Account, Stage, exact_cost
from .matrix.test_pairs_chat import ChatClient
from .matrix.test_pairs_messages import MessagesClient
from .matrix.test_pairs_responses import ResponsesClient
from .servers import ROOT, environment, fetch, free_port, running, shown, uvicorn
from .upstream import until

pytestmark = pytest.mark.real

SERVER_KEY = "k1-of-the-llama-server"
CLIENTS: dict[str, Client] = {"chat": ChatClient(), "messages": MessagesClient(), "responses": ResponsesClient()}
MODELS = {"natively": "own", "over_chat": "plain", "over_messages": "claudish"}
FILE = """
[providers.llamacpp]
base_url = "${LLAMA}/v1"
api_key = "${LLAMA_KEY}"

[providers.plain]
type = "deepseek"
base_url = "${LLAMA}/v1"
api_key = "${LLAMA_KEY}"

[providers.claudish]
type = "anthropic"
base_url = "${LLAMA}"
api_key = "${LLAMA_KEY}"
"""
WORDS = "tell me about the gateway"
LIMIT = 24

every_client = pytest.mark.parametrize("dialect", list(CLIENTS))
every_road = pytest.mark.parametrize("road", list(MODELS))


class Real(Stage):
    """The gateway, and the address of the real server behind it."""

    llama = ""

    def busy(self) -> bool:
        """Whether any slot of the server is at work."""
        slots = fetch(f"{self.llama}/slots", key=SERVER_KEY).json()
        return any(slot["is_processing"] for slot in slots)


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Both processes; no answer of the model's ends before its limit."""
    pytest.importorskip(
        "xllamacpp", reason="xllamacpp cannot be imported: no real llama.cpp server", exc_type=ImportError
    )
    folder = tmp_path_factory.mktemp("llama")
    model = folder / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "tests.real.make_tiny_gguf", str(model)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port()), "--endless"]
    file = FILE
    for name, provider in (("own", "llamacpp"), ("plain", "plain"), ("claudish", "claudish")):
        file += f'[models.{name}]\ntargets = ["{provider}/tiny"]\n'
        file += "".join(f"usd_per_million_{kind} = {price}\n" for kind, price in PRICES.items())
    with running([*command, "--api-key", SERVER_KEY], environment(folder), folder) as llama:
        env = environment(folder / "gateway", file=file, LLAMA=llama.url, LLAMA_KEY=SERVER_KEY, GATEWAY_ADMIN_KEY=ADMIN,
                          GATEWAY_MAX_RETRIES="0", BREAKER_FAILURES="0")  # fmt: skip
        with uvicorn("examples:app", env, Path(folder / "gateway")) as gateway:
            made = Real(gateway, Providers())
            made.llama = llama.url
            yield made


@pytest.fixture
def stage(whole_stage: Real) -> Iterator[Real]:
    """The same for one test; the server's key is in nothing that the gateway logs."""
    with shown(whole_stage.gateway):
        yield whole_stage
    assert SERVER_KEY not in whole_stage.gateway.err


@pytest.fixture
def account(stage: Real) -> Account:
    """A tenant that nobody else uses."""
    return Account(stage)


def end_of(dialect: str, road: str) -> str:
    """Why an answer ended: the server's own Responses say ``completed`` for one that came to its limit."""
    return "stop" if (dialect, road) == ("responses", "natively") else "length"


async def answered(account: Account, dialect: str, road: str, way: str) -> Seen:
    """A short answer."""
    client = CLIENTS[dialect]
    async with entered(client.open(account.url, account.key, sync="async" not in way, strict=False)) as made:
        fields = client.fields(Ask(WORDS, MODELS[road], system="Be brief.", limit=LIMIT))
        return await (client.stream if "stream" in way else client.whole)(made, fields)


def booked(account: Account) -> Counts:
    """The counts of the one call, which cost what they cost at the price."""
    account.closed(1)
    (record,) = account.records()
    counts = Counts(
        *(record[f"{part}_tokens"] for part in ("prompt", "completion", "cached", "cache_write", "reasoning"))
    )
    assert record["cost_usd"] == float(exact_cost([counts]))
    assert record["flags"] == []
    assert (record["status"], record["overdraft_usd"]) == (200, 0)
    return counts


@every_client
@every_road
@pytest.mark.parametrize("way", [way for way in EVERY_WAY if "whole" in way])
async def test_an_answer_is_the_servers(account: Account, dialect: str, road: str, way: str) -> None:
    """Its text, its end at the limit, and its own counts, told and booked; what it cost is in the header."""
    seen = await answered(account, dialect, road, way)
    assert seen.text.strip()
    assert seen.end == end_of(dialect, road)
    counts = booked(account)
    assert seen.counts == counts
    assert counts.made == LIMIT
    assert counts.prompt > 5
    assert seen.cost == float(exact_cost([counts]))


@every_client
@every_road
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_a_stream_is_the_same_in_pieces(account: Account, dialect: str, road: str, sync: bool) -> None:
    """Piece by piece, to the end that tells why; the counts and what it cost once, with the last of it."""
    client = CLIENTS[dialect]
    async with entered(client.open(account.url, account.key, sync=sync, strict=False)) as made:
        fields = client.fields(Ask(WORDS, MODELS[road], system="Be brief.", limit=LIMIT))
        events = await everything(await client.begun(made, fields))
    pieces = [piece for event in events if (piece := client.piece(event))]
    assert len(pieces) > 5
    seen = client.put_together(events)
    assert (seen.text, seen.end) == ("".join(pieces), end_of(dialect, road))
    counts = booked(account)
    assert counts.made == LIMIT
    assert [cost for event in events if (cost := client.cost(event)) is not None] == [float(exact_cost([counts]))]


@every_road
async def test_every_dialect_is_billed_for_the_same_prompt(stage: Real, road: str) -> None:
    """The same words are as many tokens in every dialect: none is counted twice or left out on the way."""
    prompts = set()
    for dialect in CLIENTS:
        for way in ("whole", "stream"):
            if (dialect, way) in (("chat", "stream"), ("responses", "stream")):
                continue  # their SDK's helpers raise at a limit
            account = Account(stage)
            await answered(account, dialect, road, way)
            prompts.add(booked(account).prompt)
    assert len(prompts) == 1


@every_client
@every_road
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_a_hang_up_frees_the_slot(stage: Real, dialect: str, road: str, sync: bool) -> None:
    """A client that leaves in the middle of a long stream stops the server's work, is charged for what was made, and has
    its own slot at the gateway again."""
    account, client = Account(stage, concurrency=1), CLIENTS[dialect]
    async with entered(client.open(account.url, account.key, sync=sync, strict=False)) as made:
        stream = await client.begun(made, client.fields(Ask(WORDS, MODELS[road], limit=3900)))
        await first_piece(client, stream)
        assert stage.busy(), "the answer was over before the client could leave"
        closing = stream.close()
        if closing is not None:
            await closing
        await until(lambda: not stage.busy())
        account.charged_for_a_part()
        (record,) = account.records()
        assert record["completion_tokens"] < 3800
        started = time.monotonic()
        last: Any = None
        while last is None:
            assert time.monotonic() - started < 20, "the gateway's slot was never freed"
            try:
                last = await client.whole(made, client.fields(Ask(WORDS, MODELS[road], limit=LIMIT)))
            except client.sdk.RateLimitError:
                await asyncio.sleep(0.01)
    assert last.end == end_of(dialect, road)


async def first_piece(client: Client, stream: Any) -> None:
    """Read a stream as far as its first text."""
    if hasattr(stream, "__aiter__"):
        async for event in stream:
            if client.piece(event):
                return
    else:
        for event in stream:
            if client.piece(event):
                return


async def everything(stream: Any) -> list[Any]:
    """All events."""
    return [event async for event in stream] if hasattr(stream, "__aiter__") else list(stream)


@every_client
@every_road
async def test_a_prompt_that_is_too_long_is_refused(account: Account, dialect: str, road: str) -> None:
    """By the server, as a fault of the client's; nothing is charged."""
    client = CLIENTS[dialect]
    async with entered(client.open(account.url, account.key, sync=True)) as made:
        with pytest.raises(client.sdk.BadRequestError) as caught:
            await client.whole(made, client.fields(Ask("tell me " * 6000, MODELS[road], limit=LIMIT)))
    assert SERVER_KEY not in caught.value.response.text
    assert "127.0.0.1" not in caught.value.response.text
    found = account.closed(1)
    assert (found["spent_usd"], found["held_usd"]) == (0, 0)


@every_road
async def test_all_dialects_at_once(stage: Real, road: str) -> None:
    """Twelve calls side by side for the server's two slots: all are answered, and the sum is booked."""
    account = Account(stage, concurrency=20)
    calls = [answered(account, dialect, road, "async whole") for dialect in CLIENTS for _ in range(4)]
    seen = await asyncio.gather(*calls)
    found = account.closed(12)
    assert found["spent_usd"] == float(exact_cost([one.counts for one in seen if one.counts is not None]))
