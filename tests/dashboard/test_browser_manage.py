"""Tenants and keys managed in the dashboard, in a real browser against a real gateway: what is done there is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..servers import Server, shown
from .browser import Seat, admin, chat, chromium, expect, gateway, seat, tenant_view

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
def operator(browser: Any, server: Server) -> Iterator[Seat]:
    with seat(browser, server.url) as one:
        one.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        yield one


def fresh(server: Server, id: str, **fields: Any) -> None:
    """A tenant of a test's own."""
    admin(server, "tenants", {"id": id, **fields})


def test_a_tenant_is_made(operator: Seat, server: Server) -> None:
    """From the form to the gateway, to the last billionth of a dollar; then its own page is shown."""
    operator.sign_in(view="tenants")
    page = operator.page
    page.get_by_role("button", name="New tenant").click()
    form = page.get_by_role("dialog", name="New tenant")
    form.get_by_label("Id", exact=False).first.fill("acme")
    form.get_by_label("Name").fill("Acme & Sons <gmbh>")
    form.get_by_label("Budget, US dollars").fill("12.345678901")
    form.get_by_label("Budget period").fill("monthly")
    form.get_by_label("Models allowed").fill("echo\ndear")
    form.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tenant acme")
    expect(page.get_by_text("Acme & Sons <gmbh>")).to_be_visible()
    made = admin(server, "tenants/acme")
    assert made["budget_usd"] == 12.345678901
    assert (made["budget_period"], made["allowed_models"], made["enabled"]) == ("monthly", ["echo", "dear"], True)


def test_a_form_says_what_is_wrong_and_keeps_what_was_typed(operator: Seat, server: Server) -> None:
    """A slip is told beside its field before anything is sent; a refusal of the gateway too, and nothing is lost."""
    fresh(server, "taken")
    operator.sign_in(view="tenants")
    page = operator.page
    page.get_by_role("button", name="New tenant").click()
    form = page.get_by_role("dialog")
    send = form.get_by_role("button", name="Create")
    id_field, budget = form.get_by_label("Id", exact=False).first, form.get_by_label("Budget, US dollars")
    budget.fill("12,50")
    send.click()
    expect(form.get_by_text("Id is needed.")).to_be_visible()
    expect(form.get_by_text("An amount in US dollars such as 25 or 0.50")).to_be_visible()
    expect(id_field).to_be_focused()
    expect(budget).to_have_attribute("aria-invalid", "true")
    expect(budget).to_have_value("12,50")
    id_field.fill("taken")
    budget.fill("12.50")
    send.click()
    expect(form.get_by_role("alert")).to_contain_text("The tenant 'taken' exists already.")
    expect(budget).to_have_value("12.50")
    id_field.fill("taken-not")
    form.get_by_label("Budget period").fill("fortnightly")
    send.click()
    expect(form.get_by_label("Budget period")).to_have_attribute("aria-invalid", "true")
    expect(form.get_by_label("Budget period")).to_be_focused()
    form.get_by_label("Budget period").fill("14d")
    send.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tenant taken-not")
    assert admin(server, "tenants/taken-not")["budget_period"] == "14d"


def test_limits_are_changed_and_the_rest_stays(operator: Seat, server: Server) -> None:
    """The fields that were changed are sent and no others: what somebody else changed meanwhile is not undone."""
    fresh(server, "limited", budget_usd=10, rate_requests=100, allowed_models=["echo"])
    operator.sign_in(view=tenant_view("limited"))
    page = operator.page
    page.get_by_role("button", name="Edit").click()
    form = page.get_by_role("dialog", name="Change limited")
    expect(form.get_by_label("Budget, US dollars")).to_have_value("10")
    expect(form.get_by_label("Models allowed")).to_have_value("echo")
    admin(server, "tenants/limited", {"rate_requests": 7}, method="PUT")
    form.get_by_label("Budget, US dollars").fill("")
    form.get_by_label("Calls at once").fill("3")
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    changed = admin(server, "tenants/limited")
    assert (changed["budget_usd"], changed["concurrency"]) == (None, 3)
    assert (changed["rate_requests"], changed["allowed_models"]) == (7, ["echo"])


def test_a_disabled_tenant_s_calls_are_refused_until_it_is_enabled(operator: Seat, server: Server) -> None:
    """Disable asks first, and says what it does."""
    fresh(server, "paused")
    operator.sign_in(view=tenant_view("paused"))
    page = operator.page
    page.get_by_role("button", name="Disable").click()
    asked = page.get_by_role("dialog", name="Disable paused?")
    expect(asked.get_by_role("button", name="Cancel")).to_be_focused()
    asked.get_by_role("button", name="Disable").click()
    expect(page.get_by_text("disabled", exact=True)).to_be_visible()
    assert admin(server, "tenants/paused")["enabled"] is False
    page.get_by_role("button", name="Enable").click()
    page.get_by_role("dialog").get_by_role("button", name="Enable").click()
    expect(page.get_by_text("enabled", exact=True)).to_be_visible()
    assert admin(server, "tenants/paused")["enabled"] is True


