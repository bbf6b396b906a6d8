"""Forms as they are uploaded: where each field and file stands in the body, and the body with one field changed.

Sources: RFC 7578 (multipart/form-data) and RFC 2046, section 5.1.1 (boundaries). What the two allow but no client sends
(text before or after the parts, folded headers, encoded parts) is refused: two readers may read it in two ways, and the one
that pays must read what the one that answers does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .errors import BadRequest

MAX_PARTS = 128
"""Fields and files of one form: 16 images, a mask, and every field there is, several times."""

MAX_PART_HEADERS = 4096
"""Bytes of one part's headers."""

MAX_NAME = 128
"""Characters of a field's name."""

MAX_VALUE = 1024
"""Bytes of a field that the gateway reads."""

# RFC 2046, section 5.1.1: 1 to 70 of these characters; a space is not the last.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]\Z")
_PARAMETER = re.compile(
    rb'[ \t]*;[ \t]*([!#$%&*+.^_`|~0-9A-Za-z\'-]{1,64})=(?:"((?:[^"\\\r\n\0]|\\[^\r\n\0])*)"|([^\s;"\0]*))'
)
_NAME = re.compile(rb"[\w.\[\]-]{1,%d}\Z" % MAX_NAME)
_PLAIN_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})
_PLAIN_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii"})


class Part(NamedTuple):
    """One field or file: ``body[start:end]`` is its content, ``body[opens:end]`` all of it with its delimiter."""

    name: str
    opens: int
    start: int
    end: int
    file: bool
    plain: bool
    """Its text is UTF-8, or says nothing else."""


class Form(NamedTuple):
    """A form's parts, in order."""

    boundary: bytes
    parts: tuple[Part, ...]
    closes: int
    """Where the last delimiter begins, with the line break before it."""

    def named(self, name: str) -> list[Part]:
        """The parts of that name."""
        return [part for part in self.parts if part.name == name]

    def files(self) -> list[Part]:
        """The parts that are files."""
        return [part for part in self.parts if part.file]


def _refusal(message: str, param: str | None = None, code: str = "invalid_form") -> BadRequest:
    return BadRequest(f"The form can't be read: {message}", param=param, code=code)


def boundary_of(content_type: bytes | None) -> bytes | None:
    """The boundary in a content type; ``None`` where it is not that of a form. Raises BadRequest for one without."""
    if content_type is None:
        return None
    kind, _, rest = content_type.partition(b";")
    if kind.strip().lower() != b"multipart/form-data":
        return None
    found = _parameters(b";" + rest if rest else b"", "content-type")
    boundary = found.get(b"boundary", b"")
    if _BOUNDARY.match(boundary) is None:
        raise _refusal(
            "the content type needs a boundary of 1 to 70 letters, digits or '()+_,-./:=? and no other character.",
            "content-type",
        )
    return boundary


def read(body: bytes, boundary: bytes) -> Form:
    """Find the parts of a form. Raises BadRequest, saying what to do.

    Every byte is looked at a bounded number of times, and nothing is copied but the headers of the parts.
    """
    mark = b"--" + boundary
    delimiter = b"\r\n" + mark
    if not body.startswith(mark):
        raise _refusal("it must begin with '--' and the boundary that the content type names.")
    parts: list[Part] = []
    opens, at = 0, len(mark)
    while not body.startswith(b"--", at):
        if len(parts) == MAX_PARTS:
            raise _refusal(f"it has more than {MAX_PARTS} parts.")
        if not body.startswith(b"\r\n", at):
            raise _refusal("a boundary must be followed by a line break, or by '--' at the end of the form.")
        at += 2
        end = body.find(b"\r\n\r\n", at, at + MAX_PART_HEADERS)
        if end < 0:
            raise _refusal(f"a part's headers must end with an empty line within {MAX_PART_HEADERS} bytes.")
        name, file, plain = _headers(body[at:end])
        start = end + 4
        # An empty part's own line break may be that of the delimiter.
        stop = body.find(delimiter, start)
        if stop < 0:
            raise _refusal(f"the part '{name}' does not end with the boundary. Send the whole form.", name)
        parts.append(Part(name, opens, start, stop, file, plain))
        opens, at = stop, stop + len(delimiter)
    if body[at + 2 : at + 5] not in (b"", b"\r\n"):
        raise _refusal("something follows its last boundary.")
    if not parts:
        raise _refusal("it has no parts.")
    return Form(boundary, tuple(parts), opens)


