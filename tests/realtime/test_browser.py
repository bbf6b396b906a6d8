"""The browser's client in a real Chromium: over WebRTC and over a WebSocket, calls side by side, refusals, a closed tab."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..dashboard.browser import Seat, chromium, expect, seat, sync_api
from ..servers import KEY, Server, fetch
from .peers import POOR_KEY, gateway, records
from .test_process import held

pytestmark = pytest.mark.real

LOOPBACK = "--allow-loopback-in-peer-connection"
PLAYGROUND = "tests.realtime.loopback:playground"

# What the page's own script has, for scripts of the tests.
OPEN = """
    const {connect} = await import("./realtime/client.js");
    const secret = async () => (await (await fetch("token", {method: "POST"})).json()).value;
    const text = (chunk) => chunk.choices?.[0]?.delta?.content ?? "";
    const body = (words, more = {}) => ({model: "echo", messages: [{role: "user", content: words}], ...more});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all."""
    with chromium(LOOPBACK) as started:
        yield started


@contextmanager
def opened(browser: Any, folder: Path, *, key: str = KEY, **more: str) -> Iterator[tuple[Server, Seat]]:
    """The playground before somebody."""
    with (
        gateway(
            folder, app=PLAYGROUND, **{"PLAYGROUND_KEY": key, "RATE_LIMIT_MAX_REQUESTS": "100000", **more}
        ) as server,
        seat(browser, server.url) as one,
    ):
        one.page.goto(server.url)
        yield server, one


def run(one: Seat, script: str, argument: Any = None) -> Any:
    """What a script of the page gives."""
    return one.page.evaluate("async (given) => {" + OPEN + script + "}", argument)


@contextmanager
def silence() -> Iterator[str]:
    """A provider that takes calls and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def wait(true: Callable[[], bool], seconds: float = 20) -> None:
    """Until something is so."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come so"
        time.sleep(0.05)


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_somebody_connects_streams_cancels_and_hangs_up(browser: Any, tmp_path: Path, transport: str) -> None:
    """The playground by hand: tokens as they come, the cost and the time to the first token; two calls at once."""
    with silence() as url, opened(browser, tmp_path, UP_URL=url) as (_, one):
        page = one.page
        page.get_by_label("Transport").select_option(transport)
        page.get_by_role("button", name="Connect").click()
        expect(page.get_by_role("status")).to_contain_text(f"Connected over {transport} in")
        page.get_by_label("Message").fill("one two three")
        page.get_by_role("button", name="Send").click()
        article = page.get_by_role("article").first
        expect(article).to_contain_text("one two three")
        expect(article).to_contain_text("Done. first token after")
        expect(article).to_contain_text("6 tokens · cost $0.000009")
        page.get_by_label("Model").fill("m")  # whose provider takes its time
        for _ in range(2):
            page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Cancel")).to_have_count(2)
        page.get_by_role("button", name="Cancel").first.click()
        expect(page.get_by_role("article").first).to_contain_text("Cancelled.")
        page.get_by_label("Model").fill("echo")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("article").first).to_contain_text("Done.")
        page.get_by_role("button", name="Hang up").click()
        expect(page.get_by_role("status")).to_have_text("The session was closed.")
        wait(lambda: held(tmp_path) == 0)
    assert sorted(aborted for aborted, _ in records(tmp_path)) == [0, 0, 1, 1]


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_calls_side_by_side_and_big_frames(browser: Any, tmp_path: Path, transport: str) -> None:
    """Interleaved chunks, texts of every kind whole both ways, a signal that cancels, a loop that is left."""
    script = """
        const session = await connect({url: location.href, secret, transport: given});
        const order = [];
        const one = async (name, words) => {
            let all = "";
            const call = session.chat(body(words, {metadata: {echo_delay_ms: "5"}}));
            for await (const chunk of call) { order.push(name); all += text(chunk); }
            return [all, call.usage.completion_tokens, call.costUsd];
        };
        const [a, b] = await Promise.all([one("a", "x ".repeat(20)), one("b", "y ".repeat(20))]);
        const big = ("é€😀\\"\\\\x".repeat(40) + " ").repeat(400);
        const whole = session.call("chat.completions.create", body(big, {max_tokens: 100000}));
        const {value} = await whole.next();
        const left = session.chat(body("z ".repeat(5000)));
        for await (const chunk of left) break;
        const stop = new AbortController();
        const stopped = session.chat(body("z ".repeat(5000)), {signal: stop.signal});
        let code = null;
        try { for await (const chunk of stopped) stop.abort(); } catch (error) { code = error.code; }
        let wrong = null;
        try { await session.call("images.create", {}).next(); } catch (error) { wrong = [error.status, error.code]; }
        const same = value.choices[0].message.content.trim() === big.trim();
        const kind = session.transport;
        session.close();
        return {a, b, switches: order.filter((name, at) => at && order[at - 1] !== name).length, same, code, wrong, kind};
    """
    with opened(browser, tmp_path) as (_, one):
        found = run(one, script, transport)
    assert found["kind"] == transport
    assert found["a"][0].split() == ["x"] * 20
    assert found["b"][0].split() == ["y"] * 20
    assert found["a"][1] == 20
    assert found["a"][2] > 0
    assert found["switches"] > 4
    assert found["same"]
    assert found["code"] == "cancelled"
    assert found["wrong"] == [400, "invalid_frame"]
    assert sorted(aborted for aborted, _ in records(tmp_path)) == [0, 0, 0, 1, 1]


def test_a_budget_refuses_in_words(browser: Any, tmp_path: Path) -> None:
    """The page shows the refusal's own message and code, and the session goes on."""
    with opened(browser, tmp_path, key=POOR_KEY) as (_, one):
        script = """
            const session = await connect({url: location.href, secret, transport: "webrtc"});
            for (let calls = 0; ; calls++) {
                try { for await (const chunk of session.chat(body("one two three", {max_tokens: 20}))); }
                catch (error) { session.close(); return [calls, error.status, error.code, error.message]; }
            }
        """
        calls, status, code, message = run(one, script)
    assert calls >= 1
    assert status in (402, 429)
    assert code
    assert "budget" in message.lower()


@pytest.mark.parametrize("way", ["closed", "crashed"])
def test_a_tab_that_goes_has_its_calls_settled(browser: Any, tmp_path: Path, way: str) -> None:
    """Closed, it hangs up at once; crashed, it says nothing, and is missed within seconds."""
    with opened(browser, tmp_path) as (_, one):
        script = """
            const session = await connect({url: location.href, secret, transport: "webrtc"});
            window.calls = [1, 2].map(() => session.chat(body("word ".repeat(9000), {metadata: {echo_delay_ms: "20"}})));
            await Promise.all(window.calls.map((call) => call.next()));
        """
        run(one, script)
        wait(lambda: held(tmp_path) > 0)
        if way == "closed":
            one.page.close()
        else:
            crash(one)
        wait(lambda: held(tmp_path) == 0, 5 if way == "closed" else 20)
    assert [(aborted, cost > 0) for aborted, cost in records(tmp_path)] == [(1, True)] * 2


def crash(one: Seat) -> None:
    """End the page's process, as the system does that is short of memory."""
    try:
        one.page.goto("chrome://crash", timeout=2_000)
    except sync_api.Error:
        return
    raise AssertionError("the page lives")


def test_without_a_way_for_udp_a_websocket_is_taken(browser: Any, tmp_path: Path) -> None:
    """A relay only, and none there is: after its time WebRTC is given up; asked for by name, it fails."""
    with opened(browser, tmp_path) as (_, one):
        script = """
            const options = {url: location.href, secret, relayOnly: true, timeout: 1500};
            const session = await connect(options);
            let all = "";
            for await (const chunk of session.chat(body("one two three"))) all += text(chunk);
            session.close();
            let code = null;
            try { await connect({...options, transport: "webrtc"}); } catch (error) { code = error.code ?? error.name; }
            return [session.transport, all, code];
        """
        found = run(one, script)
    assert found[:2] == ["websocket", "one two three"]
    assert found[2] in ("webrtc_failed", "TimeoutError", "AbortError")


def test_a_gateway_without_webrtc_is_spoken_to_all_the_same(browser: Any, tmp_path: Path) -> None:
    """404 for the offer; the WebSocket stands."""
    with opened(browser, tmp_path, ENABLE_WEBRTC="false", ENABLE_REALTIME="true") as (_, one):
        one.page.get_by_role("button", name="Connect").click()
        expect(one.page.get_by_role("status")).to_contain_text("Connected over websocket")


def test_a_hang_up_from_outside_reaches_the_page(browser: Any, tmp_path: Path) -> None:
    """``closed`` tells why; a call that is made then fails by name. A wrong secret is an error, and no way round."""
    with opened(browser, tmp_path) as (server, one):
        id = run(one, "window.session = await connect({url: location.href, secret}); return window.session.id;")
        assert fetch(f"{server.url}/v1/realtime/calls/{id}", method="DELETE").status == 204
        script = """
            const {reason} = await window.session.closed;
            let code = null;
            try { await window.session.chat(body("x")).next(); } catch (error) { code = error.code; }
            let wrong = null;
            try { await connect({url: location.href, secret: "ek_wrong"}); } catch (error) { wrong = error.status; }
            return [reason, code, wrong];
        """
        assert run(one, script) == ["closed", "closed", 401]
