"""Virtual keys, tenant ids and hold ids: how they look, how they are made, how they are found."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
import time
import unicodedata
from dataclasses import replace

from .records import ApiKey

PREFIX = "gw-"
CLIENT_SECRET = "ek_"  # noqa: S105 - what such a secret begins with
MAX_KEY_LENGTH = 256
"""Characters that a key may have; a longer one is no key."""

_KEY = re.compile(rb"[A-Za-z0-9._~+/=-]{8,%d}\Z" % MAX_KEY_LENGTH)
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")

TENANT_ALPHABET = "1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
"""What a tenant's id may be made of: safe in URLs, headers, logs, metric labels and store keys."""


def new_secret() -> str:
    """A fresh key: 32 random bytes, URL-safe. Shown once; only its digest is kept."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: bytes) -> str | None:
    """What a key is kept and found by; ``None`` for what can't be a key.

    A plain SHA-256 is enough: keys have 256 random bits, so there is nothing to guess.
    """
    if _KEY.match(secret) is None:
        return None
    return hashlib.sha256(secret).hexdigest()


def new_key(
    tenant: str, *, name: str = "", expires: float | None = None, secret: str | None = None
) -> tuple[ApiKey, str]:
    """A key for a tenant and its secret. Raises ValueError for a secret that can't be a key."""
    secret = new_secret() if secret is None else secret
    digest = digest_of(secret.encode())
    if digest is None:
        raise ValueError(f"a key has 8 to {MAX_KEY_LENGTH} characters of A-Z a-z 0-9 . _ ~ + / = -")
    # The id tells nothing of the secret, yet the same secret gives the same id: a file's keys can be read again.
    key_id = "key_" + hashlib.sha256(digest.encode()).hexdigest()[:20]
    return ApiKey(key_id, tenant, digest, name=name, created=time.time(), expires=expires), secret


def new_admin_key(*, name: str = "", expires: float | None = None) -> tuple[ApiKey, str]:
    """A key that opens the admin API and nothing else, and its secret. ``expires`` is Unix seconds."""
    key, secret = new_key("", name=name, expires=expires)
    return replace(key, kind="admin"), secret


def new_client_secret(parent: ApiKey, tenant: str, *, now: float, seconds: float) -> tuple[ApiKey, str]:
    """A key that opens realtime sessions of a tenant which speak for ``parent``, and its secret; it never outlives that key.

    ``now`` is Unix seconds. The prefix is that of OpenAI's own (``ek_``).
    """
    secret = CLIENT_SECRET + secrets.token_urlsafe(32)
    expires = now + seconds if parent.expires is None else min(parent.expires, now + seconds)
    key, _ = new_key(tenant, name=f"client secret of {parent.id}", expires=expires, secret=secret)
    return replace(key, kind="ephemeral", created=now, parent=parent.digest), secret


def successor(key: ApiKey) -> tuple[ApiKey, str]:
    """A key with another secret and the same settings as ``key``, its expiry included; and the secret."""
    fresh, secret = new_key(key.tenant)
    account = key.account or key.id  # what was spent of a budget of its own stays spent
    return replace(key, id=fresh.id, digest=fresh.digest, created=fresh.created, revoked=None, account=account), secret


def check_tenant_id(tenant_id: str) -> str:
    """The id, if it is one. Raises ValueError, saying what one looks like."""
    if unicodedata.normalize("NFC", tenant_id) != tenant_id or _TENANT.match(tenant_id) is None:
        raise ValueError(f"a tenant id is {TENANT_ALPHABET}")
    return tenant_id


def new_hold_id() -> str:
    """An id for a hold, unlike any other: this process's mark and a number. Never a client's request id."""
    return f"{_mark}-{next(_numbers):x}"


def _new_mark() -> None:
    global _mark
    _mark = secrets.token_hex(12)


_mark = ""
_numbers = itertools.count(1)
_new_mark()
os.register_at_fork(after_in_child=_new_mark)  # a forked worker goes on counting from the same number
