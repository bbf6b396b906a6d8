"""Where calls are admitted: a desk for each event loop. This one counts in its own process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..rates.wants import Verdict, Want
from ..rates.windows import Taken, Windows

Mark = tuple[str, str, str]
"""Where Redis counted something: the log's key, the number of the entry, and the log's life."""


_NONE: Mapping[str, Mark] = {}


class Ticket:
    """A call that was admitted: what it took here, what it took in Redis, and the places that it holds there."""

    __slots__ = ("leases", "marks", "taken", "tenant")

    def __init__(self, tenant: str, taken: Taken) -> None:
        self.tenant = tenant
        self.taken = taken
        self.marks: Mapping[str, Mark] = _NONE
        self.leases: tuple[str, ...] = ()


class Desk(Protocol):
    """Admits calls, and hears of their ends. It never fails: whom it can't ask, it does without."""

    async def admit(self, tenant: str, wants: Sequence[Want]) -> tuple[Verdict, Ticket | None]:
        """Take all that is wanted, or nothing: a ticket for a call that is admitted."""
        ...

    def correct(self, ticket: Ticket, changes: Sequence[tuple[str, int]]) -> None:
        """A call took more (or less, below 0) of the named windows than it was admitted on."""
        ...

    def leave(self, ticket: Ticket) -> None:
        """A call has ended: its places are free. It may be said more than once."""
        ...

    async def close(self) -> None:
        """The event loop ends."""
        ...


class LocalDesk:
    """Admits by this process's share of the limits.

    Args:
        windows: The process's counts.
        parts: Processes among which the limits are divided.
    """

    def __init__(self, windows: Windows, parts: int) -> None:
        self._windows = windows
        self._parts = parts

    async def admit(self, tenant: str, wants: Sequence[Want]) -> tuple[Verdict, Ticket | None]:
        """See Desk."""
        verdict, taken = self._windows.admit(wants, parts=self._parts)
        return verdict, None if taken is None else Ticket(tenant, taken)

    def correct(self, ticket: Ticket, changes: Sequence[tuple[str, int]]) -> None:
        """See Desk."""
        for name, change in changes:
            self._windows.correct(ticket.taken, name, change)

    def leave(self, ticket: Ticket) -> None:
        """See Desk."""
        self._windows.leave(ticket.taken)

    async def close(self) -> None:
        """See Desk."""
