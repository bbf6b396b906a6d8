"""An adapter of another package's: installed by pip, found by its entry point, and served like any other provider."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import Adapter, StreamDecoder
from asgi_llm_gateway.errors import Unsupported, UpstreamError
from asgi_llm_gateway.proxy.providers import GROUP, router_of
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.settings import FileConfig, ProviderConfig, Settings, SettingsError
from asgi_llm_gateway.wire import LLMRequest, Route, parse

from .servers import KEY, ROOT, Reply, Server, environment, fetch, free_port, running
from .upstream import LAST_CHUNK, STREAM_HEAD, Peer, Upstream, always, chunk, event, once, upstream, whole

if TYPE_CHECKING:
    from examples.custom_adapter import ParrotAdapter, ParrotStream, make
else:  # by its file: the package ``examples`` makes a whole gateway when it is imported
    _spec = importlib.util.spec_from_file_location("the_example", ROOT / "examples" / "custom_adapter.py")
    _example = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_example)
    ParrotAdapter, ParrotStream, make = _example.ParrotAdapter, _example.ParrotStream, _example.make

SECRET = "parrot-secret-0123456789"
FILE = """
[providers.house]
type = "parrot"
base_url = "http://127.0.0.1:{port}"
api_key = "{secret}"
models = ["polly"]

[models."house/polly"]
usd_per_million_in = 1
usd_per_million_out = 2

[models.bird]
targets = ["house/polly", "echo"]
usd_per_million_in = 1
usd_per_million_out = 2

[tenants.team]
budget_usd = 1
keys = ["${{TEAM_KEY}}"]
"""
CHAT: dict[str, Any] = {
    "model": "house/polly",
    "messages": [{"role": "user", "content": "who is pretty?"}],
    "max_tokens": 9,
}
ANSWER = {"text": "polly is", "end": "done", "counted": [4, 2]}
EVENTS = [event({"piece": "polly "}), event({"piece": "is"}), event({"end": "limit", "counted": [4, 2]})]

MODULE = "\n".join(
    [
        "def breaks(name, config): raise RuntimeError('no luck')",
        "def refuses(name, config): raise ValueError('base_url must be a bird')",
        "def half(name, config): return type('Half', (), {'name': name, 'models': ()})()",
        "def other(name, config): return __import__('custom_adapter').make('other', config)",
        "number = 7",
    ]
)


def wheel(folder: Path) -> Path:
    """A tiny distribution whose entry points name adapters."""
    made = folder / "parrot_adapter-1.0-py3-none-any.whl"
    names = ["breaks", "refuses", "half", "other", "number", "missing"]
    points = "".join(f"{name} = parrot_adapter:{name}\n" for name in names)
    points += "parrot = custom_adapter:make\nnowhere = parrot_nowhere:make\n"
    files = {
        "custom_adapter.py": (ROOT / "examples" / "custom_adapter.py").read_text("utf-8"),
        "parrot_adapter.py": MODULE,
        "parrot_adapter-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: parrot-adapter\nVersion: 1.0\n",
        "parrot_adapter-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "parrot_adapter-1.0.dist-info/entry_points.txt": f"[{GROUP}]\n{points}",
    }
    record = "parrot_adapter-1.0.dist-info/RECORD"
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for name, text in files.items()
    ]
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "\n".join([*lines, f"{record},,\n"]))
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put the distribution."""
    folder = tmp_path_factory.mktemp("parrot")
    target = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    subprocess.run([*command, "--target", str(target), str(wheel(folder))], check=True, timeout=120)
    return target


# -- found by its entry point ------------------------------------------------------------------------------------------


@pytest.fixture
def found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The distribution on this process's path."""
    monkeypatch.syspath_prepend(str(installed))
    return installed


def configured(kind: str, **fields: Any) -> Any:
    """The router of a file with one provider of that type."""
    provider = {"type": kind, "base_url": "http://h", **fields}
    return router_of(Settings.load({}), FileConfig.model_validate({"providers": {"house": provider}}))


