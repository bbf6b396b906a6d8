"""What the dashboard shows, in a real browser over a real gateway: the numbers of the records, the calls, their steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..servers import Server, shown
from .browser import OTHER_KEY, Seat, admin, chat, chromium, expect, gateway, seat

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway after some calls: answered, streamed, refused for money and for a model that is not there."""
    with gateway(tmp_path_factory.mktemp("gateway"), ENABLE_CACHE="true") as server:
        for words in ("one two three", "four five six seven", "one two three"):
            assert chat(server, words, temperature=0).status == 200
        assert chat(server, "a stream of words", stream=True).status == 200
        assert chat(server, "free of charge", model="echo", key=OTHER_KEY).status == 200
        assert chat(server, "too dear", key=OTHER_KEY, max_tokens=1000).status in (402, 429)
        assert chat(server, "nobody", model="no-such-model").status == 400
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    with shown(started) as server:
        yield server


@pytest.fixture
def operator(browser: Any, server: Server) -> Iterator[Seat]:
    with seat(browser, server.url) as one:
        yield one


def tile(page: Any, term: str) -> Any:
    """What stands under a term of the overview."""
    return page.locator(".tiles > div").filter(has=page.get_by_text(term, exact=True)).locator("dd")


def dollars(amount: float) -> str:
    """As the page writes an amount below a hundred."""
    rounded = round(amount, 4) if amount >= 1 else float(f"{amount:.4g}")
    whole, _, decimals = f"{rounded:.9f}".partition(".")
    return f"${int(whole):,}.{decimals.rstrip('0').ljust(2, '0')}"


def test_the_overview_is_what_the_records_say(operator: Seat, server: Server) -> None:
    """Spend and tokens are those of /api/stats, over all and by tenant, and a table holds what each chart draws."""
    stats = admin(server, "stats")
    assert stats["cost_total_usd"] > 0
    operator.sign_in()
    page = operator.page
    expect(tile(page, "Spend")).to_have_text(dollars(stats["cost_total_usd"]))
    expect(tile(page, "Tokens in")).to_have_text(f"{stats['tokens_in']:,}")
    expect(tile(page, "Tokens out")).to_have_text(f"{stats['tokens_out']:,}")
    expect(tile(page, "Calls")).to_have_text("7")
    expect(tile(page, "Refused")).to_have_text("2")
    expect(tile(page, "Saved by the cache")).not_to_have_text("$0.00")
    expect(tile(page, "Latency, median")).to_contain_text("ms")
    by_tenant = page.get_by_role("region", name="By tenant").get_by_role("row")
    for tenant in ("team", "other"):
        own = admin(server, f"stats?tenant={tenant}")
        expect(by_tenant.filter(has=page.get_by_role("rowheader", name=tenant, exact=True))).to_contain_text(
            f"{own['tokens_in']:,}"
        )
    expect(page.get_by_role("region", name="By model").get_by_role("row").filter(has_text="dear")).to_have_count(1)
    tokens = page.get_by_role("figure").filter(has=page.get_by_role("heading", name="Tokens", exact=True))
    tokens.get_by_text("Numbers").click()
    expect(tokens.get_by_role("columnheader")).to_have_text(["From", "In", "Out"])
    cells = tokens.get_by_role("cell").all_inner_texts()
    assert sum(int(cell.replace(",", "")) for cell in cells[0::2]) == stats["tokens_in"]
    assert sum(int(cell.replace(",", "")) for cell in cells[1::2]) == stats["tokens_out"]


def test_every_chart_is_drawn_and_says_in_words_what_it_shows(operator: Seat) -> None:
    """Eight canvases with ink on them, each with a name for those who can't see it."""
    operator.sign_in()
    page = operator.page
    expect(page.locator(".plot canvas")).to_have_count(8)
    inked = page.evaluate(
        "[...document.querySelectorAll('.plot canvas')].map((canvas) => canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value !== 0))"
    )
    assert inked == [True] * 8
    names = [image.get_attribute("aria-label") for image in page.get_by_role("img").all()]
    assert [name.partition(".")[0] for name in names] == [
        "Spend", "Tokens", "Requests", "Latency", "Time to first token", "Saved by the cache",
        "Spend by model", "Tokens by model",
    ]  # fmt: skip
    assert all("at most" in name for name in names[:6])
    assert all("By model: dear" in name for name in names[6:])


def test_spend_over_time_is_told_apart_by_model_and_by_tenant(operator: Seat, server: Server) -> None:
    """A line each, and a table whose columns sum up to what each has booked."""
    operator.sign_in()
    page = operator.page
    for by, names in (("Model", ("dear", "echo")), ("Tenant", ("team", "other"))):
        page.get_by_label("Told apart by").select_option(by)
        tokens = page.get_by_role("figure").filter(has=page.get_by_role("heading", name=f"Tokens by {by.lower()}"))
        tokens.get_by_text("Numbers").click()
        expect(tokens.get_by_role("columnheader")).to_have_text(["From", *names])
        cells = [int(text.replace(",", "")) for text in tokens.get_by_role("cell").all_inner_texts()]
        if by == "Tenant":
            for at, tenant in enumerate(names):
                own = admin(server, f"stats?tenant={tenant}")
                assert sum(cells[at::2]) == own["tokens_in"] + own["tokens_out"]


