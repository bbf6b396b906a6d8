"""``/health`` and ``/ready``: what a probe costs, what it tells whom, and when a process is pulled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.admin.health import Down, Part, Readiness
from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.draining import Life, drain
from asgi_llm_gateway.errors import StoreError

from ..conversation import ask
from ..upstream import until
from .conftest import ADMIN_KEY, Office, bearer


class Dependency:
    """Something that is there, away, slow or lying, as the test says."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.looks = self.running = self.most = 0

    async def check(self) -> None:
        """A look at it."""
        self.looks += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            if self.fault is not None:
                raise self.fault
        finally:
            self.running -= 1

    def part(self, name: str = "store", *, counts: bool = True, fails: Literal["closed", "local"] = "closed") -> Part:
        """It as a part."""
        return Part(name, self.check, fails, counts)


def admin(office: Office, ready: Readiness | None) -> Any:
    """The admin app with that readiness."""
    return Admin(admin_key=ADMIN_KEY, tenants=office.open, ledger=office.open, log=office.open, ready=ready,
                 damping=Damping(longest=0)).app()  # fmt: skip


async def probe(app: Any, key: str | None = None, *, method: str = "GET") -> tuple[int, Any]:
    """``/ready`` asked: status and body."""
    answer = await ask(app, None, "/ready", method=method, headers=[bearer(key)] if key else [])
    assert answer.headers["cache-control"] == "no-store"
    return answer.status, answer.json() if answer.body else None


Made = Callable[..., Awaitable[Any]]


async def test_a_process_is_ready_when_its_parts_answer(office: Office) -> None:
    """200 and one word, for everybody; HEAD as well."""
    app = admin(office, Readiness([Dependency().part()]))
    assert await probe(app) == (200, {"status": "ready"})
    assert (await probe(app, method="HEAD"))[0] == 200


async def test_details_are_for_an_admins_key_only(office: Office) -> None:
    """A tenant's key gets the one word, and a wrong key is refused like anywhere, lest it be guessed here."""
    down = Dependency()
    down.fault = StoreError("no answer from postgres://user:hunter22@db")
    app = admin(office, Readiness([down.part()]))
    await office.team("team")
    tenants = (await office.key("team"))["key"]
    assert await probe(app) == (503, {"status": "not_ready"})
    assert await probe(app, tenants) == (503, {"status": "not_ready"})
    wrong = await ask(app, None, "/ready", method="GET", headers=[bearer("x" * 40)])
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
    status, body = await probe(app, ADMIN_KEY)
    assert status == 503
    (part,) = body["parts"]
    assert part | {"since": ""} == {"name": "store", "state": "down", "fails": "closed", "counts": True, "since": "",
                                    "error": "no answer from postgres://[hidden]db"}  # fmt: skip
    assert part["since"].endswith("Z")


async def test_a_store_that_is_away_keeps_nobody_from_the_one_word(office: Office) -> None:
    """Whose stored key it is can't be known then: the answer comes without details, and is no 500."""
    await office.team("team")
    key = (await office.key("team"))["key"]

    async def away() -> Any:
        raise StoreError("away")

    app = Admin(admin_key=ADMIN_KEY, tenants=away, ledger=away, log=away, ready=Readiness([])).app()
    assert await probe(app, key) == (200, {"status": "ready"})
    assert await probe(app, ADMIN_KEY) == (200, {"status": "ready", "parts": []})


async def test_other_methods_are_405_and_health_asks_nothing(office: Office) -> None:
    """In the envelope, naming what is allowed."""
    part = Dependency()
    app = admin(office, Readiness([part.part()]))
    answer = await ask(app, None, "/ready", method="POST")
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    answer = await ask(app, None, "/health", method="GET")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert part.looks == 0


async def test_a_blip_does_not_pull_a_process_that_was_ready() -> None:
    """Within its grace a part that answered before may be away; one that stays away pulls it; its return is seen at once."""
    part = Dependency()
    ready = Readiness([part.part()], grace=0.3, interval=0.01)
    assert await ready.status() == "ready"
    part.fault = StoreError("away")
    await asyncio.sleep(0.02)
    assert await ready.status() == "ready"
    assert ready.details()[0]["state"] == "failing"
    began = time.monotonic()
    while await ready.status() == "ready":  # noqa: ASYNC110 - it is what probes do
        await asyncio.sleep(0.01)
    assert time.monotonic() - began > 0.2
    assert ready.details()[0]["state"] == "down"
    part.fault = None
    await asyncio.sleep(0.02)
    assert await ready.status() == "ready"
    assert ready.details()[0] | {"since": ""} == {"name": "store", "state": "ok", "fails": "closed", "counts": True,
                                                  "since": "", "error": None}  # fmt: skip


