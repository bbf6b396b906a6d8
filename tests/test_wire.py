"""The closed table of paths, and the one place that reads a request's body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest, GatewayError
from asgi_llm_gateway.validation import REFUSED_FIELDS
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, Table, parse

CHAT = METERED["/v1/chat/completions"]
ROUTES = {dialect: Route("metered", dialect, path) for path, dialect in METERED.items()}
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def kind(table: Table, path: str, root_path: str = "") -> str:
    """What the table says of a path."""
    return table.match({"path": path, "root_path": root_path}).kind


def chat(body: str | bytes | dict[str, Any]) -> LLMRequest:
    """A chat request, read."""
    if isinstance(body, dict):
        body = json.dumps(body)
    return parse(ROUTES["chat"], body.encode() if isinstance(body, str) else body)


def with_chat(**fields: Any) -> dict[str, Any]:
    """A good chat body with other fields."""
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def refused(body: str | bytes | dict[str, Any]) -> GatewayError:
    """What a chat body is refused with."""
    with pytest.raises(GatewayError) as caught:
        chat(body)
    assert caught.value.http_status == 400
    assert len(caught.value.message) < 600
    return caught.value


# -- paths -------------------------------------------------------------------------------------------------------------


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


# -- bodies: what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "m",}',
        b'{"model": NaN}',
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "m", "x": ' + b"1" * 5000 + b"}",
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a": ' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 10_000,
        b"[]",
        b'"text"',
        b"null",
        b"3",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Malformed, not an object, NaN, nested 10,000 deep: 400, saying what is wrong, never a traceback."""
    error = refused(body)
    assert error.error_code == "invalid_json"


def test_malformed_json_says_where() -> None:
    """The line and the column, and nothing of the content."""
    message = refused(b'{"model": "secret-words",\n  oops}').message
    assert "line 2" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": ["m"]}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"tenant": 3}, "tenant"),
        ({"tenant": {"$ne": ""}}, "tenant"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}, None]}, "messages[1]"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": 3, "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"text": "a"}}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": True}, "n"),
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": "2"}, "n"),
        ({"best_of": -1}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 10**25}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_output_tokens": []}, "max_output_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_its_name(change: dict[str, Any], param: str) -> None:
    """The field at fault is named in ``param`` and in the message."""
    error = refused(with_chat(**change))
    assert error.param == param
    assert param.partition("[")[0] in error.message


@pytest.mark.parametrize("name", sorted(REFUSED_FIELDS))
def test_fields_that_route_money_or_trust_are_refused(name: str) -> None:
    """Where calls go, and with which key, is the operator's to say; even ``null`` is refused."""
    for value in ("https://evil.example", None):
        error = refused(with_chat(**{name: value}))
        assert (error.param, error.error_code) == (name, "unsupported_parameter")
        assert "Remove the field" in error.message