def test_time_and_tenant_are_chosen(operator: Seat, server: Server) -> None:
    """The numbers are then of that tenant; the choice is still there after a look elsewhere."""
    own = admin(server, "stats?tenant=other")
    operator.sign_in()
    page = operator.page
    page.get_by_label("Tenant", exact=True).select_option("other")
    expect(tile(page, "Tokens in")).to_have_text(f"{own['tokens_in']:,}")
    expect(tile(page, "Calls")).to_have_text("2")
    page.get_by_label("Time", exact=True).select_option("Last hour")
    expect(tile(page, "Calls")).to_have_text("2")
    page.get_by_role("link", name="Prices").click()
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_label("Tenant", exact=True)).to_have_value("other")
    expect(page.get_by_label("Time", exact=True)).to_have_value("3600")
    expect(tile(page, "Calls")).to_have_text("2")


def test_what_is_left_of_a_budget_is_shown(operator: Seat, server: Server) -> None:
    """In numbers and as a bar as long as its part."""
    team = admin(server, "tenants/team")
    operator.sign_in()
    row = operator.page.get_by_role("region", name="Budgets, table").get_by_role("row").filter(has_text="monthly")
    expect(row).to_contain_text(dollars(team["spent_usd"]))
    expect(row).to_contain_text(dollars(team["remaining_usd"]))
    expect(row).to_contain_text("$5.00")
    width = row.locator(".meter .spent").evaluate("(bar) => parseFloat(bar.style.width)")
    assert width == pytest.approx(100 * team["spent_usd"] / 5, abs=0.01)


def test_a_new_call_shows_by_itself(operator: Seat, server: Server) -> None:
    """On top, without a reload and without taking the focus away; not while it is paused."""
    operator.sign_in(view="calls")
    page = operator.page
    rows = page.get_by_role("region", name="Calls").get_by_role("row")
    expect(rows.nth(1)).to_be_visible()
    before = rows.count()
    link = rows.nth(1).get_by_role("link")
    link.focus()
    assert chat(server, "anybody there?", model="echo").status == 200
    expect(rows).to_have_count(before + 1)
    expect(rows.nth(1)).to_contain_text("echo")
    expect(rows.nth(2).get_by_role("link")).to_be_focused()
    page.get_by_role("button", name="Pause").click()
    assert chat(server, "and now?", model="echo").status == 200
    page.wait_for_timeout(5000)
    expect(rows).to_have_count(before + 1)
    page.get_by_role("button", name="Go on").click()
    expect(rows).to_have_count(before + 2)


def test_calls_are_filtered(operator: Seat, server: Server) -> None:
    """By tenant, model, status and how long they took; a wrong number is said in the gateway's words."""
    operator.sign_in(view="calls")
    page = operator.page
    rows = page.get_by_role("region", name="Calls").get_by_role("row")
    page.get_by_label("Tenant", exact=True).fill("other")
    page.get_by_label("Tenant", exact=True).press("Enter")
    expect(rows).to_have_count(3)
    page.get_by_label("Status", exact=True).select_option("4xx, refused")
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("dear")
    page.get_by_label("Model", exact=True).fill("nothing-of-the-kind")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No such calls yet.")).to_be_visible()
    page.get_by_label("Tenant", exact=True).fill("")
    page.get_by_label("Model", exact=True).fill("no-such-model")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("400")
    page.get_by_label("Model", exact=True).fill("")
    page.get_by_label("Status", exact=True).select_option("Any")
    page.get_by_label("Slower than, ms").fill("600000")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No such calls yet.")).to_be_visible()
    page.get_by_label("Slower than, ms").fill("soon")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("alert")).to_contain_text("min_ms")
    expect(page.get_by_label("Slower than, ms")).to_have_value("soon")


def test_a_call_s_steps_are_a_waterfall(operator: Seat, server: Server) -> None:
    """From the list to its steps, in order, each with its times and a bar that begins where its time does."""
    operator.sign_in(view="calls")
    page = operator.page
    page.get_by_label("Model", exact=True).fill("dear")
    page.get_by_label("Status", exact=True).select_option("2xx, answered")
    page.get_by_role("button", name="Filter").click()
    rows = page.get_by_role("region", name="Calls").get_by_role("row")
    expect(rows).to_have_count(5)
    rows.nth(1).get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Call")
    steps = page.get_by_role("region", name="Steps of")
    expect(steps).to_be_visible()
    names = steps.get_by_role("rowheader").all_inner_texts()
    for name in ("Key and tenant", "Budget hold", "Upstream call", "First token", "Settle", "Last byte"):
        assert name in names
    expect(steps.get_by_role("row").filter(has_text="Upstream call")).to_contain_text("provider: echo")
    lefts = steps.locator(".strip-bar").evaluate_all("(bars) => bars.map((bar) => parseFloat(bar.style.left))")
    assert lefts == sorted(lefts)
    assert len(lefts) == len(names)
    expect(page.get_by_text("/v1/chat/completions, as a stream")).to_be_visible()
    page.get_by_role("link", name="All calls").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("dear")


def test_an_unknown_call_is_said_in_words(operator: Seat) -> None:
    """No empty page for a link to a call that was forgotten."""
    operator.sign_in(view="calls/00000000000000000000000000000000")
    expect(operator.page.get_by_role("alert")).to_be_visible()


def test_records_are_downloaded_as_csv(operator: Seat, server: Server) -> None:
    """Over the session, with a row for each call of the tenant that was booked."""
    operator.sign_in(view="tenants/other")
    with operator.page.expect_download() as waited:
        operator.page.get_by_role("link", name="All as CSV").click()
    lines = waited.value.path().read_text("utf-8").splitlines()
    assert waited.value.suggested_filename == "other-records.csv"
    assert len(lines) == 1 + admin(server, "stats?tenant=other")["requests"]


def test_prices_are_those_in_force(operator: Seat) -> None:
    """The configured model's, by the million."""
    operator.sign_in(view="prices")
    row = operator.row("dear")
    expect(row).to_contain_text("$1,000.00")
    expect(row).to_contain_text("$2,000.00")