async def test_a_part_that_never_answered_has_no_grace() -> None:
    """A new process with a wrong password takes no calls from those that work."""
    part = Dependency()
    part.fault = StoreError("wrong password")
    assert await Readiness([part.part()], grace=1000).status() == "not_ready"


async def test_a_part_that_calls_can_do_without_pulls_nobody() -> None:
    """Redis of rate limit and cache, OPA where it is not named: told to admins, and that is all."""
    part = Dependency()
    part.fault = OSError(111, "Connection refused")
    ready = Readiness([part.part("rate_limit", counts=False, fails="local")], grace=0)
    assert await ready.status() == "ready"
    assert (ready.details()[0]["state"], ready.details()[0]["error"]) == ("down", "Connection refused")


async def test_probes_do_not_pile_up_on_a_part_that_hangs() -> None:
    """A hundred probes at once: one look, each answered in time; the next round does not ask a second time."""
    part, other = Dependency(), Dependency()
    ready = Readiness([part.part("ledger"), other.part("store")], grace=0, interval=0.05, timeout=0.1)
    assert await ready.status() == "ready"
    part.gate.clear()
    await asyncio.sleep(0.06)
    began = time.monotonic()
    found = await asyncio.gather(*(ready.status() for _ in range(100)))
    assert time.monotonic() - began < 5
    assert "draining" not in found  # where the machine is busy, some are answered by what was known before
    for _ in range(3):
        await asyncio.sleep(0.06)
        last = await ready.status()
    assert last == "not_ready"
    assert (part.most, part.looks) == (1, 2)
    assert other.looks > 3
    assert ready.details()[0]["error"] == "it did not answer within 0.1 s"
    part.gate.set()
    await until(lambda: part.running == 0)
    await asyncio.sleep(0.06)
    assert await ready.status() == "ready"


async def test_what_was_found_is_good_for_a_while() -> None:
    """Probes within the interval look at nothing."""
    part = Dependency()
    ready = Readiness([part.part()], interval=60)
    for _ in range(50):
        assert await ready.status() == "ready"
    assert part.looks == 1


async def test_before_the_start_is_over_and_from_the_end_on_nobody_is_ready() -> None:
    """``not_ready`` while the lifespan opens what it needs, ``draining`` from the signal on, whatever the parts say."""
    ready = Readiness([Dependency().part()])
    life = Life(signals=False)
    assert await ready.status() == "not_ready"
    life.started()
    assert await ready.status() == "ready"
    drain().refuse()
    assert await ready.status() == "draining"
    await life.end()
    assert await ready.status() == "ready"


async def test_each_change_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Away and back: two lines, however many probes saw it."""
    part = Dependency()
    ready = Readiness([part.part()], interval=0.001)
    for fault in (None, StoreError("away"), StoreError("away"), None, None):
        part.fault = fault
        for _ in range(3):
            await asyncio.sleep(0.005)
            await ready.status()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["store does not answer: away", "store answers again"]


@given(faults=st.lists(st.sampled_from([None, "closed", "local"]), max_size=6), secret=st.text("abc123", min_size=9))
def test_only_parts_that_count_decide_and_no_error_tells_a_secret(faults: list[str | None], secret: str) -> None:
    """Whatever fails: not ready just where something that counts does, and no password in what is told of it."""

    async def check() -> None:
        parts, counted = [], False
        for at, fault in enumerate(faults):
            one = Dependency()
            if fault is not None:
                one.fault = (StoreError, Down, RuntimeError)[at % 3](f"redis://:{secret}@host is away")
            counted = counted or fault == "closed"
            parts.append(one.part(f"part{at}", counts=fault != "local"))
        ready = Readiness(parts)
        assert await ready.status() == ("not_ready" if counted else "ready")
        assert secret not in str(ready.details())
        assert [part["state"] == "down" for part in ready.details()] == [fault is not None for fault in faults]

    asyncio.run(check())