DECIDING = ["model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "tenant"]
VALUES = {"model": '"m"', "stream": "true", "tenant": '"a"'}


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("disguise", [False, True])
def test_a_deciding_key_given_twice_is_refused(name: str, disguise: bool) -> None:
    """Two readers could each take another one; an escape in the name hides nothing."""
    value = VALUES.get(name, "5")
    twin = f"\\u{ord(name[0]):04x}{name[1:]}" if disguise else name
    first = "" if name == "model" else '"model":"m",'
    error = refused(f'{{{first}"{name}":{value},{MESSAGES},"{twin}":{value}}}')
    assert (error.error_code, error.param) == ("duplicate_field", name)


@pytest.mark.parametrize("twin", ["\\u006dodel", "mode\\u006C", "\\u006D\\u006f\\u0064\\u0065\\u006c"])
def test_a_key_disguised_by_escapes_is_seen_through(twin: str) -> None:
    """Any of its letters may be escaped, in either case."""
    assert refused(f'{{"{twin}":"a","model":"b",{MESSAGES}}}').error_code == "duplicate_field"
    assert chat(f'{{"{twin}":"a",{MESSAGES}}}').model == "a"  # once is fine


def test_stream_options_twice_is_refused() -> None:
    """The usage event is decided by it."""
    body = f'{{"model":"m","stream":true,"stream_options":{{}},"stream_options":{{"include_usage":true}},{MESSAGES}}}'
    assert refused(body).error_code == "duplicate_field"


def test_the_same_names_deeper_in_are_no_duplicates() -> None:
    """Tools and metadata may use any name; so may a text that quotes JSON."""
    body = with_chat(
        metadata={"model": "x", "n": 1}, tools=[{"model": 1, "stream": 2}], stop=['"model":', '"n"'], n=2, tenant="a"
    )
    assert chat(body).choices == 2
    assert chat(f'{{"model":"m","x":{{"model":1}},"y":"\\u006dodel",{MESSAGES}}}').model == "m"


def test_twins_of_a_field_that_nobody_acts_on_are_left_alone() -> None:
    """What passes through passes as it is."""
    raw = f'{{"model":"m","seed":1,"seed":2,{MESSAGES}}}'
    assert chat(raw).body == raw.encode()


def test_a_doubtful_body_that_is_nested_deeply_is_refused() -> None:
    """Looking for twins must not run out of stack."""
    deep = "[" * 1010 + "]" * 1010
    assert refused(f'{{"model":"m","x":{deep},"y":{{"model":1}},{MESSAGES}}}').error_code == "invalid_json"


# -- bodies: what is read ----------------------------------------------------------------------------------------------


def test_a_request_tells_what_the_gateway_acts_on() -> None:
    """Model, stream, limit, choices and tenant; the rest stays data."""
    request = chat(with_chat(stream=True, max_tokens=9, n=3, tenant="a", stream_options={"include_usage": True}))
    assert (request.model, request.stream, request.max_tokens, request.choices) == ("m", True, 9, 3)
    assert (request.tenant, request.wants_usage) == ("a", True)
    plain = chat(with_chat(stream=None, max_tokens=None, n=None, tenant=None, stream_options=None))
    assert (plain.stream, plain.max_tokens, plain.choices, plain.tenant, plain.wants_usage) == (
        False,
        None,
        1,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("dialect", "fields", "limit"),
    [
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 5, "max_tokens": 5}, 5),
        ("chat", {"max_output_tokens": 5}, None),
        ("completions", {"max_tokens": 5}, 5),
        ("completions", {"max_completion_tokens": 5}, None),
        ("responses", {"max_output_tokens": 5}, 5),
        ("responses", {"max_tokens": 5}, None),
        ("messages", {"max_tokens": 5}, 5),
        ("messages", {"max_output_tokens": 5}, None),
    ],
)
def test_an_output_limit_counts_only_under_its_dialects_name(
    dialect: Any, fields: dict[str, int], limit: int | None
) -> None:
    """A name that the provider passes over would be a limit for the hold and none for the answer."""
    body = with_chat(prompt="x", input="x", **fields)
    assert parse(ROUTES[dialect], json.dumps(body).encode()).max_tokens == limit


@pytest.mark.parametrize(
    ("dialect", "good", "bad"),
    [
        ("embeddings", {"input": ["a", "b"]}, {"input": []}),
        ("embeddings", {"input": [1, 2]}, {"input": 3}),
        ("embeddings", {"input": "a"}, {}),
        ("completions", {"prompt": "a"}, {"prompt": ""}),
        ("completions", {"prompt": [[1, 2]]}, {"prompt": {}}),
        ("responses", {"input": "a"}, {"input": 3}),
        ("responses", {"previous_response_id": "r"}, {"input": []}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, {"messages": []}),
    ],
)
def test_each_dialect_has_its_own_required_text(dialect: Any, good: dict[str, Any], bad: dict[str, Any]) -> None:
    """The prompt sits in another field for each."""
    assert parse(ROUTES[dialect], json.dumps({"model": "m", **good}).encode()).model == "m"
    with pytest.raises(BadRequest):
        parse(ROUTES[dialect], json.dumps({"model": "m", **bad}).encode())


def test_content_may_be_null_or_parts() -> None:
    """An assistant's message with tool calls has none; images come in parts."""
    chat({"model": "m", "messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool"}]})
    chat({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})


# -- bodies: what is written -------------------------------------------------------------------------------------------


