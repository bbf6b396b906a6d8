"""The pictures of the dashboard in docs/images: ``python -m tests.dashboard.screenshots [FOLDER]``.

A real gateway serves real calls; their times are then spread over a day in its database, so that the charts have a course.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..servers import ROOT, Server, environment, running
from .browser import ADMIN_KEY, Seat, admin, chat, chromium, expect, seat

DAY = 86_400.0
CALLS = 400
FILE = """
[providers.slow]
type = "echo"
delay_ms = 12

[models.small]
targets = ["slow/echo"]
usd_per_million_in = 150
usd_per_million_out = 600

[models.large]
targets = ["slow/echo"]
usd_per_million_in = 2500
usd_per_million_out = 10000
"""
TENANTS: dict[str, dict[str, Any]] = {
    "research": {"name": "Research", "budget_usd": 25, "budget_period": "monthly", "rate_requests": 1000},
    "support": {"name": "Support desk", "budget_usd": 4, "budget_period": "monthly"},
    "web-shop": {"name": "Web shop", "budget_usd": 12, "budget_period": "weekly", "allowed_models": ["small"]},
}
WORDS = "the gateway holds what a call can cost before it goes out and settles what it did cost before its answer ends"


def main() -> None:
    """Take them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        env = environment(
            Path(place), file=FILE, GATEWAY_ADMIN_KEY=ADMIN_KEY, PORT="0", ENABLE_CACHE="true", LOG_CALLS="false"
        )
        serve = [sys.executable, "-m", "asgi_llm_gateway", "serve"]
        with running(serve, env, Path(place)) as server:
            load(server)
        spread(Path(place) / "data")
        with running(serve, env, Path(place)) as server, chromium() as browser:
            for scheme in ("light", "dark"):
                with seat(browser, server.url, color_scheme=scheme, viewport={"width": 1180, "height": 760}) as visitor:
                    take(visitor, folder, scheme)
            with seat(browser, server.url, viewport={"width": 360, "height": 700}) as visitor:
                visitor.sign_in()
                expect(visitor.page.get_by_role("heading", name="Budgets")).to_be_visible()
                picture(visitor, folder / "dashboard-small-screen.png")


def load(server: Server) -> None:
    """Calls of all kinds: answered, from the cache, as streams, refused."""
    dice = random.Random(7)
    words = WORDS.split()
    keys = {}
    for tenant, fields in TENANTS.items():
        admin(server, "tenants", {"id": tenant, **fields})
        keys[tenant] = admin(server, f"tenants/{tenant}/keys", {"name": "production", "expires_in_seconds": 90 * DAY})[
            "key"
        ]
    admin(server, "tenants/research/keys", {"name": "notebooks", "budget_usd": 5})
    admin(server, "tenants/research/adjustments", {"amount_usd": 5, "reason": "workshop in November"})
    for number in range(CALLS):
        tenant = dice.choices(list(TENANTS), (5, 3, 2))[0]
        model = "large" if tenant == "research" and dice.random() < 0.6 else "small"
        if dice.random() < 0.02:
            model = "not-there"
        asked = " ".join(dice.choices(words, k=dice.randint(4, 60))) if number % 9 else "what are your opening hours"
        chat(
            server,
            asked,
            model=model,
            key=keys[tenant],
            temperature=0,
            stream=number % 3 == 0,
            max_tokens=dice.randint(20, 200),
        )


def spread(data: Path) -> None:
    """Move the calls back over the last day: more of them by day than by night."""
    [path] = data.glob("*.db")
    now = time.time()
    dice = random.Random(7)
    with sqlite3.connect(path) as base:
        rows = base.execute("SELECT request_id FROM traces UNION SELECT request_id FROM records").fetchall()
        for (request,) in rows:
            ago = dice.choice((dice.gauss(0.3, 0.12), dice.gauss(0.7, 0.1))) * DAY
            start = now - min(DAY - 900, max(60, ago))
            base.execute(
                "UPDATE records SET ended = ? + ended - started, started = ? WHERE request_id = ?",
                (start, start, request),
            )
            base.execute("UPDATE traces SET started = ? WHERE request_id = ?", (start, request))


def take(visitor: Seat, folder: Path, scheme: str) -> None:
    """Four views."""
    page = visitor.page
    visitor.sign_in()
    expect(page.get_by_role("heading", name="Budgets")).to_be_visible()
    picture(visitor, folder / f"dashboard-overview-{scheme}.png")
    visitor.go("calls")
    rows = page.get_by_role("region", name="Calls").get_by_role("row")
    expect(rows.nth(20)).to_be_visible()
    picture(visitor, folder / f"dashboard-calls-{scheme}.png")
    rows.filter(has_text="large").filter(has_text="miss").first.get_by_role("link").click()
    expect(page.get_by_role("region", name="Steps of")).to_be_visible()
    picture(visitor, folder / f"dashboard-call-{scheme}.png")
    visitor.go("tenants/research")
    expect(page.get_by_role("heading", name="Calls as booked")).to_be_visible()
    picture(visitor, folder / f"dashboard-tenant-{scheme}.png")


def picture(visitor: Seat, path: Path) -> None:
    """What is on the screen, without the words that fade."""
    visitor.page.evaluate("document.getElementById('status').textContent = ''")
    visitor.page.mouse.move(0, 0)
    visitor.page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path}: {size // 1024} KiB")
    assert size < 150_000, "too large for the repository"


if __name__ == "__main__":
    main()