def test_a_type_of_another_package_is_found_by_its_name(found: Path) -> None:
    """Its models are listed, and asked for as ``provider/model``."""
    router = configured("parrot", models=["polly"])
    place = router.way("house/polly").places[0]
    assert type(place.adapter).__name__ == "ParrotAdapter"
    assert sys.modules[type(place.adapter).__module__].__file__ == str(found / "custom_adapter.py")
    assert "house/polly" in router.models


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("breaks", ["can't be made", "RuntimeError: no luck"]),
        ("refuses", ["base_url must be a bird"]),
        ("half", ["has no speaks, translates, request, response, stream, error"]),
        ("other", ["calls itself 'other'"]),
        ("number", ["can't be made", "not callable"]),
        ("missing", ["can't be made", "missing"]),
        ("nowhere", ["can't be made", "parrot_nowhere"]),
        ("unheard-of", ["unknown type 'unheard-of'", "parrot", "openai"]),
    ],
)
def test_one_that_is_no_adapter_stops_the_start(found: Path, kind: str, words: list[str]) -> None:
    """Saying which provider, and what is wrong."""
    with pytest.raises(SettingsError) as caught:
        configured(kind)
    for word in ["[providers.house]", *words]:
        assert word in str(caught.value)


def test_a_package_that_is_not_installed_is_told_so() -> None:
    """With what there is."""
    with pytest.raises(SettingsError, match="unknown type 'parrot'; there are: anthropic"):
        configured("parrot")


# -- the example's adapter ---------------------------------------------------------------------------------------------


def request(**fields: Any) -> LLMRequest:
    """A parsed chat request."""
    return parse(Route("metered", "chat", ""), json.dumps({**CHAT, **fields}).encode())


def adapter() -> ParrotAdapter:
    """The example's."""
    return make(
        "house", ProviderConfig.model_validate({"base_url": "http://h/", "api_key": SECRET, "models": ["polly"]})
    )


def test_it_is_an_adapter_for_the_type_checker_too() -> None:
    """The two protocols, as mypy reads them."""
    checked: Adapter = adapter()
    decoder: StreamDecoder = checked.stream(request())
    assert (checked.name, decoder.events) == ("house", 0)
    with pytest.raises(ValueError, match="base_url"):
        make("house", ProviderConfig())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 1}, "temperature"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ],
)
def test_what_it_has_no_word_for_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """400, before anything is sent."""
    with pytest.raises(Unsupported) as caught:
        adapter().request(request(**fields), "polly")
    assert caught.value.param == param


def decoded(pieces: list[bytes], **fields: Any) -> tuple[bytes, ParrotStream]:
    """What a client gets of these pieces."""
    decoder = adapter().stream(request(stream=True, **fields))
    return b"".join(decoder.feed(piece) for piece in pieces) + decoder.finish(), decoder


@given(st.lists(st.text(max_size=5), max_size=6), st.integers(1, 60), st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut(texts: list[str], size: int, told: bool) -> None:
    """Every piece of text, the end, and the counts."""
    raw = b"".join(event({"piece": text}) for text in texts) + EVENTS[-1]
    options = {"stream_options": {"include_usage": True}} if told else {}
    out, decoder = decoded([raw[at : at + size] for at in range(0, len(raw), size)], **options)
    assert out == decoded([raw], **options)[0]
    *events, end = [line[6:] for line in out.decode().split("\n") if line]
    chunks = [json.loads(one) for one in events]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks if one["choices"]) == "".join(texts)
    assert (end, "usage" in chunks[-1]) == ("[DONE]", told)
    assert (decoder.usage, decoder.complete, decoder.events) == (Usage(4, 2), True, len(texts) + 1)


@given(st.binary(max_size=40))
def test_what_is_no_event_of_parrots_is_a_failure_and_no_traceback(raw: bytes) -> None:
    """In a stream and in an answer."""
    with pytest.raises(UpstreamError, match="house"):
        adapter().response(request(), raw)
    with pytest.raises(UpstreamError, match="house"):
        decoded([b"data: " + raw.replace(b"\n", b"") + b"\n\n"])


# -- served ------------------------------------------------------------------------------------------------------------