def _headers(block: bytes) -> tuple[str, bool, bool]:
    """A part's name, whether it is a file, and whether its text is plain. Raises BadRequest."""
    disposition: bytes | None = None
    plain = True
    for line in block.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if not colon or not key or key[:1] in b" \t" or b"\n" in line or b"\r" in line or b"\0" in line:
            raise _refusal("a part's headers must be lines of 'name: value'.")
        key, value = key.strip().lower(), value.strip()
        if key == b"content-disposition":
            if disposition is not None:
                raise _refusal("a part has two Content-Disposition headers.")
            disposition = value
        elif key == b"content-transfer-encoding" and value.lower() not in _PLAIN_ENCODINGS:
            raise _refusal("an encoded part (Content-Transfer-Encoding) is not accepted. Send it as it is.")
        elif key == b"content-type":
            charset = re.search(rb"charset\s*=\s*\"?([^\s;\"]*)", value.lower())
            plain = charset is None or charset[1] in _PLAIN_CHARSETS
    if disposition is None:
        raise _refusal('each part needs the header Content-Disposition: form-data; name="...".')
    kind, _, rest = disposition.partition(b";")
    found = _parameters(b";" + rest if rest else b"", "content-disposition")
    name = found.get(b"name", b"")
    if kind.strip().lower() != b"form-data" or b"name*" in found or _NAME.match(name) is None:
        raise _refusal(
            f"each part needs Content-Disposition: form-data with a name of 1 to {MAX_NAME} letters, digits or _.-[]"
        )
    return name.decode("ascii"), b"filename" in found or b"filename*" in found, plain


def _parameters(text: bytes, param: str) -> dict[bytes, bytes]:
    """The parameters of a header, by lower-case name. Raises BadRequest for one that is there twice, or is none."""
    found: dict[bytes, bytes] = {}
    at = 0
    text = text.rstrip(b" \t")
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            raise _refusal(f'a parameter of {param} is not of the form name=value or name="value".', param)
        name = match[1].lower()
        if name in found:
            raise _refusal(f"a parameter of {param} is given twice.", param)
        found[name] = match[3] if match[2] is None else match[2]
        at = match.end()
    return found


def text_of(form: Form, body: bytes, name: str) -> str | None:
    """A field's text; ``None`` where the form has no such field. Raises BadRequest for two of them, and for what is no text."""
    parts = form.named(name)
    if not parts:
        return None
    if len(parts) > 1:
        raise BadRequest(f"'{name}' is given twice. Send it once.", param=name, code="duplicate_field")
    part = parts[0]
    if part.file:
        raise BadRequest(f"'{name}' must be a field, not a file.", param=name)
    if part.end - part.start > MAX_VALUE:
        raise BadRequest(f"'{name}' must have at most {MAX_VALUE} bytes.", param=name)
    try:
        if part.plain:
            return body[part.start : part.end].decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise BadRequest(f"'{name}' must be UTF-8 text.", param=name)


def rewrite(form: Form, body: bytes, fields: Mapping[str, str | None]) -> bytes:
    """The body with other values for some fields; ``None`` takes one out. All else stays byte for byte.

    A field that was not there comes last.
    """
    pieces: list[bytes] = []
    left = {name: value for name, value in fields.items() if value is not None}
    at = 0
    for part in form.parts:
        if part.name not in fields:
            continue
        value = left.pop(part.name, None)
        if value is not None:
            pieces += (body[at : part.start], value.encode())
        else:
            pieces.append(body[at : part.opens])
        at = part.end
    pieces.append(body[at : form.closes])
    for name, value in left.items():
        pieces.append(b'\r\n--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b'
                      % (form.boundary, name.encode(), value.encode()))  # fmt: skip
    pieces.append(body[form.closes :])
    whole = b"".join(pieces)
    return whole.removeprefix(b"\r\n")  # the first part was taken out, and the line break before the next one leads now


__all__ = ["MAX_NAME", "MAX_PARTS", "MAX_PART_HEADERS", "MAX_VALUE", "Form", "Part", "boundary_of", "read", "rewrite",
           "text_of"]  # fmt: skip
