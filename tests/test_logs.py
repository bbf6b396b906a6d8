"""What operators need beside the calls: what runs by which settings, and what the gateway's parts have to say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway import logs
from asgi_llm_gateway._log_writer import Line, LogWriter
from asgi_llm_gateway.logs import Handler, Lines, hidden, plain, renderer, shown_settings, started
from asgi_llm_gateway.proxy.health import BreakerRules, Health
from asgi_llm_gateway.settings import Settings

from .servers import environment, fetch, uvicorn

CANARY = "PRIVATE-WORDS"


class Sink:
    """A log in memory, as JSON."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.writer = LogWriter(renderer("json", None), self.written.append)

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        assert self.writer.flush(10)
        return [json.loads(line) for line in b"".join(self.written).splitlines()]


@pytest.fixture
def sink() -> Iterator[Sink]:
    """What the gateway's own logger says."""
    found = Sink()
    logger = logging.getLogger("asgi_llm_gateway")
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [Handler(found.writer, logging.INFO)], False
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one setting that every test has."""
    monkeypatch.delenv("GATEWAY_DATA_DIR")


@pytest.mark.usefixtures("no_folder")
def test_the_start_line_has_the_settings_and_no_secret() -> None:
    """Of a secret that it is set, of a URL neither user nor query."""
    settings = Settings.load(
        {
            "PORT": "9000",
            "OPENAI_API_KEY": "sk-" + CANARY,
            "DATABASE_URL": f"postgresql://gateway:{CANARY}@db/gateway",
            "REDIS_URL": f"redis://:{CANARY}@redis:6379/0",
            "GATEWAY_ADMIN_KEY": CANARY * 4,
            "METRICS_TOKEN": CANARY * 2,
            "OPA_URL": f"https://user:{CANARY}@opa:8181/base?token={CANARY}#x",
            "OPENAI_BASE_URL": f"https://proxy/v1?key={CANARY}",
        }
    )
    sink = Sink()
    started(Lines(sink.writer, lambda: 0.0), settings)
    (line,) = sink.read()
    assert (line["event"], line["level"]) == ("started", "info")
    assert line["settings"] == {
        "PORT": 9000,
        "OPENAI_API_KEY": "set",
        "DATABASE_URL": "set",
        "REDIS_URL": "set",
        "GATEWAY_ADMIN_KEY": "set",
        "METRICS_TOKEN": "set",
        "OPA_URL": "https://opa:8181/base",
        "OPENAI_BASE_URL": "https://proxy/v1",
    }
    assert CANARY not in b"".join(sink.written).decode()


@pytest.mark.usefixtures("no_folder")
def test_every_setting_can_be_shown() -> None:
    """Whatever its type: none is written as code."""
    every = Settings.load({})
    shown = {name: logs._shown(getattr(every, name)) for name in Settings.model_fields}
    json.dumps(shown)
    assert not [name for name, value in shown.items() if "Secret" in repr(value) or "object at" in repr(value)]
    assert shown_settings(every) == {}


def test_what_the_parts_log_is_a_line_like_the_others(sink: Sink) -> None:
    """Store faults, settings that are wrong, whatever they warn of."""
    logging.getLogger("asgi_llm_gateway").warning("the ledger does not answer: %s", "timed out")
    logging.getLogger("asgi_llm_gateway").debug("not shown")
    (line,) = sink.read()
    assert line["timestamp"].endswith("Z")
    assert {name: line[name] for name in ("level", "event", "logger")} == {
        "level": "warning",
        "event": "the ledger does not answer: timed out",
        "logger": "asgi_llm_gateway",
    }


def test_a_traceback_tells_where_and_not_what(sink: Sink) -> None:
    """An exception's own words may be a prompt or a password."""
    try:
        raise ZeroDivisionError(CANARY)
    except ZeroDivisionError:
        logging.getLogger("asgi_llm_gateway").exception("could not be closed")
    (line,) = sink.read()
    assert (line["level"], line["error"]) == ("error", "ZeroDivisionError")
    assert line["traceback"][-1].endswith("test_a_traceback_tells_where_and_not_what")
    assert CANARY not in repr(sink.written)


