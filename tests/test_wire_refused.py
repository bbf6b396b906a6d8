"""A request's body that is refused: what is no JSON, a wrong value by its name, and a deciding key given twice."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.validation import REFUSED_FIELDS

from .wire_bodies import MESSAGES, chat, refused, with_chat


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
