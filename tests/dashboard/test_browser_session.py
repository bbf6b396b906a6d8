"""Signing in and out of the dashboard, in a real browser: what is shown, and where the key is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..servers import KEY, Server, environment, running, shown, uvicorn
from .browser import ADMIN_KEY, OTHER_KEY, Seat, admin, chat, chromium, expect, gateway, seat

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gateway(tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    with shown(started) as server:
        yield server


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Seat]:
    with seat(browser, server.url) as one:
        yield one


def test_an_admin_signs_in_and_sees_everything(visitor: Seat) -> None:
    """The form, then the overview of all tenants; the focus is on the new view's heading, and the title says which it is."""
    visitor.sign_in()
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page).to_have_title("Overview | LLM gateway")
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Overview", "Calls", "Tenants", "Prices"])
    expect(page.get_by_role("navigation").get_by_role("link", name="Overview")).to_have_attribute(
        "aria-current", "page"
    )
    expect(page.get_by_text("Admin", exact=True)).to_be_visible()
    expect(page.get_by_role("region", name="Budgets, table").get_by_role("row")).to_have_count(3)


def test_a_wrong_key_is_said_in_words_and_can_be_corrected(visitor: Seat) -> None:
    """What was typed stays, the field is marked and has the focus; the right key then works."""
    visitor.open()
    page, field = visitor.page, visitor.page.get_by_label("Key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("Enter a key.")
    field.fill("no-key-of-this-gateway-whatever-it-may-be")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown, revoked or expired")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value("no-key-of-this-gateway-whatever-it-may-be")
    field.fill(ADMIN_KEY)
    field.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


def test_the_key_is_kept_nowhere_that_a_script_or_a_link_could_take_it(visitor: Seat) -> None:
    """Not in an address, a storage, a readable cookie or the page; the session's cookie is for the dashboard alone."""
    visitor.sign_in(view="calls")
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Calls")
    kept = page.evaluate(
        "async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state,"
        " await indexedDB.databases(), await caches.keys(), document.documentElement.outerHTML,"
        " [...document.querySelectorAll('input')].map((field) => field.value)])"
    )
    assert ADMIN_KEY not in kept
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert not any(ADMIN_KEY in url for url in visitor.asked)
    [cookie] = visitor.context.cookies()
    assert (cookie["name"], cookie["path"]) == ("llmgw_session", "/dashboard")
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert ADMIN_KEY not in cookie["value"]


def test_a_reload_keeps_the_session_and_the_view(visitor: Seat) -> None:
    """The cookie is enough: the view of the address comes back, and writes work again."""
    visitor.sign_in(view="tenants")
    visitor.page.reload()
    expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Tenants")
    visitor.page.get_by_role("link", name="Prices").click()
    expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Prices")
    visitor.page.go_back()
    expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Tenants")


def test_signing_out_ends_the_session_at_the_gateway(visitor: Seat) -> None:
    """The form again, with the focus in it; the cookie that was is good for nothing."""
    visitor.sign_in()
    [cookie] = visitor.context.cookies()
    visitor.page.get_by_role("button", name="Sign out").click()
    expect(visitor.page.get_by_text("You are signed out.")).to_be_visible()
    expect(visitor.page.get_by_label("Key")).to_be_focused()
    expect(visitor.page.get_by_role("navigation")).to_be_hidden()
    visitor.context.add_cookies([{name: cookie[name] for name in ("name", "value", "domain", "path")}])
    visitor.page.reload()
    expect(visitor.page.get_by_label("Key")).to_be_visible()


def test_a_tenant_s_key_shows_its_own_and_nothing_else(visitor: Seat, server: Server) -> None:
    """No list of tenants, no other's numbers, nothing to change; another tenant's address is refused in words."""
    assert chat(server, "one of the team's").status == 200
    assert chat(server, "one of the other's", key=OTHER_KEY, model="echo").status == 200
    visitor.sign_in(OTHER_KEY)
    page = visitor.page
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(
        ["Overview", "Calls", "My tenant", "Prices"]
    )
    expect(page.get_by_label("Tenant", exact=True)).to_have_count(0)
    expect(page.get_by_role("heading", name="By tenant")).to_have_count(0)
    page.get_by_role("link", name="My tenant").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("My tenant: other")
    expect(page.get_by_role("region", name="Records, table")).to_be_visible()
    for name in ("Edit", "Disable", "Delete", "New key", "New adjustment"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    visitor.go("calls")
    expect(page.get_by_role("heading", level=1)).to_have_text("Calls")
    expect(page.get_by_role("region", name="Calls").get_by_role("row")).to_have_count(2)
    visitor.go("tenants/team")
    expect(page.get_by_role("alert")).to_contain_text("A tenant's key may read its own tenant")
    visitor.go("tenants")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such view")


def test_a_session_ends_with_its_key(visitor: Seat, server: Server) -> None:
    """Once the key is revoked, the next thing that is asked for shows the form, and says why."""
    made = admin(server, "tenants/team/keys", {"name": "short"})
    visitor.sign_in(made["key"])
    admin(server, f"tenants/team/keys/{made['id']}", method="DELETE")
    link = visitor.page.get_by_role("navigation").get_by_role("link")
    for _ in range(60):  # the gateway may remember a good key for some seconds
        if not link.first.is_visible():
            break
        link.nth(1).click()
        visitor.page.wait_for_timeout(200)
        if link.first.is_visible():
            link.nth(0).click()
            visitor.page.wait_for_timeout(200)
    expect(visitor.page.get_by_text("Your session has ended. Sign in again.")).to_be_visible()
    expect(visitor.page.get_by_label("Key")).to_be_visible()


def test_a_gateway_that_is_gone_is_said_in_words(browser: Any, tmp_path: Path) -> None:
    """What was shown stays, and the page says that nobody answers."""
    with gateway(tmp_path) as gone, seat(browser, gone.url) as visitor:
        visitor.sign_in(KEY)
        gone.end()
        visitor.page.get_by_role("button", name="Refresh").click()
        expect(visitor.page.get_by_role("alert")).to_contain_text("The gateway does not answer.")
        visitor.errors.clear()  # the browser's own words on the connection


def test_it_works_below_a_prefix_of_a_host_app(browser: Any, tmp_path: Path) -> None:
    """Every link and call stays below the prefix, with or without a slash behind it, and so does the cookie."""
    (tmp_path / "host.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.routing import Mount\n"
        "from asgi_llm_gateway import create_app\n"
        "app = Starlette(routes=[Mount('/team/llm', create_app())])\n"
    )
    env = environment(tmp_path, GATEWAY_ADMIN_KEY=ADMIN_KEY)
    with (
        uvicorn("host:app", env, tmp_path, "--app-dir", str(tmp_path)) as host,
        seat(browser, f"{host.url}/team/llm") as visitor,
    ):
        visitor.page.goto(f"{host.url}/team/llm/dashboard/")
        expect(visitor.page.get_by_label("Key")).to_be_visible()
        visitor.sign_in(view="tenants")
        visitor.page.get_by_role("link", name="team", exact=True).click()
        visitor.page.get_by_role("button", name="New key").click()
        visitor.page.get_by_role("dialog").get_by_role("button", name="Create").click()
        expect(visitor.page.get_by_role("dialog", name="The new key")).to_be_visible()
        [cookie] = visitor.context.cookies()
        assert cookie["path"] == "/team/llm/dashboard"
        assert all(url.startswith((f"{host.url}/team/llm/dashboard", "data:")) for url in visitor.asked)


def test_without_an_admin_key_the_page_says_how_to_set_one(browser: Any, tmp_path: Path) -> None:
    """It is closed to tenants' keys too, as the admin API is, and tells what opens it."""
    env = environment(tmp_path, PORT="0", ENABLE_DASHBOARD="true")
    serve = [sys.executable, "-m", "asgi_llm_gateway", "serve"]
    with running(serve, env, tmp_path) as server, seat(browser, server.url) as visitor:
        visitor.open()
        visitor.page.get_by_label("Key").fill(KEY)
        visitor.page.get_by_role("button", name="Sign in").click()
        expect(visitor.page.get_by_role("alert")).to_contain_text("Set GATEWAY_ADMIN_KEY")