def test_an_unchanged_body_stays_byte_for_byte() -> None:
    """Odd spacing, escapes, unknown fields: nothing is written anew."""
    raw = b'  {"model" : "m","messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],\n "x": 1.0e0, "x": 2 }\n'
    assert chat(raw).body == raw


def test_what_is_added_is_put_at_the_end_of_the_clients_bytes() -> None:
    """The client's own bytes stay as they are."""
    raw = b'{"model" : "m", "seed": 99999999999999999999999, "messages":[{"role":"user","content":"\\u00e9"}] } \n'
    request = chat(raw).with_fields(max_tokens=7).with_fields(stream_options={"include_usage": True})
    assert request.body.startswith(raw.rstrip()[:-1])
    assert json.loads(request.body) == {**json.loads(raw), "max_tokens": 7, "stream_options": {"include_usage": True}}
    assert request.added == {"max_tokens": 7, "stream_options": {"include_usage": True}}


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    """``None`` takes a field out; absent stays absent."""
    raw = f'{{"model":"m", {MESSAGES}}}'
    assert chat(raw).with_fields(tenant=None, n=None).body == raw.encode()
    assert json.loads(chat(raw).with_fields(tenant=None, max_tokens=3).body) == {**json.loads(raw), "max_tokens": 3}


def test_a_field_that_was_added_can_be_changed_and_taken_out() -> None:
    """The last word counts, and is written once."""
    request = chat(with_chat())
    twice = request.with_fields(max_tokens=5).with_fields(max_tokens=6)
    assert json.loads(twice.body) == with_chat(max_tokens=6)
    assert json.loads(twice.with_fields(max_tokens=None).body) == with_chat()
    assert twice.body.count(b"max_tokens") == 1


def test_the_tenant_goes_out_of_the_body_and_is_still_known() -> None:
    """The gateway's own field never goes upstream."""
    request = chat(with_chat(tenant="a")).with_fields(tenant=None)
    assert b"tenant" not in request.body
    assert request.tenant == "a"


@pytest.mark.parametrize("number", [2**64, 2**64 + 1, -(2**70) - 3, 12345678901234567890123456789, 10**30])
def test_writing_anew_keeps_integers_beyond_64_bit(number: int) -> None:
    """Not a digit is lost, at the top level or deeper in."""
    request = chat(with_chat(tenant="a", seed=number, metadata={"ids": [number, 1.5]})).with_fields(
        tenant=None, model="x"
    )
    assert json.loads(request.body) == with_chat(model="x", seed=number, metadata={"ids": [number, 1.5]})


@pytest.mark.parametrize("depth", [100, 300, 600])
@pytest.mark.parametrize("number", [1, 10**25])
def test_writing_anew_bears_deep_nesting(depth: int, number: int) -> None:
    """What could be read can be written again."""
    deep = "[" * depth + "]" * depth
    request = chat(f'{{"model":"m","tenant":"a","seed":{number},"x":{deep},{MESSAGES}}}').with_fields(tenant=None)
    assert json.loads(request.body) == {**with_chat(), "seed": number, "x": json.loads(deep)}


@pytest.mark.parametrize("number", [1, 10**25])
def test_what_is_nested_too_deeply_to_write_is_refused(number: int) -> None:
    """A refusal, not a traceback."""
    deep = "[" * 1015 + "]" * 1015
    with pytest.raises(BadRequest, match="nested too deeply"):
        _ = chat(f'{{"model":"m","tenant":"a","seed":{number},"x":{deep},{MESSAGES}}}').with_fields(tenant=None).body


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.from_regex(r"x_[a-z]{1,6}", fullmatch=True), JSON_VALUES, max_size=5), st.booleans())
def test_unknown_fields_are_kept_whatever_they_hold(extra: dict[str, Any], ascii_only: bool) -> None:
    """Amended or not, an unknown field says upstream what the client said."""
    raw = json.dumps({**with_chat(tenant="a"), **extra}, ensure_ascii=ascii_only)
    changed = chat(raw).with_fields(tenant=None, max_tokens=3)
    assert json.loads(changed.body) == {**with_chat(max_tokens=3), **extra}
    added = chat(json.dumps({**with_chat(), **extra})).with_fields(max_tokens=3)
    assert json.loads(added.body) == {**with_chat(max_tokens=3), **extra}
