"""How commands reach Redis: one connection, or a cluster; batch by batch, within a time, and never a second too long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol, TypeVar

try:
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.connection import AbstractConnection, ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Broken
    from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("budgets in Redis need: pip install 'asgi-llm-gateway[redis]'", name=error.name) from None

from ..errors import StoreError
from .base import KEEP_LAPSED

KEEP_ENDED = 600
"""Seconds for which Redis remembers that a hold has ended, for verbs that are repeated because their answer was lost."""

KEEP_ACCOUNT = 40 * 86400
"""Seconds after its last use for which Redis keeps an account of a window that ends; then the archive has it."""

RUN = "{run}"
"""Stands in a command for the run of the server that it is sent to: another one after each restart and each failover."""

RUNS_KNOWN = 5.0
"""Seconds for which the runs of a cluster's nodes are taken for known; of a single server each connection knows it."""

Command = tuple[str | bytes | int, ...]
T = TypeVar("T")


class Script:
    """A script that the server keeps, and is then called by its digest."""

    __slots__ = ("digest", "source")
    all: dict[str, Script] = {}  # noqa: RUF012 - filled below, by digest

    def __init__(self, name: str) -> None:
        folder = files(__package__) / "lua"
        keep = f"local KEEP_LAPSED, KEEP_ENDED, KEEP_ACCOUNT = {KEEP_LAPSED:.0f}, {KEEP_ENDED}, {KEEP_ACCOUNT}\n"
        common, own = ((folder / f"{each}.lua").read_text("utf-8") for each in ("common", name))
        self.source = keep + common + own
        # SHA-1 is the name that Redis gives a script (EVALSHA); nothing is kept secret by it.
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        Script.all[self.digest] = self

    def call(self, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


HOLD, RAISE, RENEW, SETTLE, RELEASE, LAPSE = map(Script, ("hold", "raise", "renew", "settle", "release", "lapse"))
MARK, SEED, CREDIT, OUTBOX, DRAINED = map(Script, ("mark", "seed", "credit", "outbox", "drained"))


class Wire(Protocol):
    """Sends commands and gives back a reply for each; a reply that is an error is an exception in the list."""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip. Raises RedisError, OSError, StoreError."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


async def run(wire: Wire, commands: Sequence[Command], patience: float) -> list[Any]:
    """The replies to commands, in their order. Raises StoreError where there are none within ``patience`` seconds.

    A batch whose connection breaks is sent once more: its verbs may have been carried out, and all may be repeated.
    """
    try:
        async with asyncio.timeout(patience):
            try:
                replies = await wire.send(commands)
            except (Broken, OSError):
                replies = await wire.send(commands)
            # The server forgot its scripts (SCRIPT FLUSH, a new node): sent in full, it knows them from then on.
            forgotten = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if forgotten:
                again = await wire.send([_in_full(commands[at]) for at in forgotten])
                for at, reply in zip(forgotten, again, strict=True):
                    replies[at] = reply
            return replies
    except TimeoutError:
        raise StoreError(f"Redis did not answer within {patience:g} s") from None
    except (RedisError, OSError) as error:
        raise StoreError(f"Redis: {type(error).__name__}: {error}") from error


def _in_full(command: Command) -> Command:
    return ("EVAL", Script.all[str(command[1])].source, *command[2:])


class Single:
    """One server, one connection that all operations share."""

    def __init__(self, url: str, patience: float) -> None:
        # RESP2: nothing is pushed to us. No retries below us: they would add up. The time is limited by ``run``.
        self._pool = ConnectionPool.from_url(
            url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=patience, socket_timeout=None
        )
        self._connection: AbstractConnection | None = None
        self._run = b""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """See Wire."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            connection = await self._connect()
        try:
            replies = await self._pipeline(connection, commands)
        except BaseException:  # also where we are out of time: replies that come late would answer the wrong commands
            await self._hang_up()
            raise
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await self._hang_up()  # a primary that became a replica: its name may lead to the new primary by now
        return replies

    async def _connect(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._connection = connection
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await self._greet(connection)
        except BaseException:  # cancelled, too: a connection that is half made is of no use to the next batch
            await self._hang_up()
            raise
        return connection

    async def _greet(self, connection: AbstractConnection) -> None:
        """Load the scripts, and learn what it is that was connected to. Raises StoreError where money is not safe there."""
        loads: list[Command] = [("SCRIPT", "LOAD", script.source) for script in Script.all.values()]
        *_, info = await self._pipeline(connection, [*loads, ("INFO",)])
        facts = _facts(info)
        check_memory(facts)
        self._run = facts.get("run_id", "").encode()

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """See Wire."""
        await self._hang_up()
        await self._pool.aclose()

    async def _pipeline(self, connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
        await connection.send_packed_command(_packed(commands, self._run), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies


def _packed(commands: Sequence[Command], run: bytes) -> bytes:
    """Commands as they go over the wire: in a third of the time that redis-py takes, which was half of a batch's."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            if word is RUN:
                word = run
            elif type(word) is not bytes:
                word = str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def _facts(info: object) -> dict[str, str]:
    """What INFO says; nothing where we may not ask."""
    if not isinstance(info, bytes):
        return {}
    return dict(line.split(":", 1) for line in info.decode("utf-8", "replace").split("\r\n") if ":" in line)


def check_memory(facts: Mapping[str, object]) -> None:
    """Refuse a server that drops keys when it is full: what a tenant holds and has spent would be among them.

    Where only keys with an expiry are dropped (``volatile-*``), nothing is lost that the archive does not have.
    """
    if int(str(facts.get("maxmemory", 0))) and str(facts.get("maxmemory_policy", "")).startswith("allkeys"):
        raise StoreError("Redis drops keys when it is full: set its maxmemory-policy to noeviction")


class Plain(Single):
    """A server whose answers may be dropped when it is full, unlike money: its memory policy is not looked at.

    Args:
        scripts: Those that it is to know.
    """

    def __init__(self, url: str, patience: float, scripts: Sequence[Script] = ()) -> None:
        super().__init__(url, patience)
        self._scripts = scripts

    async def _greet(self, connection: AbstractConnection) -> None:
        if self._scripts:
            await self._pipeline(connection, [("SCRIPT", "LOAD", script.source) for script in self._scripts])


class Cluster:
    """A cluster, by redis-py's client: it knows which node has which slot, and follows where slots move."""

    def __init__(self, url: str, patience: float) -> None:
        self._client: RedisCluster = RedisCluster.from_url(
            url, protocol=2, socket_connect_timeout=patience, socket_timeout=patience
        )
        self._runs: dict[str, str] = {}  # by node
        self._asked = -math.inf

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """See Wire."""
        try:
            pipeline = self._client.pipeline()
            for command in commands:
                if RUN in command:
                    run = await self._run_of(str(command[3]))
                    command = tuple([run if word is RUN else word for word in command])
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)
        except BaseException:
            self._runs.clear()  # whoever did not answer may have begun again
            raise

    async def _run_of(self, key: str) -> str:
        """The run of the node that has the key. The client does not tell us of new connections, so we ask now and then."""
        now = asyncio.get_running_loop().time()
        if now - self._asked >= RUNS_KNOWN:
            self._runs.clear()
            self._asked = now
        await self._client.initialize()
        node = self._client.get_node_from_key(key)
        if node is None:
            raise StoreError("no node of the Redis cluster has the key")
        run = self._runs.get(node.name)
        if run is None:
            facts = await self._client.info(target_nodes=node)
            check_memory(facts)
            run = self._runs[node.name] = str(facts.get("run_id", ""))
        return run

    async def close(self) -> None:
        """See Wire."""
        await self._client.aclose()


def wire_to(url: str, patience: float) -> Wire:
    """A wire to ``redis://``, ``rediss://``, ``unix://``, or for a cluster ``redis+cluster://``, ``rediss+cluster://``."""
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return Cluster(f"{scheme.removesuffix('+cluster')}://{rest}", patience)
    return Single(url, patience)
