"""The dashboard of a real gateway in a real, headless Chromium; each page's errors and breaches are kept, and none may be left.

Playwright drives Debian's Chromium. All modules that use it are of plain functions: its loop runs while they do.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from ..servers import KEY, Reply, Server, environment, fetch, running

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="comes with the extra 'real'")
expect: Any = sync_api.expect

ADMIN_KEY = "an-admin-key-for-the-browser-tests-0123456789"
HOSTILE = "<img src=x onerror=window.struck=1><script>window.struck=1</script>"
FILE = f"""
[tenants.team]
name = '{HOSTILE}'
budget_usd = 5
budget_period = "monthly"
keys = ["${{TEAM_KEY}}"]

[tenants.other]
budget_usd = 0.01
keys = ["gw-other-key-for-the-tests"]

[models.dear]
targets = ["echo/echo"]
usd_per_million_in = 1000
usd_per_million_out = 2000
"""
OTHER_KEY = "gw-other-key-for-the-tests"

# Chromium reports a breach to the page alone; this hands it on. Scripts put in from outside are not bound by the policy.
WATCH = "addEventListener('securitypolicyviolation', (e) => window.breach(`${e.violatedDirective} ${e.blockedURI}`))"


@contextmanager
def gateway(folder: Path, **more: str) -> Iterator[Server]:
    """A gateway with an admin key, two tenants, and a model that costs something."""
    env = environment(folder, file=FILE, GATEWAY_ADMIN_KEY=ADMIN_KEY, PORT="0", **more)
    with running([sys.executable, "-m", "asgi_llm_gateway", "serve"], env, folder) as server:
        yield server


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """The browser; ``flags`` are more of its command line's."""
    path = shutil.which("chromium")
    assert path, "the browser tests need Chromium (Debian: apt-get install chromium; `make test-real` does)"
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox it starts as root, too; what it loads comes from this machine only.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", *flags]
        )
        try:
            yield browser
        finally:
            browser.close()


class Seat:
    """Somebody before the dashboard.

    Attributes:
        page: The page.
        errors: What scripts failed with, and what the console called an error.
        breaches: What the content security policy stopped.
        asked: The URLs that were asked for.
    """

    def __init__(self, context: Any, url: str) -> None:
        self.url = url
        self.errors: list[str] = []
        self.breaches: list[str] = []
        self.asked: list[str] = []
        context.set_default_timeout(15_000)
        context.expose_function("breach", lambda words: self.breaches.append(words))
        context.add_init_script(WATCH)
        self.context = context
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message: Any) -> None:
        # A refusal is an error to the browser; the page says it in words.
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.errors.append(message.text)

    def open(self, view: str = "") -> None:
        """Load the page."""
        self.page.goto(f"{self.url}/dashboard" + (f"#/{view}" if view else ""))

    def sign_in(self, key: str = ADMIN_KEY, view: str = "") -> None:
        """Load the page, sign in by hand, and wait for the view."""
        self.open(view)
        self.page.get_by_label("Key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("button", name="Sign out")).to_be_visible()

    def go(self, view: str) -> None:
        """Another view, by its address."""
        self.page.evaluate("view => { location.hash = '#/' + view }", view)

    def row(self, words: str) -> Any:
        """The row of a table that has these words."""
        return self.page.get_by_role("row").filter(has_text=words)

    def check(self) -> None:
        """Nothing failed, nothing was stopped, and nobody else was asked."""
        assert self.errors == [], self.errors
        assert self.breaches == [], self.breaches
        host = urlsplit(self.url).netloc
        assert {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")} <= {host}


@contextmanager
def seat(browser: Any, url: str, **options: Any) -> Iterator[Seat]:
    """A browser of its own: no cookie is shared. ``options`` are playwright's for a context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
    try:
        one = Seat(context, url)
        yield one
        one.check()
    finally:
        context.close()


def axe_script() -> str:
    """axe-core, which finds what keeps people out."""
    return (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


def barriers(page: Any) -> list[str]:
    """What axe finds wrong in the page as it is, by WCAG 2.2 A and AA and axe's own good practice."""
    page.evaluate(axe_script() + ";0")
    found = page.evaluate("axe.run()")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def chat(server: Server, words: str, *, model: str = "dear", key: str = KEY, **more: Any) -> Reply:
    """A call with that model."""
    body = {"model": model, "messages": [{"role": "user", "content": words}], **more}
    return fetch(f"{server.url}/v1/chat/completions", body, key=key)


def admin(server: Server, path: str, body: Any = None, **more: Any) -> Any:
    """The admin API's answer."""
    reply = fetch(f"{server.url}/api/{path}", body, key=ADMIN_KEY, **more)
    assert reply.status < 300, reply
    return reply.json() if reply.body else None


def tenant_view(tenant: str) -> str:
    """Where a tenant's page is."""
    return f"tenants/{quote(tenant, safe='')}"
