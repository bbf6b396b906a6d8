"""The dashboard against hostile words: names, models and errors that are markup stay words, and the policy has no gap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from ..servers import KEY, Server, fetch, shown
from .browser import HOSTILE, Seat, admin, chat, chromium, expect, gateway, seat

pytestmark = pytest.mark.real

VIEWS = ("overview", "calls", "tenants", "tenants/team", "prices")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway whose tenant, key, adjustment and called models have names that are markup."""
    with gateway(tmp_path_factory.mktemp("gateway")) as server:
        admin(server, "tenants/team/keys", {"name": HOSTILE})
        admin(server, "tenants/team/adjustments", {"amount_usd": 1, "reason": HOSTILE})
        admin(server, "tenants/team", {"name": HOSTILE}, method="PUT")
        assert chat(server, "hello").status == 200
        assert chat(server, HOSTILE, model=HOSTILE).status == 400
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    with shown(started) as server:
        yield server


@pytest.fixture
def operator(browser: Any, server: Server) -> Iterator[Seat]:
    with seat(browser, server.url) as one:
        yield one


def elements(page: Any) -> Any:
    """What would be there if a name had become markup."""
    return page.evaluate(
        "[document.querySelectorAll('img, main script, iframe, object').length, window.struck ?? null]"
    )


def test_names_that_are_markup_are_shown_as_words(operator: Seat) -> None:
    """In every view they are there to read, and none became an element or ran."""
    operator.sign_in()
    page = operator.page
    for view in VIEWS:
        operator.go(view)
        expect(page.locator("main .view").get_by_role("region").first).to_be_visible()
        if view != "prices":
            expect(page.get_by_text(HOSTILE).locator("visible=true").first).to_be_visible()
        assert elements(page) == [0, None], view
    operator.go("tenants/team")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("dialog").get_by_label("Name")).to_have_value(HOSTILE)
    page.keyboard.press("Escape")
    operator.row(HOSTILE).get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_contain_text(HOSTILE)
    assert elements(page) == [0, None]


@pytest.mark.parametrize("view", ["calls/", "tenants/", ""])
def test_an_address_that_is_markup_is_only_looked_up(operator: Seat, view: str) -> None:
    """A link that somebody was sent: what it names is not there, and is said in words."""
    operator.sign_in(view=view + quote(HOSTILE, safe=""))
    page = operator.page
    expect(page.get_by_role("alert").or_(page.get_by_text("There is no such view")).first).to_be_visible()
    assert elements(page) == [0, None]


def test_an_error_s_words_stay_words(operator: Seat) -> None:
    """A refusal that holds markup, from whoever stands between, is text."""
    operator.sign_in(view="prices")
    page = operator.page
    # The gateway's own refusals never say back what was sent: this is what a hostile one would look like.
    told = '{"error": {"message": "<img src=x onerror=window.struck=1>", "param": "<b>"}}'
    page.route(
        "**/dashboard/api/tenants?*",
        lambda route: route.fulfill(status=422, body=told, content_type="application/json"),
    )
    page.get_by_role("link", name="Tenants").click()
    expect(page.get_by_role("alert")).to_contain_text("<img src=x onerror=window.struck=1>")
    assert elements(page) == [0, None]


def test_the_policy_stops_a_script_that_got_in(operator: Seat) -> None:
    """Inline scripts, handlers, styles and eval are stopped by the browser: and this file's nets do catch that."""
    operator.sign_in()
    page = operator.page
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.struck = 1'}))"
    )
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.struck = 1\" style=\"color: red\" id=b>b</b>')"
    )
    page.evaluate("document.getElementById('b').click()")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2:9/x.png'}))")
    page.wait_for_timeout(300)
    assert page.evaluate("window.struck ?? null") is None
    stopped = {breach.split()[0] for breach in operator.breaches}
    assert {"script-src-elem", "script-src-attr", "style-src-attr", "img-src"} <= stopped
    assert any("Content Security Policy" in error for error in operator.errors)
    operator.breaches.clear()
    operator.errors.clear()
    operator.asked = [url for url in operator.asked if "127.0.0.2" not in url]


def test_the_page_and_its_files_come_with_the_strict_policy(server: Server) -> None:
    """No 'unsafe-', no other host, no frame; files have the right type and none is guessed."""
    page = fetch(f"{server.url}/dashboard", key=None)
    assert page.status == 200
    for attribute in (b" style=", b" onclick=", b" onload=", b"<style", b"javascript:", b"http://", b"//cdn"):
        assert attribute not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
    for path in ("", "/static/app.js", "/static/style.css", "/static/uplot.js", "/static/LICENSE.uplot.txt"):
        answer = fetch(f"{server.url}/dashboard{path}", key=None)
        assert answer.status == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_change_without_the_session_s_token_is_refused(operator: Seat, server: Server) -> None:
    """The cookie alone, which a browser sends by itself, changes nothing."""
    operator.sign_in()
    status = operator.page.evaluate(
        "async () => (await fetch('/dashboard/api/tenants', {method: 'POST', body: '{\"id\": \"forged\"}',"
        " headers: {'content-type': 'application/json'}})).status"
    )
    assert status == 403
    assert "forged" not in [tenant["id"] for tenant in admin(server, "tenants")["data"]]


def test_nothing_of_the_dashboard_lets_a_tenant_reach_another(operator: Seat) -> None:
    """By hand, with the tenant's own cookie, for what another has and for what admins have."""
    operator.sign_in(KEY)
    statuses = operator.page.evaluate(
        "async () => Promise.all(['tenants', 'tenants/other', 'tenants/other/records', 'tenants/team/keys',"
        " 'overview?tenant=other', 'traces?tenant=other', 'stats?tenant=other']"
        ".map(async (path) => (await fetch('/dashboard/api/' + path)).status))"
    )
    assert set(statuses) <= {403, 404}
