"""How long an audio file can be, from its bytes: exactly for plain WAV, else by the lowest rate that its codec has."""

from __future__ import annotations

LEAST_BYTES_PER_SECOND = 750
"""6 kbit/s, the lowest rate of Opus (RFC 6716, section 2.1.1) and so of what is uploaded in WebM and Ogg; AAC, Vorbis and FLAC
take more for anything that is heard."""

LEAST_MP3_BYTES_PER_SECOND = 1_000
"""8 kbit/s, the lowest rate of MPEG audio layer III (ISO/IEC 13818-3, section 2.4.2.3)."""

# Samples of a fixed size: PCM, floating point, A-law, mu-law. Source: RFC 2361 (WAVE format tags).
_FIXED_SIZE = frozenset({1, 3, 6, 7})
_EXTENSIBLE = 0xFFFE
_MAX_CHUNKS = 64


def seconds_at_most(body: bytes, start: int, end: int) -> int:
    """Seconds of the audio file in ``body[start:end]``, a begun one counted whole; at least 1.

    A bound, not a measure: silence may be packed below any rate, which no header tells for sure.
    """
    rate = _wav_rate(body, start, end) or _least_rate(body, start)
    return max(1, -(-(end - start) // rate))


def _least_rate(body: bytes, start: int) -> int:
    head = body[start : start + 4]
    if head.startswith(b"ID3") or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return LEAST_MP3_BYTES_PER_SECOND
    return LEAST_BYTES_PER_SECOND


def _wav_rate(body: bytes, start: int, end: int) -> int:
    """Bytes a second of a WAV file whose samples have a fixed size; 0 for anything else.

    Its whole length is divided by that, not the length that its header claims.
    """
    if body[start : start + 4] != b"RIFF" or body[start + 8 : start + 12] != b"WAVE":
        return 0
    at = start + 12
    for _ in range(_MAX_CHUNKS):
        kind, size = body[at : at + 4], int.from_bytes(body[at + 4 : at + 8], "little")
        if kind == b"fmt " and size >= 16 and at + 24 <= end:
            return _rate_in(body[at + 8 : min(at + 8 + size, end)])
        at += 8 + size + size % 2
        if at + 8 > end:
            break
    return 0


def _rate_in(chunk: bytes) -> int:
    """What a format chunk says, where it agrees with itself."""
    tag, channels = int.from_bytes(chunk[0:2], "little"), int.from_bytes(chunk[2:4], "little")
    samples, told = int.from_bytes(chunk[4:8], "little"), int.from_bytes(chunk[8:12], "little")
    bits = int.from_bytes(chunk[14:16], "little")
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    rate = samples * channels * -(-bits // 8)
    return rate if tag in _FIXED_SIZE and rate == told else 0


__all__ = ["LEAST_BYTES_PER_SECOND", "LEAST_MP3_BYTES_PER_SECOND", "seconds_at_most"]
