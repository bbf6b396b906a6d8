"""Forms written by hand, so that every byte of them is a test's own."""

from __future__ import annotations

B = b"xYz"


def part(name: str, value: bytes, *more: bytes, filename: str | None = None) -> bytes:
    """One part without its delimiter."""
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return b"\r\n".join([b"Content-Disposition: " + disposition.encode(), *more]) + b"\r\n\r\n" + value


def form(*parts: bytes, boundary: bytes = B) -> bytes:
    """A whole form."""
    return b"".join(b"--%b\r\n%b\r\n" % (boundary, one) for one in parts) + b"--%b--\r\n" % boundary


MODEL = part("model", b"whisper-1")
FILE = part("file", b"\x00\x01RIFF\r\n--other", b"Content-Type: audio/wav", filename="a.wav")
