"""Structured logs: one JSON line an event where a machine reads, readable ones on a terminal; by structlog.

No line holds a prompt, an answer or a secret. Tracebacks tell where, and never the exception's own words, which may hold
anything.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from . import __version__
from ._log_writer import Line, LogWriter, Render, to_stream
from .settings import Settings, current

NAME = "asgi_llm_gateway"

LogFormat = Literal["auto", "json", "text"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_new = tuple.__new__  # what Line(...) does, less a frame
_LONGEST = 2000  # characters of a message
# What looks like a secret in a message of ours or of a library's: keys, bearer tokens, passwords in URLs.
_SECRET = re.compile(r"\b(?:sk|gw|rk|pk|xai|gsk)-[A-Za-z0-9_-]{8,}|(?i:bearer )\S+|(?<=://)[^/@\s]+@")


class Logger(Protocol):
    """What lines are given to: a structlog logger is one."""

    def info(self, event: str, **fields: Any) -> Any:
        """An event as it should be."""
        ...

    def error(self, event: str, **fields: Any) -> Any:
        """One that should not be."""
        ...


def plain(text: str, most: int = 200) -> str:
    """Text that a client chose, as one short line: no line breaks and no terminal codes."""
    if len(text) > most:
        text = text[: most - 3] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def hidden(text: str) -> str:
    """A message without what looks like a secret."""
    return _SECRET.sub("[hidden]", text)


class _Stamps:
    """Times as ISO 8601 in UTC; the second's text is kept for the next line, for most lines share it."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        return f"{self._text}.{int((at - second) * 1e6):06d}Z"


def renderer(form: LogFormat, stream: Any) -> Render:
    """How lines are written; ``auto`` is ``text`` for a terminal. Raises ModuleNotFoundError without structlog."""
    try:
        from structlog.dev import ConsoleRenderer
        from structlog.processors import JSONRenderer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("logs need: pip install 'asgi-llm-gateway[logging]'", name=error.name) from None
    stamp = _Stamps()
    terminal = bool(getattr(stream, "isatty", bool)())
    if form == "text" or (form == "auto" and terminal):
        console = ConsoleRenderer(colors=terminal, sort_keys=False)

        def readable(line: Line) -> bytes:
            told = {name: value for name, value in line.fields.items() if value is not None}
            fields = {"timestamp": stamp(line.at), "level": line.level, "event": line.event, **told}
            return (console(None, line.level, fields) + "\n").encode("utf-8", "backslashreplace")

        return readable

    import orjson

    write = JSONRenderer(serializer=orjson.dumps)

    def json(line: Line) -> bytes:
        fields = {"timestamp": stamp(line.at), "level": line.level, "event": line.event, **line.fields}
        out = write(None, line.level, fields)
        return (out if isinstance(out, bytes) else out.encode()) + b"\n"

    return json


class Lines:
    """A logger whose lines a thread renders and writes.

    Args:
        writer: Where lines go.
        clock: Unix time in seconds.
    """

    def __init__(self, writer: LogWriter, clock: Callable[[], float]) -> None:
        self.writer = writer
        self._clock = clock

    def put(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """One line; ``fields`` is not changed afterwards."""
        self.writer.put(_new(Line, (self._clock(), level, event, fields)))

    def info(self, event: str, **fields: Any) -> None:
        """See Logger."""
        self.put("info", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """See Logger."""
        self.put("error", event, fields)

    async def aclose(self) -> None:
        """Wait until all is written, two seconds at most."""
        import asyncio

        await asyncio.to_thread(self.writer.flush)


class Handler(logging.Handler):
    """Takes what the gateway's parts log by the standard library, and puts it among the other lines."""

    def __init__(self, writer: LogWriter, level: int) -> None:
        super().__init__(level)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """One record as a line."""
        try:
            fields: dict[str, Any] = {"logger": record.name}
            if record.exc_info and record.exc_info[0] is not None:
                fields["error"] = record.exc_info[0].__name__
                fields["traceback"] = _where(record.exc_info[2])
            level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
            self._writer.put(Line(record.created, level, plain(hidden(record.getMessage()), _LONGEST), fields))
        except Exception:  # logging's own way: a message must not break who wrote it
            self.handleError(record)


def _where(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-20:]]


@lru_cache(maxsize=1)
def shared_lines() -> Lines:
    """The process's own log on stderr, as LOG_FORMAT and LOG_QUEUE_LINES say. Raises ModuleNotFoundError."""
    import time

    settings = current()
    render = renderer(settings.log_format, sys.stderr)
    writer = LogWriter(render, to_stream(sys.stderr), most=settings.log_queue_lines)
    atexit.register(writer.flush, 1.0)
    return Lines(writer, time.time)


def lost_lines() -> int:
    """Lines of the process's own log that were dropped because nobody read it fast enough."""
    return shared_lines().writer.dropped if shared_lines.cache_info().currsize else 0


def set_up(*, also: Iterable[str] = ()) -> Lines:
    """Send what the gateway's parts log (store faults, breakers, settings that are wrong) the same way as the calls' lines.

    For a process that is the gateway and nothing else: ``create_app`` calls it. A host app that keeps its own logging leaves
    it alone. Safe to repeat.

    Args:
        also: More loggers of the standard library by name, for example ``uvicorn.error``.

    Raises:
        ModuleNotFoundError: ``structlog`` (extra ``logging``) is not installed.
        SettingsError: A setting is wrong.
    """
    lines = shared_lines()
    level = _LEVELS[current().log_level]
    for name in (NAME, *also):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, Handler) for handler in logger.handlers):
            logger.handlers[:] = [Handler(lines.writer, level)]
            logger.propagate = False
        logger.setLevel(level)
    return lines


def started(lines: Logger, settings: Settings) -> None:
    """The line that says what runs, and by which settings."""
    lines.info("started", version=__version__, settings=shown_settings(settings))


def shown_settings(settings: Settings) -> Mapping[str, Any]:
    """The settings that somebody made, by name; of a secret only that it is set, of a URL no user, password or query."""
    return {name.upper(): _shown(getattr(settings, name)) for name in sorted(settings.model_fields_set)}


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "get_secret_value"):
        return "set"
    text = str(value)
    if "://" in text:
        try:
            parts = urlsplit(text)
            text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        except ValueError:
            return "set"
    return plain(hidden(text))


__all__ = [
    "Handler",
    "Lines",
    "LogFormat",
    "Logger",
    "hidden",
    "lost_lines",
    "plain",
    "renderer",
    "set_up",
    "shared_lines",
    "shown_settings",
    "started",
]
