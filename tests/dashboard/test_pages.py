"""The page and its files, and what every answer has: through the whole gateway, stand-alone and below a mount."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.dashboard import pages
from asgi_llm_gateway.dashboard.app import POLICY

from ..conversation import Answer, get
from ..servers import ROOT
from .desk import ADMIN_KEY, Desk, Somebody

FILES = sorted(path.name for path in (Path(pages.__file__).parent / "static").iterdir())
ROOTS = ["", "/gw"]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The whole gateway, with an admin key."""
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", ADMIN_KEY)
    settings.forget()
    return create_app()


@pytest.mark.parametrize("root", ROOTS)
async def test_the_page_is_for_everybody(app: Any, root: str) -> None:
    """It holds nothing but a form to sign in; it is asked for again each time, and sent where it changed."""
    one = Somebody(app, root=root)
    answer = await one.ask("GET", "")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body == (Path(pages.__file__).parent / "static" / "index.html").read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    again = await one.ask("GET", "", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert (await one.ask("GET", "", headers={"if-none-match": '"other"'})).status == 200


@pytest.mark.parametrize("name", FILES)
async def test_each_file_is_served_as_what_it_is(app: Any, name: str) -> None:
    """All that lies in the folder, byte for byte; no type is left to be guessed."""
    answer = await Somebody(app).ask("GET", f"/static/{name}")
    assert answer.status == 200
    assert answer.body == (Path(pages.__file__).parent / "static" / name).read_bytes()
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html", "txt": "text/plain"}
    assert answer.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]


async def test_what_the_page_links_to_is_there(app: Any) -> None:
    """Every file that the page and its modules name, as a browser at ``/dashboard`` would find it."""
    one = Somebody(app)
    text = (await one.ask("GET", "")).body.decode()
    names = set(re.findall(r'(?:href|src)="(?!data:|#)([^"]+)"', text))
    assert {name for name in names if not name.startswith("dashboard/static/")} == set()
    for name in FILES:
        if name.endswith(".js"):
            source = (await one.ask("GET", f"/static/{name}")).body.decode()
            names |= {f"dashboard/static/{found}" for found in re.findall(r'from "\./([^"]+)"', source)}
    assert len(names) > 5
    for name in names:
        assert (await one.ask("GET", name.removeprefix("dashboard"))).status == 200, name


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "..%2fapp.py", "../app.py", "%2e%2e/app.py", "__init__.py", "INDEX.HTML", "", ".", "a/index.html"],
)
async def test_no_other_file_is_served(app: Any, name: str) -> None:
    """No name is a path: 404 in the envelope."""
    answer = await Somebody(app).ask("GET", f"/static/{name}")
    assert (answer.status, answer.error["code"]) == (404, "not_found")


METHODS = [
    ("", "GET"),
    ("/static/index.html", "GET"),
    ("/api/me", "GET"),
    ("/api/login", "POST"),
    ("/api/logout", "POST"),
]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(("path", "allowed"), METHODS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_another_method_is_405_in_the_envelope(app: Any, root: str, path: str, allowed: str, method: str) -> None:
    """With what is allowed; HEAD is a GET without a body."""
    if method == allowed or (method == "HEAD" and allowed == "GET"):
        return
    answer = await Somebody(app, root=root).ask(method, path)
    assert answer.status == 405
    assert allowed in answer.headers["allow"]
    assert method == "HEAD" or answer.error["code"] == "method_not_allowed"


async def test_head_has_the_head_of_a_get(app: Any) -> None:
    """Of the page, a file, and an operation."""
    one = Somebody(app)
    await one.sign_in(ADMIN_KEY)
    for path in ("", "/static/index.html", "/api/me", "/api/tenants"):
        head, whole = await one.ask("HEAD", path), await one.ask("GET", path)
        assert head.status == whole.status == 200
        for name in ("content-type", "content-length", "content-security-policy", "cache-control"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("root", ROOTS)
async def test_unknown_paths_and_methods_of_the_api_are_told_to_who_is_signed_in(app: Any, root: str) -> None:
    """404 and 405 in the envelope; nobody else learns what there is."""
    one = Somebody(app, root=root)
    for method, path in (
        ("GET", "/api/nothing"),
        ("GET", "/api"),
        ("PATCH", "/api/tenants"),
        ("POST", "/api/overview"),
    ):
        assert (await one.ask(method, path)).status == 401
    await one.sign_in(ADMIN_KEY)
    assert (await one.get("nothing")).status == 404
    wrong = await one.ask("PATCH", "/api/tenants")
    assert (wrong.status, set(wrong.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "POST"})
    assert (await one.ask("GET", "/nothing")).error["code"] == "not_found"


@pytest.mark.parametrize("root", ROOTS)
async def test_the_pages_address_has_no_slash_at_its_end(app: Any, root: str) -> None:
    """With one the browser is sent on: the page's links are relative."""
    answer = await Somebody(app, root=root).ask("GET", "/")
    assert (answer.status, answer.headers["location"]) == (308, f"{root}/dashboard")


async def test_the_whole_gateway_adds_its_security_headers_and_keeps_the_policy(app: Any) -> None:
    """One policy, ours; the other headers are those of all answers."""
    one = Somebody(app)
    for answer in (
        await one.ask("GET", ""),
        await one.get("me"),
        await one.sign_in(ADMIN_KEY),
        await one.get("tenants"),
    ):
        policies = [value for name, value in answer.messages[0]["headers"] if name == b"content-security-policy"]
        assert policies == [POLICY.encode()]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "strict-transport-security" not in answer.headers
    secure = await Somebody(app, scheme="https").ask("GET", "")
    assert "strict-transport-security" in secure.headers


def test_the_policy_allows_our_own_files_and_nothing_else() -> None:
    """Nothing inline, nothing from elsewhere, no frame round it, no base that would turn links elsewhere."""
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


async def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENABLE_DASHBOARD=false: there is no such path."""
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setenv("ENABLE_DASHBOARD", "false")
    settings.forget()
    app = create_app()
    for path in ("/dashboard", "/dashboard/api/me", "/dashboard/static/index.html"):
        answer: Answer = await get(app, path)
        assert answer.status == 404
    assert (await get(app, "/dashboards")).status == 404


async def test_a_fault_of_ours_is_a_500_in_the_envelope(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the policy, without its words."""
    one = await desk.admin()

    async def broken() -> Any:
        raise RuntimeError("the words of a fault")

    monkeypatch.setattr(desk.store, "tenants", broken)
    answers: list[Answer] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(RuntimeError):
            await desk.app(scope, receive, send)

    one.app = app
    answers.append(await one.get("tenants"))
    assert answers[0].status == 500
    assert answers[0].error["code"] == "internal_error"
    assert b"words" not in answers[0].body


def test_the_files_are_in_the_wheel(tmp_path: Path) -> None:
    """All of them: nothing has to be built or loaded later."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            shipped = archive.read(f"asgi_llm_gateway/dashboard/static/{name}")
            assert shipped == (Path(pages.__file__).parent / "static" / name).read_bytes(), name