def test_a_breaker_that_opens_and_closes_says_so(sink: Sink) -> None:
    """By the target's name."""
    health = Health(BreakerRules(failures=2, cooldown=10.0), "openai/gpt-4")
    for at in (1.0, 2.0):
        health.failed(at, self)
    assert health.allows(100.0, self)
    health.succeeded()
    assert health.state(100.0) == "closed"
    opened, closed = sink.read()
    assert opened["event"].startswith("breaker open: openai/gpt-4 failed and is left alone for ")
    assert closed["event"] == "breaker closed: openai/gpt-4 answers again"


self = object()
"""Who asks the breaker."""


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefgh12345678",
        "gw-abc_DEF-12345678",
        "Bearer abc.def",
        "postgres://user:pass@host/db",
        "xai-12345678abcd",
    ],
)
def test_what_looks_like_a_secret_is_hidden_in_a_message(sink: Sink, secret: str) -> None:
    """A last line of defence: the driver of a store may repeat what it was given."""
    logging.getLogger("asgi_llm_gateway").error("it said: %s!", secret)
    (line,) = sink.read()
    assert secret not in line["event"]
    assert "[hidden]" in line["event"]
    assert "pass" not in line["event"]


@given(st.text(max_size=400))
def test_text_of_a_clients_is_one_short_line(text: str) -> None:
    """Whatever it is made of, and also where it can't be encoded."""
    found = plain(text)
    assert found.isprintable()
    assert len(found) <= 2200
    found.encode("utf-8", "strict")
    if text.isprintable() and len(text) <= 200:
        assert found == text


@given(st.text(max_size=300))
def test_hiding_leaves_other_text_alone(text: str) -> None:
    """Only what looks like a secret goes."""
    if not any(mark in text.lower() for mark in ("-", "bearer", "://")):
        assert hidden(text) == text


def test_a_terminal_gets_readable_lines_and_a_file_gets_json() -> None:
    """LOG_FORMAT=auto; ``json`` and ``text`` are what they say anywhere."""

    class Terminal:
        def isatty(self) -> bool:
            return True

    line = Line(1_700_000_000.0, "info", "call", {"status": 200, "model": "gpt-4", "key": None})
    assert json.loads(renderer("auto", open(__file__))(line))["status"] == 200  # noqa: SIM115
    assert json.loads(renderer("json", Terminal())(line))["model"] == "gpt-4"
    for found in (renderer("auto", Terminal())(line), renderer("text", None)(line)):
        text = found.decode()
        assert text.endswith("\n")
        assert not text.startswith("{")
        assert "2023-11-14T22:13:20.000000Z" in text
        assert "gpt-4" in text
        assert "key" not in text  # what is not there is no noise
    assert "\x1b[" in renderer("auto", Terminal())(line).decode()
    assert "\x1b[" not in renderer("text", None)(line).decode()


def test_a_whole_process_logs_json_lines_and_nothing_else(tmp_path: Path) -> None:
    """From its start to its end, store faults included; what was queued is written when it ends."""
    env = environment(tmp_path, LOG_FORMAT="json")
    with uvicorn("tests.observed:app", env, tmp_path, "--no-access-log") as server:
        body = {"model": "echo", "messages": [{"role": "user", "content": CANARY}]}
        for _ in range(20):
            assert fetch(f"{server.url}/v1/chat/completions", body).status == 200
        server.end()
        lines = [json.loads(line) for line in server.err.splitlines()]
        text = server.err
    assert [line["logger"] for line in lines if "Uvicorn running" in line["event"]] == ["uvicorn.error"]
    assert lines[0]["event"] == "started"
    assert [line["event"] for line in lines].count("call") == 20
    assert CANARY not in text
    assert env["TEAM_KEY"] not in text
