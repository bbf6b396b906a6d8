"""The closed table of paths: what is metered, authenticated or open, and that no other spelling is a way round."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.wire import METERED, Route, Table


def kind(table: Table, path: str, root_path: str = "") -> str:
    """What the table says of a path."""
    return table.match({"path": path, "root_path": root_path}).kind


@pytest.mark.parametrize(("path", "dialect"), METERED.items())
def test_metered_paths_have_their_dialect(path: str, dialect: str) -> None:
    """Paths whose calls cost money are parsed, held and settled."""
    route = Table().match({"path": path})
    assert (route.kind, route.dialect, route.path) == ("metered", dialect, path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/models",
        "/v1/models/gpt-4",
        "/v1/messages/count_tokens",
        "/v1/realtime/sessions",
        "/v1/files",
        "/v1/x/y",
    ],
)
def test_all_else_below_v1_is_authenticated(path: str) -> None:
    """No path below ``/v1`` is open by being unknown."""
    assert kind(Table(), path) == "authenticated"


@pytest.mark.parametrize(
    "path", ["/", "", "/health", "/docs", "/v10/chat/completions", "/v1x", "/users/v1", "/Docs", "/a//b", "/%7Euser"]
)
def test_all_other_paths_pass(path: str) -> None:
    """A host app's own routes are none of the gateway's business, however they are spelt."""
    assert kind(Table(), path) == "open"


def test_errors_below_messages_are_anthropics() -> None:
    """The envelope goes with the path."""
    table = Table()
    assert table.match({"path": "/v1/messages"}).envelope == "anthropic"
    assert table.match({"path": "/v1/messages/count_tokens"}).envelope == "anthropic"
    assert table.match({"path": "/v1/chat/completions"}).envelope == "openai"


@pytest.mark.parametrize(
    ("path", "root_path", "wanted"),
    [
        ("/llm/v1/chat/completions", "/llm", "metered"),
        ("/v1/chat/completions", "/llm", "metered"),  # servers that leave the prefix out
        ("/llm/v1/models", "/llm", "authenticated"),
        ("/llm", "/llm", "open"),
        ("/llmx/v1/models", "/llm", "open"),  # not at the end of a segment: another app
        ("/llm/health", "/llm", "open"),
        ("/v1/models", "", "authenticated"),
    ],
)
def test_root_path_is_taken_off_at_the_end_of_a_segment(path: str, root_path: str, wanted: str) -> None:
    """A mounted app matches on its own part of the path."""
    assert kind(Table(), path, root_path) == wanted


def test_a_scope_may_leave_root_path_out() -> None:
    """``root_path`` is optional, and may be ``None`` in careless servers."""
    assert Table().match({"path": "/v1/models"}).kind == "authenticated"
    assert Table().match({"path": "/v1/models", "root_path": None}).kind == "authenticated"


def test_a_metered_path_under_a_prefix_of_the_host_is_no_way_round() -> None:
    """The same API under another prefix is held all the same."""
    route = Table().match({"path": "/llm/v1/chat/completions"})
    assert (route.kind, route.dialect) == ("metered", "chat")


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat//completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/v1/%63hat/completions",
        "/v1%2fchat%2fcompletions",
        "/v1%252fchat/completions",
        "/v1/chat/completions;x=1",
        "/v1;x/chat/completions",
        "/v1/./chat/completions",
        "/x/../v1/chat/completions",
        "/v1/models/../chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "/V1/chat/completions",
        "/v1/Chat/Completions",
        "/v1/chat/completions ",
        "/v1/chat/completions\t",
        "/v1\\chat\\completions",
        "/v1/chat/completions?x",
        "//v1/models",
        "/V1/models",
        "/v1/%6dodels",
        "/v1/models//x",
        "/v1/models/%2e%2e/files",
        "/llm/V1/chat/completions",
    ],
)  # fmt: skip
def test_another_spelling_of_a_guarded_path_is_no_path(path: str) -> None:
    """A server further in may read it as the guarded path, so it is never open."""
    table = Table()
    found = table.match({"path": path})
    if path.endswith("?x"):  # no server puts a query there; unreadable is not open either
        assert found.kind != "open"
    else:
        assert found.kind == "misspelt"
    assert found.dialect is None


CHANGES = st.sampled_from(["/", "/./", "%2e/", ";a", "\\", " ", "upper", "escape"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(METERED)), st.lists(st.tuples(st.integers(0, 30), CHANGES), min_size=1, max_size=3))
def test_no_misspelling_of_a_metered_path_is_open(path: str, changes: list[tuple[int, str]]) -> None:
    """Whatever slashes, dots, parameters, escapes and capitals are put in: parsed exactly, guarded or nothing."""
    spelt = path
    for at, change in changes:
        at = 1 + at % (len(spelt) - 1)
        if change == "upper":
            spelt = spelt[:at] + spelt[at:].upper()
        elif change == "escape":
            spelt = spelt[:at] + f"%{ord(spelt[at]):02x}" + spelt[at + 1 :]
        else:
            before = spelt[:at].rpartition("/")[0] + "/"  # at the start of a segment, or what is meant is another name
            spelt = before + change.lstrip("/") + spelt[len(before) :] if change in ("/", "/./") else spelt + change
    assert kind(Table(), spelt) != "open"


@pytest.mark.parametrize("path", ["/v1/models/Qwen/Qwen3-8B", "/v1/models/meta-llama/Llama-3.1-8B:free", "/v1/Files"])
def test_a_models_name_may_have_capitals(path: str) -> None:
    """Where all spellings are authenticated alike, capitals are no misspelling."""
    assert kind(Table(), path) == "authenticated"


def test_users_paths_are_added_to_the_table() -> None:
    """``paths`` names the user's own, exact or by prefix; more of the same path is not meant."""
    table = Table({"/ask": "metered", "/tools/*": "authenticated", "/v1/legacy": "open", "/v1/rerank": "metered"})
    assert table.match({"path": "/ask"}) == Route("metered", None, "/ask")
    assert kind(table, "/tools/x/y") == "authenticated"
    assert kind(table, "/tools") == "open"
    assert kind(table, "/v1/legacy") == "open"
    assert kind(table, "/v1/rerank") == "metered"
    assert kind(table, "/asking") == "open"
    assert kind(table, "/v1/chat/completions") == "metered"


