"""The dashboard for everybody: by keyboard alone, by ear (axe), on a small screen, in the dark, without motion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..servers import KEY, Server, shown
from .browser import ADMIN_KEY, Seat, admin, barriers, chat, chromium, expect, gateway, seat

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gateway(tmp_path_factory.mktemp("gateway")) as server:
        for words in ("one", "two", "three"):
            assert chat(server, words, stream=words == "two").status == 200
        assert chat(server, "nobody", model="no-such-model").status == 400
        admin(server, "tenants/team/adjustments", {"amount_usd": 1, "reason": "for a test"})
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    with shown(started) as server:
        yield server


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Seat]:
    with seat(browser, server.url) as one:
        yield one


def views(visitor: Seat) -> Iterator[str]:
    """Each view in turn, once it is there."""
    page = visitor.page
    for view, heading in (("overview", "Budgets"), ("calls", ""), ("tenants", "All tenants"),
                          ("tenants/team", "Calls as booked"), ("prices", "")):  # fmt: skip
        visitor.go(view)
        if heading:
            expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        expect(page.get_by_role("table").first).to_be_visible()
        yield view
        if view == "calls":
            page.get_by_role("region", name="Calls").get_by_role("link").first.click()
            expect(page.get_by_role("region", name="Steps of")).to_be_visible()
            yield "call"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_view(browser: Any, server: Server, scheme: str) -> None:
    """Names, contrasts, landmarks, headings and tables are as WCAG 2.2 AA has them; also while a dialog is open."""
    with seat(browser, server.url, color_scheme=scheme) as visitor:
        visitor.open()
        expect(visitor.page.get_by_label("Key")).to_be_visible()
        found = {"sign-in": barriers(visitor.page)}
        visitor.sign_in()
        page = visitor.page
        for view in views(visitor):
            if view == "overview":
                page.get_by_text("Numbers").first.click()
            found[view] = barriers(page)
            if view == "tenants/team":
                page.get_by_role("button", name="Edit").click()
                page.get_by_role("dialog").get_by_label("Budget, US dollars").fill("much")
                page.get_by_role("button", name="Save").click()
                found["form"] = barriers(page)
                page.get_by_role("button", name="Cancel").click()
        assert found == {view: [] for view in found}
        assert len(found) == 8


def test_axe_finds_what_is_wrong(visitor: Seat) -> None:
    """The net has no hole: a field without a name is found."""
    visitor.open()
    expect(visitor.page.get_by_label("Key")).to_be_visible()
    visitor.page.evaluate("document.querySelector('main').append(document.createElement('input'))")
    assert any(line.startswith("label:") for line in barriers(visitor.page))


def test_all_is_reached_by_the_keyboard_alone(visitor: Seat, server: Server) -> None:
    """Sign in, go to a tenant, make a key and close what shows it: Tab, Enter and Escape, and nothing else."""
    visitor.open()
    page = visitor.page
    expect(page.get_by_label("Key")).to_be_focused()
    page.keyboard.type(ADMIN_KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()

    def tab_to(target: Any) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if target.evaluate("(one) => one === document.activeElement"):
                width = target.evaluate(
                    "(one) => getComputedStyle(one).outlineStyle + getComputedStyle(one).outlineWidth"
                )
                assert width == "solid3px", "the focus is not seen"
                return
        raise AssertionError("the keyboard does not get there")

    page.get_by_role("navigation").get_by_role("link", name="Tenants").wait_for()
    page.locator("#skip").focus()
    tab_to(page.get_by_role("navigation").get_by_role("link", name="Tenants"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tenants")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    link = page.get_by_role("region", name="Tenants").get_by_role("link", name="team")
    link.wait_for()
    tab_to(link)
    page.keyboard.press("Enter")
    new = page.get_by_role("button", name="New key")
    new.wait_for()
    tab_to(new)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Name")).to_be_focused()
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Copy")).to_be_focused()
    tab_to(page.get_by_role("button", name="I have it"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    assert [key["name"] for key in admin(server, "tenants/team/keys")["data"]][-1] == "by hand"


def test_a_dialog_keeps_the_focus_and_gives_it_back(visitor: Seat) -> None:
    """Tab goes round inside, what lies behind can't be reached, and Escape returns to the button that opened it."""
    visitor.sign_in(view="tenants/team")
    page = visitor.page
    page.get_by_role("button", name="New adjustment").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Amount, US dollars")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="New adjustment")).to_be_focused()


def test_the_first_stop_is_a_way_past_the_navigation(visitor: Seat) -> None:
    """Seen once it has the focus; it goes to the content, and the address keeps the view."""
    visitor.sign_in(view="prices")
    page = visitor.page
    page.locator("#skip").focus()
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    assert page.url.endswith("#/prices")
    expect(page.get_by_role("heading", level=1)).to_have_text("Prices")


def test_what_changed_is_said_to_those_who_listen(visitor: Seat) -> None:
    """A polite live region: what was chosen, and what was done."""
    visitor.sign_in()
    page = visitor.page
    status = page.locator("[role=status][aria-live=polite]")
    expect(page.get_by_role("heading", name="Budgets")).to_be_visible()
    page.get_by_label("Time", exact=True).select_option("Last hour")
    expect(status).to_contain_text("calls, $")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_cut_off_on_a_small_screen(browser: Any, server: Server, width: int) -> None:
    """No view is wider than the screen: tables scroll by themselves; touch targets are large enough (WCAG 2.2, 2.5.8)."""
    with seat(browser, server.url, viewport={"width": width, "height": 740}, has_touch=True) as visitor:
        visitor.sign_in()
        for view in views(visitor):
            too_wide = visitor.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert too_wide <= 0, view
        small = visitor.page.evaluate(
            "[...document.querySelectorAll('button, nav a')].filter((one) => one.checkVisibility())"
            ".filter((one) => one.getBoundingClientRect().height < 24).map((one) => one.textContent)"
        )
        assert small == []


def test_light_and_dark_follow_the_browser(visitor: Seat) -> None:
    """At once, the charts too."""
    visitor.page.emulate_media(color_scheme="light")
    visitor.sign_in()
    page = visitor.page
    background = "getComputedStyle(document.body).backgroundColor"
    picture = "document.querySelector('.plot canvas').toDataURL()"
    expect(page.locator(".plot canvas")).to_have_count(8)
    light = page.evaluate(background), page.evaluate(picture)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("before => getComputedStyle(document.body).backgroundColor !== before", arg=light[0])
    page.wait_for_function("before => document.querySelector('.plot canvas').toDataURL() !== before", arg=light[1])


def test_nothing_moves_for_those_who_asked_for_that(browser: Any, server: Server) -> None:
    """No transition and no animation with prefers-reduced-motion."""
    with seat(browser, server.url, reduced_motion="reduce") as visitor:
        visitor.sign_in(KEY)
        expect(visitor.page.get_by_role("heading", name="Budgets")).to_be_visible()
        moving = visitor.page.evaluate(
            "[...document.querySelectorAll('*')].map((one) => getComputedStyle(one))"
            ".filter((style) => parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none').length"
        )
        assert moving == 0
