"""Budgets that replicas share: the money of calls that run is in Redis, that of calls that ended goes on to SQL.

Each verb is one script, so one atomic step; a tenant's keys lie in one slot, so a cluster will do. SQL is the record (the
``archive``): the script that settles a call also puts it into the tenant's outbox, and a task moves it on from there. An
account that Redis does not know is never taken for zero, but filled with what is archived; so a Redis that lost its data
forgets only the calls that it had not passed on yet, and the holds of those that run (their settles are booked all the same).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from ..errors import StoreError
from ..records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal
from ._batch import PATIENCE, Batches, Job
from ._redis_drain import Drainer, packed
from ._redis_wire import CREDIT, HOLD, LAPSE, MARK, RAISE, RELEASE, RENEW, RUN, SEED, SETTLE, Command, run, wire_to
from .base import Archive

_LAPSE_AT_ONCE = 100  # holds that one step of a sweep ends: a script stops the server for all others
_AGAIN = 0.02  # seconds until an account is looked at again whose last calls are still on their way to the archive


class Granted(Hold):
    """A hold that Redis gave out. Its settle is booked also where Redis has lost it since."""

    __slots__ = ()


class RedisLedger:
    """The ledger on Redis or Valkey. One event loop may use it: what ``stores.shared`` opens is one for each.

    Redis should keep its data (``appendonly yes``) and must not evict it (``maxmemory-policy noeviction``): one with an
    ``allkeys-*`` policy is refused.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; ``redis+cluster://`` or ``rediss+cluster://`` for a cluster.
        archive: Where settled calls are booked for good, and from where accounts start again.
        lapsed: Whether a hold that nobody settled is charged whole, or released.
        patience: Seconds that a caller waits before it is told StoreError.
        prefix: What the names of all keys begin with; gateways that share budgets share it.
    """

    def __init__(
        self,
        url: str,
        *,
        archive: Archive,
        lapsed: Literal["charge", "release"] = "charge",
        patience: float = PATIENCE,
        prefix: str = "gw",
    ) -> None:
        self._url = url
        self._archive = archive
        self._charge = _flag(lapsed == "charge")
        self._patience = patience
        self._prefix = prefix
        self._mark = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._seeds: dict[str, asyncio.Task[None]] = {}
        self._wire = wire_to(url, patience)
        self._batches: Batches[Command] | None = None
        self._drainer = Drainer(self._ask, archive, prefix=prefix, mark=self._mark, patience=patience)

    # -- one step at the server ----------------------------------------------------------------------------------------

    def _ask(self, command: Command) -> asyncio.Future[Any]:
        if self._batches is None:
            self._batches = Batches(self._run, patience=self._patience)
            self._drainer.start()
        return self._batches.submit(command)

    async def _run(self, jobs: list[Job[Command]]) -> None:
        # A little less than callers have, so that they hear why.
        replies = await run(self._wire, [job.work for job in jobs], self._patience * 0.9)
        for job, reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Exception):
                job.failed(StoreError(f"Redis: {reply}"))
            else:
                job.done(reply)

    def _base(self, tenant: str) -> str:
        if "}" in tenant:  # it would end the part of the key that chooses the slot
            raise ValueError(f"not a tenant's id: {tenant!r}")
        return f"{self._prefix}:{{{tenant}}}:"

    def _nonce(self) -> str:
        """A name for one call of a verb: when its answer is lost and it is sent again, the script knows it."""
        return f"{self._mark}{next(self._numbers):x}"

    # -- the verbs -----------------------------------------------------------------------------------------------------

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
        """See Ledger. A few holds of the tenant that have lapsed are ended on the way."""
        base = self._base(tenant)
        keys, most = _accounts(base, limits)
        command = HOLD.call(
            [f"{base}h:{hold_id}", base + "x", *keys],
            repr(now), repr(now + ttl), *least, *wanted, self._charge, orjson.dumps([*about]), RUN, *most,
        )  # fmt: skip
        begun = asyncio.get_running_loop().time()
        reply = await self._ask(command)
        if reply[0] == b"unknown":
            reply = await self._seeded(command, reply, tenant, limits, begun)
        if reply[0] == b"held":
            return _granted(reply, hold_id, tenant, tuple([limit[:2] for limit in limits]))
        if reply[0] == b"refused":
            return _refusal(reply, limits)
        raise StoreError("the hold has ended")

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        base = self._base(hold.tenant)
        given = {(limit.account, limit.window): limit for limit in limits}
        own = tuple([given.get(account) or Limit(*account, None, None) for account in hold.accounts])
        keys, most = _accounts(base, own)
        command = RAISE.call([f"{base}h:{hold.id}", *keys], base, *amount, *most)
        begun = asyncio.get_running_loop().time()
        reply = await self._ask(command)
        if reply[0] == b"unknown":
            reply = await self._seeded(command, reply, hold.tenant, own, begun)
        if reply[0] == b"held":
            return _granted(reply, hold.id, hold.tenant, hold.accounts)
        if reply[0] == b"refused":
            return _refusal(reply, own)
        return Refusal(limits[0] if limits else Limit("", 0, None, None), "ended", 0, 0)

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """See Ledger."""
        base = self._base(hold.tenant)
        return bool(await self._ask(RENEW.call((f"{base}h:{hold.id}", base + "x"), repr(now + ttl))))

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger. The call is in the archive a moment later."""
        base = self._base(hold.tenant)
        accounts = [f"{account}:{window}" for account, window in hold.accounts]
        usage = record.usage
        reply = await self._ask(
            SETTLE.call(
                [f"{base}h:{hold.id}", base + "x", base + "o", *[f"{base}a:{account}" for account in accounts]],
                self._nonce(), record.cost, usage.prompt + usage.completion, packed(record),
                hold.money, hold.tokens, repr(hold.expires), hold.spent,
                " ".join(accounts) if isinstance(hold, Granted) else "-",
            )
        )  # fmt: skip
        if reply:
            self._drainer.wake(hold.tenant)
        return bool(reply)

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        base = self._base(hold.tenant)
        return bool(await self._ask(RELEASE.call((f"{base}h:{hold.id}", base + "x"), self._nonce())))

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """See Ledger. Over all tenants, whichever process' holds they are."""
        return await self._drainer.over_all(lambda tenant: self._sweep(tenant, now, charge))

    async def _sweep(self, tenant: str, now: float, charge: bool) -> int:
        ended = 0
        while True:
            found: int = await self._ask(
                LAPSE.call((self._base(tenant) + "x",), repr(now), _LAPSE_AT_ONCE, _flag(charge))
            )
            ended += found
            if found and charge:
                self._drainer.wake(tenant)
            if found < _LAPSE_AT_ONCE:
                return ended

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger. Of an account that Redis does not know, what is archived."""
        key = f"{self._base(tenant)}a:{account}:{window}"
        known, *figures = await self._ask(("HMGET", key, "e", "s", "h", "ts", "th", "c"))
        if known is None:
            return await self._archive.balance(tenant, account, window)
        return Balance(*map(int, figures))

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger. Booked in the archive; Redis is told the sum, so that it may be told as often as you like."""
        new = await self._archive.adjust(adjustment)
        tenant, window = adjustment.tenant, adjustment.window
        told = None
        while True:  # until the sum stays what it was: another process may adjust the same account
            credit = (await self._archive.balance(tenant, "", window)).credit
            if credit == told:
                return new
            await self._ask(CREDIT.call((f"{self._base(tenant)}a::{window}",), credit))
            told = credit

    # -- accounts that Redis does not know -----------------------------------------------------------------------------

    async def _seeded(self, command: Command, reply: Any, tenant: str, limits: Sequence[Limit], begun: float) -> Any:
        """The reply to a command whose accounts are filled from the archive first; in the time that the caller has."""
        try:
            async with asyncio.timeout_at(begun + self._patience):
                while reply[0] == b"unknown":
                    account, window = limits[reply[1]][:2]
                    await self._seed(tenant, account, window)
                    reply = await self._ask(command)
                return reply
        except TimeoutError:
            raise StoreError("Redis does not know the account, and the archive did not say in time") from None

    async def _seed(self, tenant: str, account: str, window: int) -> None:
        """Once at a time for each account, whoever asks."""
        key = f"{self._base(tenant)}a:{account}:{window}"
        task = self._seeds.get(key)
        if task is None:
            task = self._seeds[key] = asyncio.create_task(self._fill(key, tenant, account, window))
            task.add_done_callback(lambda done: self._filled(key, done))
        await asyncio.shield(task)

    def _filled(self, key: str, task: asyncio.Task[None]) -> None:
        del self._seeds[key]
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more

    async def _fill(self, key: str, tenant: str, account: str, window: int) -> None:
        """See mark.lua."""
        outbox = self._base(tenant) + "o"
        try:
            async with asyncio.timeout(self._patience):
                await self._drainer.remember(tenant, again=True)  # before any account of the tenant is there
                while True:
                    what, *mark = await self._ask(MARK.call((key, outbox), self._nonce(), f"{account}:{window}", RUN))
                    if what == b"there":
                        return
                    if what == b"marked":
                        was = await self._archive.balance(tenant, account, window)
                        filled = SEED.call((key,), mark[0], was.spent, was.tokens_spent, was.credit, RUN)
                        if await self._ask(filled):
                            return
                    else:  # calls of this account are on their way to the archive
                        self._drainer.wake(tenant)
                        await asyncio.sleep(_AGAIN)
        except TimeoutError:
            raise StoreError("the archive did not say in time what the account has spent") from None

    # -- the end -------------------------------------------------------------------------------------------------------

    async def waiting(self) -> int:
        """How many settled calls are in Redis and not in the archive yet. They take Redis' memory while SQL is down."""
        return await self._drainer.waiting()

    async def close(self) -> None:
        """See Ledger. Moves to the archive what it can within some seconds; the rest waits in Redis for the next process."""
        await self._drainer.close()
        for task in list(self._seeds.values()):
            task.cancel()
        if self._batches is not None:
            await self._batches.close()
        await self._wire.close()


def _flag(yes: bool) -> str:
    return "1" if yes else "0"


def _accounts(base: str, limits: Sequence[Limit]) -> tuple[list[str], list[str | int]]:
    """The keys of the limits' accounts, and of each the most money and tokens, as the scripts have it."""
    keys: list[str] = []
    most: list[str | int] = []
    for account, window, money, tokens in limits:
        keys.append(f"{base}a:{account}:{window}")
        most.append("" if money is None else money)
        most.append("" if tokens is None else tokens)
    return keys, most


def _granted(reply: Any, hold_id: str, tenant: str, accounts: tuple[tuple[str, int], ...]) -> Granted:
    _, money, tokens, expires, spent = reply
    return Granted(hold_id, tenant, int(money), int(tokens), float(expires), accounts, int(spent))


def _refusal(reply: Any, limits: Sequence[Limit]) -> Refusal:
    _, at, what, spent, held, credit = reply
    return Refusal(limits[at], "money" if what == b"money" else "tokens", int(spent), int(held), int(credit))