@pytest.mark.parametrize(
    "path", ["//Ask", "/ASK", "/ask", "/Ask/", "/Ask;a", "/%41sk", "/BOTS/x", "//Bots/x", "/Bots//x"]
)
def test_users_paths_are_guarded_in_any_spelling(path: str) -> None:
    """Also where the user writes capitals; ``/ask`` beside ``/Ask`` is a path that no one listed."""
    table = Table({"/Ask": "metered", "/Bots/*": "authenticated"})
    assert kind(table, path) == ("open" if path == "/ask" else "misspelt")
    assert kind(table, "/Ask") == "metered"
    assert kind(table, "/Bots/Mine") == "authenticated"


def test_an_open_path_opens_no_misspelling() -> None:
    """``paths={"/*": "open"}`` opens what it says and no other spelling of what costs money."""
    table = Table({"/*": "open"})
    assert kind(table, "/v1/files") == "open"
    assert kind(table, "/v1/chat/completions") == "metered"
    assert kind(table, "/V1/chat/completions") == "misspelt"


def test_govern_all_leaves_only_health_open() -> None:
    """For model servers: no ``/invocations`` and ``/tokenize`` as ways round."""
    table = Table(govern="all")
    for path in ("/invocations", "/tokenize", "/", "/metrics", "/Docs", "/health/x"):
        assert kind(table, path) == "authenticated", path
    assert kind(table, "/health") == "open"
    assert kind(table, "//tokenize") == "misspelt"
    assert kind(table, "/v1/chat/completions") == "metered"


@pytest.mark.parametrize(
    "build",
    [
        lambda: Table({"/ask": "free"}),
        lambda: Table({"ask": "metered"}),
        lambda: Table(govern="everything"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_table_is_refused_when_it_is_made(build: Any) -> None:
    """A typing error must not open a path."""
    with pytest.raises(ValueError, match=r"use|starts with"):
        build()


def test_equal_tables_have_equal_settings() -> None:
    """So that the same class twice can know it."""
    assert Table({"/a": "open", "/b": "open"}).settings == Table({"/b": "open", "/a": "open"}).settings
    assert Table({"/a": "open"}).settings != Table({"/a": "metered"}).settings
    assert Table().settings != Table(govern="all").settings
