"""What answers at the scripted providers: one small model that speaks no dialect, and is told in a prompt what to do.

A provider reads its own dialect into ``Heard``, asks ``think`` and writes the ``Said`` in its dialect again. So an answer is
right only if the whole conversation came through, whatever dialects it went through on its way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

HELLO = "Grüße – 你好, “world” \U0001f30d."  # noqa: RUF001 - as people write
LONG = tuple(f"word{number} " for number in range(600))
THOUGHTS = ("Let me think. ", "Twice two is four.")
CITY = {"name": "Köln", "people": 1_087_353, "coastal": False}
WEATHER = {"Köln": '12 °C, "rain"', "Rom": "21 °C"}
EXPLAINED = "I can't help with that."
MAX_FAILURE = "as the test wants it"

End = Literal["stop", "length", "calls", "refusal"]
Manner = Literal["whole", "cut", "error", "hang"]


class Counts(NamedTuple):
    """Tokens. ``cached`` and ``written`` are parts of ``prompt``; ``thought`` is part of ``made``."""

    prompt: int
    made: int
    cached: int = 0
    written: int = 0
    thought: int = 0


class Called(NamedTuple):
    """A call of a tool."""

    id: str
    name: str
    arguments: dict[str, Any]


class Failure(Exception):
    """The provider refuses: a status, and the kind of it in the dialects' own words where the status alone leaves it open."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass
class Heard:
    """A request, as it was understood.

    Attributes:
        command: The text of the last user message that has one: what to do.
        first: The first such text of the conversation: what an agent was given to do.
        system: The instructions.
        tools: Names of the tools that may be called.
        forced: One of them must be.
        results: What the tools said to the calls of the last turn: ``(id, text)``.
        history: The calls of earlier turns, in order.
        images: The pictures, as bytes.
        schema: What the answer must be.
        thinks: The model was asked to think.
        limit: Output tokens at most.
        replayed: The thoughts of the last turn came back, with the provider's own mark.
        stream: Whether a stream is wanted.
    """

    command: str = ""
    first: str = ""
    system: str = ""
    tools: list[str] = field(default_factory=list)
    forced: bool = False
    results: list[tuple[str, str]] = field(default_factory=list)
    history: list[Called] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    thinks: bool = False
    limit: int | None = None
    replayed: bool = False
    stream: bool = False


@dataclass
class Said:
    """An answer.

    Attributes:
        thoughts: Pieces of what was thought.
        texts: Pieces of the text, as they are streamed.
        calls: Calls of tools.
        end: Why it ended.
        counts: Its tokens.
        manner: How the provider goes about it: to its end, or dying, failing or falling silent in the middle.
    """

    counts: Counts
    thoughts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    calls: tuple[Called, ...] = ()
    end: End = "stop"
    manner: Manner = "whole"


def think(heard: Heard) -> Said:
    """The answer to a request. Raises Failure."""
    if heard.first.startswith("fix "):
        return _fix(heard)
    word, _, rest = heard.command.partition(" ")
    thoughts = THOUGHTS if heard.thinks else ()
    thought = 20 if heard.thinks else 0
    match word:
        case "hello":
            # Everything that is hard to get right about counts: a part from the cache, a part written to it.
            return Said(Counts(1000, 17 + thought, 600, 100, thought), thoughts, _cut(HELLO, 7))
        case "weather" if heard.results:
            said = "; ".join(f"{_place(heard, id)}: {text}" for id, text in heard.results)
            return Said(Counts(450, 30, 300), (), _cut(said, 5))
        case "weather":
            if "weather" not in heard.tools:
                raise Failure(400, "the tools did not arrive", "tools")
            calls = (Called("", "weather", {"city": "Köln", "days": 1}), Called("", "weather", {"city": "Rom", "days": 2}),
                     Called("", "now", {}))  # fmt: skip
            return Said(Counts(300, 60 + thought, 0, 0, thought), thoughts, ("Let me ", "look."), calls, "calls")
        case "look":
            seen = ", ".join(f"{len(image)} bytes {hashlib.sha256(image).hexdigest()[:12]}" for image in heard.images)
            return Said(Counts(800, 12), (), _cut(seen or "nothing", 9))
        case "city":
            if heard.schema is None or set(heard.schema.get("properties", ())) != set(CITY):
                raise Failure(400, "the schema did not arrive", "response_format")
            return Said(Counts(120, 22), thoughts, _cut(json.dumps(CITY, ensure_ascii=False), 4))
        case "long":
            return Said(Counts(50, 1200), (), LONG)
        case "refuse":
            return Said(Counts(40, 8), (), (EXPLAINED,), (), "refusal")
        case "talk":
            if heard.limit is None:
                raise Failure(400, "the limit did not arrive", "max_tokens")
            return Said(Counts(30, heard.limit), (), tuple(f"w{n} " for n in range(heard.limit)), (), "length")
        case "fail":
            raise Failure(int(rest), MAX_FAILURE)
        case "cut" | "error" | "hang":
            return Said(Counts(200, 9), (), ("one ", "two ", "three "), (), "stop", word)
        case "system":
            return Said(Counts(60, 10), (), (heard.system,))
    raise Failure(400, f"no such command: {heard.command[:40]}")


def _fix(heard: Heard) -> Said:
    """An agent's work, step by step: read two files at once, run the tests, edit a file, say that it is done.

    Each step looks at what the tools said to the one before. Raises Failure.
    """
    told = [text for _, text in heard.results]
    steps: dict[int, tuple[tuple[str, dict[str, Any]], ...]] = {
        0: (("Read", {"file_path": "/src/a.py"}), ("Read", {"file_path": "/src/ü b.py", "limit": 20})),
        2: (("Bash", {"command": "pytest -q \\\n | tail -1", "timeout": 60_000}),),
        3: (("Edit", {"file_path": "/src/a.py", "old_string": 'x = "1"\n', "new_string": "x = 1\n"}),),
        4: (),
    }
    # What each result holds; that a call failed is told by a word before, in the dialects that have no flag for it.
    expected: dict[int, list[tuple[Any, str]]] = {
        0: [],
        2: [("", 'x = "1"\n'), ("", "# empty")],
        3: [(("failed", "error"), "1 failed")],
        4: [("", "done")],
    }
    number = len(heard.history)
    if number not in expected or len(told) != len(expected[number]):
        raise Failure(400, f"{number} calls so far, and {len(told)} results of the last")
    for text, (begins, holds) in zip(told, expected[number], strict=True):
        if holds not in text or not text.lower().startswith(begins):
            raise Failure(400, f"a tool said {text[:40]!r}, and not {holds!r}")
    counts = Counts(9000 + 100 * number, 80, 8000 if number else 0, 0 if number else 8000, 30 if heard.thinks else 0)
    thoughts = (f"Step {number}. ", "Go on.") if heard.thinks else ()
    if number == 4:
        return Said(counts, thoughts, ("Fixed: ", "`x = 1`."))
    calls = tuple(Called("", name, arguments) for name, arguments in steps[number])
    return Said(counts, thoughts, ("I look.",) if number == 0 else (), calls, "calls")


def _cut(text: str, size: int) -> tuple[str, ...]:
    return tuple(text[at : at + size] for at in range(0, len(text), size))


def _place(heard: Heard, id: str) -> str:
    """What the call was about that a result answers."""
    for call in heard.history:
        if call.id == id:
            return str(call.arguments.get("city", call.name))
    raise Failure(400, f"a result for the call {id}, which nobody made")
