"""The dashboard over a store in memory, with a clock that tests set; and somebody with a browser's cookies, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.dashboard.app import POLICY, Dashboard
from asgi_llm_gateway.dashboard.prices import PriceList
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Limit, Target
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.stores.sessions import MemorySessions
from asgi_llm_gateway.tracelog import TraceLog
from asgi_llm_gateway.traces.memory import MemoryTraces

from ..conversation import JSON, Answer, ask

ADMIN_KEY = "an-admin-key-of-thirty-two-characters-or-more"
NOON = 1_792_065_600.0  # 2026-10-15 12:00 UTC


class Somebody:
    """A browser: it keeps the cookie that it was given, and sends the session's token with each change.

    Attributes:
        cookie: The session's cookie; ``None`` without one.
        set: What the last ``set-cookie`` said, by attribute.
        csrf: The session's token.
        answers: All answers that it got.
    """

    def __init__(self, app: Any, *, root: str = "", scheme: str = "http") -> None:
        self.app = app
        self.root = root
        self.scheme = scheme
        self.cookie: str | None = None
        self.set: dict[str, str] = {}
        self.csrf: str | None = None
        self.answers: list[Answer] = []

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] = {}, cookie: str | None = None
    ) -> Answer:
        """A request below ``/dashboard``; every answer is looked at for what all must have."""
        sent = {"host": "gateway.test", **headers}
        cookie = self.cookie if cookie is None else cookie
        if cookie is not None:
            sent["cookie"] = f"theme=dark; llmgw_session={cookie}"
        if self.csrf is not None and method not in ("GET", "HEAD"):
            sent.setdefault("x-csrf-token", self.csrf)
        path, _, query = path.partition("?")
        pairs = [JSON, *((name.encode(), value.encode()) for name, value in sent.items())]
        answer = await ask(
            self.app, body, f"{self.root}/dashboard{path}", method=method, headers=pairs, root_path=self.root,
            query_string=quote(query, safe="=&%").encode(), scheme=self.scheme,
        )  # fmt: skip
        self.answers.append(answer)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path.startswith("/api"):
            assert answer.headers["cache-control"] == "no-store"
        if "set-cookie" in answer.headers:
            self._take(answer.headers["set-cookie"])
        return answer

    def _take(self, told: str) -> None:
        pair, *attributes = told.split("; ")
        self.set = {part.partition("=")[0]: part.partition("=")[2] for part in attributes}
        name, _, value = pair.partition("=")
        assert name == "llmgw_session"
        self.cookie = value or None

    async def get(self, path: str, **more: Any) -> Answer:
        """A GET of the API."""
        return await self.ask("GET", f"/api/{path}", **more)

    async def sign_in(self, key: str, **more: Any) -> Answer:
        """Sign in."""
        answer = await self.ask("POST", "/api/login", {"key": key}, **more)
        if answer.status == 200:
            self.csrf = answer.json()["csrf"]
        return answer


class Desk:
    """The dashboard, its store, and its clock."""

    def __init__(self, folder: Path, admin_key: str | None = ADMIN_KEY) -> None:
        self.store = MemoryStore()
        self.ended = MemorySessions()
        self.traces = MemoryTraces(TraceLog(10_000))
        self.now = NOON
        self.folder = folder
        self.admin_key = admin_key
        self._numbers = count(1)
        self.app = self.worker()

    async def _open(self) -> MemoryStore:
        return self.store

    async def _kept(self) -> MemoryTraces:
        return self.traces

    async def _sessions(self) -> MemorySessions:
        return self.ended

    def worker(self, admin_key: str | None = None, damping: Damping | None = None) -> Any:
        """One more process, as it were, over the same store."""
        key = self.admin_key if admin_key is None else admin_key
        admin = Admin(
            admin_key=key, tenants=self._open, ledger=self._open, log=self._open, traces=self._kept, clock=lambda: self.now,
            damping=damping or Damping(longest=0),
        )  # fmt: skip
        prices = PriceList(PriceTable(), ("echo",), lambda name: [Target("echo", name)] if name == "echo" else ())
        return Dashboard(
            admin, admin_key=key, folder=self.folder, ended=self._sessions, prices=prices, clock=lambda: self.now
        ).app()

    def somebody(self, app: Any = None, **more: Any) -> Somebody:
        """A browser before it."""
        return Somebody(self.app if app is None else app, **more)

    async def admin(self) -> Somebody:
        """An admin who is signed in."""
        one = self.somebody()
        assert (await one.sign_in(ADMIN_KEY)).status == 200
        return one

    async def team(self, tenant: str = "team", **fields: Any) -> tuple[str, str]:
        """A tenant with a key: its id and its secret."""
        admin = await self.admin()
        made = await admin.ask("POST", "/api/tenants", {"id": tenant, **fields})
        assert made.status in (201, 409), made.body
        key = await admin.ask("POST", f"/api/tenants/{tenant}/keys", {})
        assert key.status == 201, key.body
        return key.json()["id"], key.json()["key"]

    async def settle(self, tenant: str = "team", **fields: Any) -> None:
        """Book a call, as the budget middleware would."""
        hold = await self.store.hold(
            tenant, hold_id=f"call-{next(self._numbers)}", limits=(Limit("", 0, None, None),), least=Amount(0, 0),
            wanted=Amount(10**15, 10**9), now=self.now, ttl=600,
        )  # fmt: skip
        assert isinstance(hold, Hold)
        record = CallRecord(hold=hold.id, tenant=tenant, **{"started": self.now, "ended": self.now + 1.5, **fields})
        assert await self.store.settle(hold, record)
