"""Forms: read in every way that clients write them, changed in one field only, and refused where two readers may differ."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import multipart
from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.multipart import MAX_PART_HEADERS, MAX_PARTS, MAX_VALUE, boundary_of, read, rewrite, text_of

from .forms import FILE, MODEL, B, form, part

# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data; boundary=xYz",
        b'multipart/form-data; boundary="xYz"',
        b"Multipart/Form-Data;boundary=xYz; charset=utf-8",
        b'multipart/form-data ; charset="utf-8" ; BOUNDARY=xYz',
    ],
)
def test_the_boundary_is_found_however_it_is_written(kind: bytes) -> None:
    """Quoted or not, in any case, beside other parameters."""
    assert boundary_of(kind) == B


@pytest.mark.parametrize("kind", [None, b"application/json", b"text/plain; boundary=x", b"multipart/mixed; boundary=x"])
def test_another_content_type_is_no_form(kind: bytes | None) -> None:
    """It has no boundary, and that is no error."""
    assert boundary_of(kind) is None


@pytest.mark.parametrize(
    "rest",
    [
        b"", b"; boundary=", b'; boundary=""', b"; boundary=" + b"x" * 71, b"; boundary=a; boundary=b", b"; boundary=a\x00b",
        b'; boundary="a', b'; boundary="a\\"b"', b"; boundary=\xff", b'; boundary="ends with "', b"; nonsense",
    ],
)  # fmt: skip
def test_a_form_without_a_sound_boundary_is_refused(rest: bytes) -> None:
    """A40: no boundary, an empty one, one that is too long, two of them."""
    with pytest.raises(BadRequest) as caught:
        boundary_of(b"multipart/form-data" + rest)
    assert (caught.value.http_status, caught.value.param) == (400, "content-type")


def test_fields_and_files_are_found() -> None:
    """Where they stand, and which is which."""
    body = form(MODEL, FILE, part("temperature", b"", b"Content-Type: text/plain; charset=utf-8"))
    found = read(body, B)
    assert [(one.name, body[one.start : one.end], one.file) for one in found.parts] == [
        ("model", b"whisper-1", False),
        ("file", b"\x00\x01RIFF\r\n--other", True),
        ("temperature", b"", False),
    ]
    assert text_of(found, body, "model") == "whisper-1"
    assert text_of(found, body, "language") is None


@pytest.mark.parametrize(
    "header",
    [
        b"content-disposition:form-data;name=model",
        b'CONTENT-DISPOSITION: Form-Data ; NAME="model"',
        b'Content-Length: 9\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset="UTF-8"',
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8bit',
        b'Content-Length: -5\r\nContent-Disposition: form-data; name="model"',
    ],
)
def test_a_field_is_found_however_its_headers_are_written(header: bytes) -> None:
    """In any case, in any order, quoted or not; a length that it claims for itself counts for nothing."""
    body = form(header + b"\r\n\r\nwhisper-1", FILE)
    assert text_of(read(body, B), body, "model") == "whisper-1"


@pytest.mark.parametrize(
    "filename", ["a b.wav", "../../etc/passwd", 'quo\\"te.wav', "C:\\dir\\a.wav", "ä.wav", "a;name=model.wav", "", "\t"]
)
def test_a_files_name_is_no_trick(filename: str) -> None:
    """A40: whatever stands in it, the field's name is the field's name, and nothing is done with it."""
    body = form(MODEL, part("file", b"x", filename=filename))
    found = read(body, B)
    assert [(one.name, one.file) for one in found.parts] == [("model", False), ("file", True)]
    assert text_of(found, body, "model") == "whisper-1"


_NAMES = st.text("abcdefghijklmnopqrstuvwxyz_[].0123456789", min_size=1, max_size=20)
_BYTES = st.one_of(st.binary(max_size=60), st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n--xY", b"--xYz", b"\r"]))
_PARTS = st.lists(st.tuples(_NAMES, _BYTES, st.booleans()), min_size=1, max_size=6)


def written(parts: list[tuple[str, bytes, bool]]) -> bytes:
    """The form of these parts."""
    return form(*(part(name, value, filename="f" if file else None) for name, value, file in parts))


@given(_PARTS)
def test_every_form_is_read_as_it_was_written(parts: list[tuple[str, bytes, bool]]) -> None:
    """Names, contents and kinds, in order, whatever the contents are."""
    body = written(parts)
    found = read(body, B)
    assert [(one.name, body[one.start : one.end], one.file) for one in found.parts] == parts


@given(st.dictionaries(_NAMES, st.text(max_size=40), min_size=1, max_size=4), st.binary(max_size=200))
@settings(max_examples=50)
def test_what_a_client_library_writes_is_read(fields: dict[str, str], content: bytes) -> None:
    """httpx, as the official SDK has it."""
    fields.pop("upload", None)
    request = httpx.Request("POST", "http://x", data=fields, files={"upload": ("n.bin", content)})
    body = request.read()
    found = read(body, boundary_of(request.headers["content-type"].encode()) or b"")
    told = {one.name: body[one.start : one.end] for one in found.parts}
    assert told == {**{name: value.encode() for name, value in fields.items()}, "upload": content}


# -- changing ----------------------------------------------------------------------------------------------------------


@given(_PARTS, _NAMES, st.one_of(st.none(), st.text("abc/-é 1", max_size=20)))
def test_a_change_leaves_all_else_byte_for_byte(
    parts: list[tuple[str, bytes, bool]], name: str, value: str | None
) -> None:
    """The named field has its new value once, or is gone; the others keep theirs, and their headers, and their order."""
    body = written(parts)
    kept = [one for one in parts if one[0] != name]
    if not kept and value is None:
        return  # a form of nothing is none
    changed = rewrite(read(body, B), body, {name: value})
    found = read(changed, B)
    others = [one for one in found.parts if one.name != name]
    assert [(one.name, changed[one.start : one.end], one.file) for one in others] == kept
    assert [changed[one.opens : one.start].lstrip(b"\r\n") for one in others] == [
        b"--%b\r\n%b" % (B, part(key, b"", filename="f" if file else None)) for key, _, file in kept
    ]
    named = [changed[one.start : one.end] for one in found.named(name)]
    assert named == ([] if value is None else [value.encode()])


def test_a_form_that_is_not_changed_is_the_same() -> None:
    """No change, no other byte."""
    body = form(MODEL, FILE)
    assert rewrite(read(body, B), body, {}) == body


def test_a_large_form_is_changed_too() -> None:
    """Thirty megabytes of what is almost a delimiter."""
    body = form(part("file", b"\r\n-" * 10_000_000, filename="a"), MODEL)
    changed = rewrite(read(body, B), body, {"model": "other"})
    assert changed == form(part("file", b"\r\n-" * 10_000_000, filename="a"), part("model", b"other"))


# -- what is refused ---------------------------------------------------------------------------------------------------

_DISPOSITION = b'Content-Disposition: form-data; name="model"'
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "only the end": b"--xYz--\r\n",
    "another boundary": form(MODEL, boundary=b"zzz"),
    "text before": b"preamble\r\n" + form(MODEL),
    "a line break before": b"\r\n" + form(MODEL),
    "text after": form(MODEL) + b"--xYz\r\n" + MODEL,
    "a second form": form(MODEL) + form(MODEL),
    "cut": form(MODEL, FILE)[:-20],
    "no end": b"--xYz\r\n" + MODEL + b"\r\n--xYz\r\n",
    "line feeds": form(MODEL).replace(b"\r\n", b"\n"),
    "padding": b"--xYz  \r\n" + MODEL + b"\r\n--xYz--\r\n",
    "a longer boundary": form(part("model", b"a\r\n--xYzz\r\n" + part("model", b"b"))),
    "no headers": form(b"\r\nvalue"),
    "no disposition": form(b"Content-Type: text/plain\r\n\r\nvalue"),
    "two dispositions": form(_DISPOSITION + b"\r\n" + _DISPOSITION.replace(b"model", b"tenant") + b"\r\n\r\nv"),
    "a folded header": form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nv'),
    "a lone carriage return": form(b'Content-Disposition: form-data; name="model"\rX: y\r\n\r\nv'),
    "a null": form(b'Content-Disposition: form-data; name="mo\0del"\r\n\r\nv'),
    "two names": form(b'Content-Disposition: form-data; name="a"; name="model"\r\n\r\nv'),
    "an encoded name": form(b"Content-Disposition: form-data; name*=UTF-8''model\r\n\r\nv"),
    "a name in disguise": form(b'Content-Disposition: form-data; name="mo\\del"\r\n\r\nv'),
    "a name with spaces": form(b'Content-Disposition: form-data; name=" model"\r\n\r\nv'),
    "a long name": form(part("n" * 129, b"v")),
    "no name": form(b"Content-Disposition: form-data\r\n\r\nv"),
    "an attachment": form(b'Content-Disposition: attachment; name="model"\r\n\r\nv'),
    "base64": form(_DISPOSITION + b"\r\nContent-Transfer-Encoding: base64\r\n\r\nd2hpc3Blcg=="),
    "long headers": form(part("model", b"v", b"X: " + b"y" * MAX_PART_HEADERS)),
    "many parts": form(*[part("a", b"")] * (MAX_PARTS + 1)),
    "nested": form(part("model", b"v", b"Content-Type: multipart/mixed; boundary=xYz\r\nno header")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_two_readers_may_read_in_two_ways_is_refused(name: str) -> None:
    """A40: with 400, and words that say what is wrong."""
    with pytest.raises(BadRequest) as caught:
        read(HOSTILE[name], B)
    assert caught.value.http_status == 400
    assert caught.value.error_code == "invalid_form"
    assert caught.value.message.startswith("The form can't be read: ")


@given(st.binary(max_size=300))
def test_no_bytes_make_anything_but_a_form_or_a_refusal(data: bytes) -> None:
    """Never another exception, whatever comes."""
    for body in (data, b"--xYz\r\n" + data, form(MODEL) + data, b"--xYz\r\n" + MODEL + data + b"\r\n--xYz--"):
        try:
            found = read(body, B)
            text_of(found, body, "model")
        except BadRequest:
            pass


@pytest.mark.parametrize("cut", range(0, 150, 7))
def test_a_form_that_was_cut_is_refused(cut: int) -> None:
    """Wherever that was."""
    body = form(MODEL, FILE)
    if cut < len(body) - 2:
        with pytest.raises(BadRequest):
            read(body[:cut], B)


@pytest.mark.parametrize(
    "hostile", [b"--xYz\r\n" * 400_000, b"--xYz\r\n" + b"\r\n--xY" * 1_000_000, b"--xYz" * 500_000]
)
def test_hostile_bytes_come_to_an_end(hostile: bytes) -> None:
    """A40 (CVE-2024-8984): a body of boundaries, or of half ones, is given up on."""
    with pytest.raises(BadRequest):
        read(hostile, B)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((MODEL, part("model", b"tts-1")), "duplicate_field"),
        ((part("model", b"a", filename="model"),), "invalid_value"),
        ((part("model", b"a" * (MAX_VALUE + 1)),), "invalid_value"),
        ((part("model", b"\xff\xfe"),), "invalid_value"),
        ((part("model", "m".encode("utf-16"), b"Content-Type: text/plain; charset=utf-16"),), "invalid_value"),
    ],
)
def test_a_field_that_decides_is_one_short_text(parts: Any, code: str) -> None:
    """Given twice, as a file, too long or in another encoding it is refused by its name."""
    body = form(*parts)
    with pytest.raises(BadRequest) as caught:
        text_of(read(body, B), body, "model")
    assert (caught.value.error_code, caught.value.param) == (code, "model")


def test_what_is_public_is_listed() -> None:
    """And nothing else is used here."""
    assert {"read", "rewrite", "text_of", "boundary_of"} <= set(multipart.__all__)