def test_a_tenant_is_deleted_after_being_asked(operator: Seat, server: Server) -> None:
    """Escape leaves it alone."""
    fresh(server, "doomed")
    operator.sign_in(view=tenant_view("doomed"))
    page = operator.page
    page.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Delete")).to_be_focused()
    assert admin(server, "tenants/doomed")["id"] == "doomed"
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tenants")
    expect(operator.row("doomed")).to_have_count(0)


def test_a_new_key_is_shown_once_and_works(operator: Seat, server: Server) -> None:
    """Copied by its button, it opens the gateway; Escape does not close it; closed, it is nowhere in the page."""
    fresh(server, "keyed")
    operator.sign_in(view=tenant_view("keyed"))
    page = operator.page
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog", name="New key for keyed")
    form.get_by_label("Name").fill("ci <b>robot</b>")
    form.get_by_label("Days until it expires").fill("30")
    form.get_by_role("button", name="Create").click()
    shown_once = page.get_by_role("dialog", name="The new key")
    expect(shown_once.get_by_role("button", name="Copy")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(shown_once).to_be_visible()
    secret = shown_once.get_by_role("textbox").input_value()
    shown_once.get_by_role("button", name="Copy").click()
    expect(shown_once.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    assert chat(server, "hello", model="echo", key=secret).status == 200
    shown_once.get_by_role("button", name="I have it").click()
    expect(shown_once).to_have_count(0)
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    expect(operator.row("ci <b>robot</b>")).to_contain_text("valid until")
    assert secret not in page.content()
    [key] = admin(server, "tenants/keyed/keys")["data"]
    assert 29.9 * 86400 < key["expires"] - key["created"] <= 30 * 86400


def test_a_revoked_key_opens_nothing_any_more(operator: Seat, server: Server) -> None:
    """Asked first; then the row says so and offers nothing."""
    fresh(server, "revoking")
    secret = admin(server, "tenants/revoking/keys", {"name": "leaked"})["key"]
    operator.sign_in(view=tenant_view("revoking"))
    page = operator.page
    operator.row("leaked").get_by_role("button", name="Revoke").click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text("Calls with it are refused from now on.")
    asked.get_by_role("button", name="Revoke").click()
    expect(operator.row("leaked")).to_contain_text("revoked")
    expect(operator.row("leaked").get_by_role("button")).to_have_count(0)
    assert chat(server, "hello", model="echo", key=secret).status == 401


def test_a_key_is_rotated_with_an_overlap(operator: Seat, server: Server) -> None:
    """Both work at first; the old one says when it ends."""
    fresh(server, "rotating")
    old = admin(server, "tenants/rotating/keys", {"name": "first"})["key"]
    operator.sign_in(view=tenant_view("rotating"))
    page = operator.page
    operator.row("first").get_by_role("button", name="Rotate").click()
    page.get_by_role("dialog").get_by_label("Hours that the old key goes on working").fill("0.5")
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    new = page.get_by_role("dialog", name="The new key").get_by_role("textbox").input_value()
    page.get_by_role("button", name="I have it").click()
    assert new != old
    assert [chat(server, "hello", model="echo", key=key).status for key in (old, new)] == [200, 200]
    expect(page.get_by_role("region", name="Keys, table").get_by_text("ends ", exact=False)).to_be_visible()
    first, _ = admin(server, "tenants/rotating/keys")["data"]
    assert first["revoked"] is not None


def test_a_credit_is_booked_once(operator: Seat, server: Server) -> None:
    """With its reason, in the list and in what is left; a refused amount says why."""
    fresh(server, "credited", budget_usd=1)
    operator.sign_in(view=tenant_view("credited"))
    page = operator.page
    page.get_by_role("button", name="New adjustment").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Amount, US dollars").fill("0")
    form.get_by_label("Reason").fill("goodwill")
    form.get_by_role("button", name="Book").click()
    expect(form.get_by_text("Not zero.")).to_be_visible()
    form.get_by_label("Amount, US dollars").fill("2.5")
    form.get_by_role("button", name="Book").dblclick()
    expect(form).to_have_count(0)
    expect(operator.row("goodwill")).to_have_count(1)
    expect(operator.row("goodwill")).to_contain_text("$2.50")
    expect(page.get_by_text("$3.50", exact=True)).to_be_visible()
    assert admin(server, "tenants/credited")["remaining_usd"] == 3.5