class House:
    """A running gateway and the parrot behind it."""

    def __init__(self, server: Server, parrot: Upstream) -> None:
        self.server = server
        self.parrot = parrot

    async def ask(self, body: Any, path: str = "/v1/chat/completions") -> Reply:
        """An HTTP call, in a thread: the parrot lives in this event loop."""
        return await asyncio.to_thread(fetch, self.server.url + path, body)


@pytest.fixture(scope="module")
def gateway(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """``python -m asgi_llm_gateway serve`` in a process that has the distribution, and the parrot's port."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    paths = f"{installed}:{ROOT}"
    file = FILE.format(port=port, secret=SECRET)
    env = environment(folder, file=file, PORT="0", PYTHONPATH=paths, GATEWAY_MAX_RETRIES="0", BREAKER_FAILURES="0")
    with running([sys.executable, "-m", "asgi_llm_gateway", "serve"], env, folder) as server:
        yield server, port


async def test_json_is_translated_and_paid_for(gateway: tuple[Server, int]) -> None:
    """The key goes up in the header of parrot's own, the cost comes down."""
    server, port = gateway
    async with upstream(always(whole(ANSWER)), port=port) as parrot:
        answer = await House(server, parrot).ask({**CHAT, "user": "me"})
        assert (answer.status, answer.headers["x-llm-provider"]) == (200, "house")
        assert answer.json()["choices"][0] == {
            "index": 0, "message": {"role": "assistant", "content": "polly is"}, "finish_reason": "stop",
        }  # fmt: skip
        assert answer.headers["x-llm-dropped-fields"] == "user"
        assert float(answer.headers["x-llm-cost-usd"]) == pytest.approx((4 + 2 * 2) / 1e6)
        (asked,) = parrot.requests
        assert (asked.path, asked.headers["x-parrot-key"]) == ("/generate", SECRET)
        assert asked.json() == {
            "parrot": "polly", "turns": [{"who": "user", "says": "who is pretty?"}], "limit": 9, "live": False,
        }  # fmt: skip


async def test_the_official_sdk_streams_from_it(gateway: tuple[Server, int]) -> None:
    """Chat, and Responses with a translation in front."""
    server, port = gateway
    said = (STREAM_HEAD, *(chunk(one) for one in EVENTS), LAST_CHUNK)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*said)

    async with upstream(script, port=port), openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY) as client:
        stream = await client.chat.completions.create(
            model="bird", messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [one async for one in stream]
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "polly is"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 6
        response = await client.responses.create(model="house/polly", input="hi", max_output_tokens=16, stream=True)
        text = "".join([one.delta async for one in response if one.type == "response.output_text.delta"])
        assert text == "polly is"


async def test_its_failures_are_told_routed_and_free_of_secrets(gateway: tuple[Server, int]) -> None:
    """As of any provider: the status, the words without keys, and the next target where there is one."""
    server, port = gateway
    bad = whole({"problem": f"no seeds for {SECRET}"}, 429, headers=[("Retry-After", "0")])
    async with upstream(always(bad), port=port) as parrot:
        at = House(server, parrot)
        refused = await at.ask(CHAT)
        assert (refused.status, refused.headers["retry-after"]) == (429, "0")
        assert (refused.json()["error"]["message"], SECRET in server.err) == ("no seeds for [redacted]", False)
        other = await at.ask({**CHAT, "model": "bird"})
        assert (other.status, other.headers["x-llm-provider"]) == (200, "echo")


async def test_a_stream_of_its_that_breaks_off_is_not_made_whole(gateway: tuple[Server, int]) -> None:
    """One error event and no [DONE]."""
    server, port = gateway
    async with upstream(once(STREAM_HEAD, chunk(EVENTS[0])), port=port) as parrot:
        answer = await House(server, parrot).ask({**CHAT, "stream": True})
        events = [line[6:] for line in answer.body.decode().split("\n") if line]
        assert json.loads(events[0])["choices"][0]["delta"] == {"content": "polly "}
        assert json.loads(events[-1])["error"]["code"] == "upstream_cut"
        assert (len(events), b"[DONE]" in answer.body) == (2, False)
