"""What was asked of the ledger and what it answered, written down so that the death of the writer loses nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal
from asgi_llm_gateway.stores.base import Ledger

Kind = Literal["ask", "yes", "no", "unknown"]


class Event(NamedTuple):
    """A question to the ledger, or the answer to one.

    Attributes:
        at: Nanoseconds of the monotonic clock, which all processes of a machine share. Of a question before it was put,
            of an answer after it came: what the ledger did, it did in between.
        process: Who asked.
        op: The question's number in its process; its answer has the same.
        kind: ``ask``, or the answer: ``unknown`` is StoreError. A question without an answer is unknown too.
        verb: The verb of the ledger.
        hold: The id of the hold that it is about.
        data: Arguments, or what came back.
    """

    at: int
    process: str
    op: int
    kind: Kind
    verb: str
    hold: str
    data: dict[str, Any]


class Recorded:
    """A ledger whose questions and answers go to a history.

    Args:
        ledger: The ledger.
        path: The history: one line of JSON an event, appended in one write, so that a SIGKILL cuts none.
    """

    def __init__(self, ledger: Ledger, path: Path) -> None:
        self._ledger = ledger
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self._ops = 0

    def _write(self, op: int, kind: Kind, verb: str, hold: str, data: dict[str, Any]) -> None:
        line = json.dumps([time.monotonic_ns(), op, kind, verb, hold, data])
        os.write(self._file, line.encode() + b"\n")

    def _ask(self, verb: str, hold: str = "", **data: Any) -> int:
        self._ops += 1
        self._write(self._ops, "ask", verb, hold, data)
        return self._ops

    async def _whether(self, op: int, verb: str, hold: str, answer: Any) -> Any:
        try:
            got = await answer
        except StoreError as error:
            self._write(op, "unknown", verb, hold, {"error": str(error)})
            raise
        if isinstance(got, Hold):
            self._write(op, "yes", verb, hold, {"money": got.money, "tokens": got.tokens})
        elif isinstance(got, Refusal):
            self._write(op, "no", verb, hold, {"what": got.what, "account": got.limit.account})
        else:
            self._write(op, "yes" if got or verb == "sweep" else "no", verb, hold, {"got": got})
        return got

    async def hold(
        self,
        tenant: str,
        *,
        hold_id: str,
        limits: tuple[Limit, ...],
        least: Amount,
        wanted: Amount,
        now: float,
        ttl: float,
        about: About = About(),  # noqa: B008 - a constant
    ) -> Hold | Refusal:
        """See Ledger."""
        op = self._ask("hold", hold_id, tenant=tenant, limits=limits, least=least, wanted=wanted, now=now, ttl=ttl)
        answer = self._ledger.hold(
            tenant, hold_id=hold_id, limits=limits, least=least, wanted=wanted, now=now, ttl=ttl, about=about
        )
        got: Hold | Refusal = await self._whether(op, "hold", hold_id, answer)
        return got

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        op = self._ask("raise", hold.id, money=amount.money, tokens=amount.tokens, limits=limits)
        answer = self._ledger.raise_hold(hold, amount, limits=limits)
        got: Hold | Refusal = await self._whether(op, "raise", hold.id, answer)
        return got

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """See Ledger."""
        op = self._ask("renew", hold.id, now=now, ttl=ttl)
        return bool(await self._whether(op, "renew", hold.id, self._ledger.renew(hold, now=now, ttl=ttl)))

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        op = self._ask("settle", hold.id, money=record.cost, tokens=record.usage.total)
        return bool(await self._whether(op, "settle", hold.id, self._ledger.settle(hold, record)))

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        op = self._ask("release", hold.id)
        return bool(await self._whether(op, "release", hold.id, self._ledger.release(hold)))

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """See Ledger."""
        op = self._ask("sweep", now=now)
        return int(await self._whether(op, "sweep", "", self._ledger.sweep(now, charge=charge)))

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger; not written down."""
        return await self._ledger.balance(tenant, account, window)

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger; nobody calls it here."""
        raise NotImplementedError

    async def close(self) -> None:
        """See Ledger."""
        await self._ledger.close()
        os.close(self._file)


def read(paths: Sequence[Path]) -> list[Event]:
    """All events of some histories, in their order."""
    events = []
    for path in paths:
        for line in path.read_bytes().splitlines():
            at, op, kind, verb, hold, data = json.loads(line)
            events.append(Event(at, path.stem, op, kind, verb, hold, data))
    return sorted(events, key=lambda event: event.at)
