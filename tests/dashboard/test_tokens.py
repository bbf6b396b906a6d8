"""A session's token: what was not made by one of our workers, as it is, stands for nobody."""

from __future__ import annotations

import base64
import multiprocessing
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.dashboard.secret import NAME, Secret, shared_secret
from asgi_llm_gateway.dashboard.sessions import Seal, derived
from asgi_llm_gateway.errors import StoreError

NOW = 1_800_000_000.5
SEAL = Seal(b"s" * 32)
DIGESTS = st.binary(min_size=32, max_size=32)


@given(DIGESTS, st.integers(1, 10**6), st.floats(0, 1e10))
def test_a_token_gives_back_its_session_until_its_end(digest: bytes, seconds: int, now: float) -> None:
    """Every worker with the secret reads the same; from its last second on nobody does."""
    token, session = SEAL.issue(digest, now=now, seconds=seconds)
    assert Seal(b"s" * 32).read(token, now) == session
    assert (session.digest, session.until) == (digest, int(now) + seconds)
    assert SEAL.read(token, session.until - 0.001) == session
    assert SEAL.read(token, session.until) is None
    assert Seal(b"t" * 32).read(token, now) is None


TOKEN, SESSION = SEAL.issue(b"d" * 32, now=NOW, seconds=60)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.mark.parametrize("at", range(len(TOKEN)))
def test_no_character_can_be_changed(at: int) -> None:
    """Each of them, to each of the others, the last one's spare bits included."""
    for other in set(ALPHABET) - {TOKEN[at]}:
        assert SEAL.read(TOKEN[:at] + other + TOKEN[at + 1 :], NOW) is None


@given(
    st.one_of(
        st.text(max_size=300),
        st.text(ALPHABET, min_size=len(TOKEN) - 2, max_size=len(TOKEN) + 2),
        st.integers(0, len(TOKEN) - 1).map(lambda at: TOKEN[:at]),
        st.text(ALPHABET + "= \t\"'", min_size=1, max_size=4).map(lambda more: TOKEN + more),
        st.text(ALPHABET + "= ", min_size=1, max_size=4).map(lambda more: more + TOKEN),
        st.binary(min_size=80, max_size=100).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
    )
)
def test_what_is_no_token_is_nobodys(text: str) -> None:
    """Whatever it is, and however near it comes."""
    assert SEAL.read(text, NOW) is None


@given(DIGESTS, DIGESTS)
def test_parts_of_two_tokens_make_no_third(one: bytes, other: bytes) -> None:
    """Another session's key, end or signature does not fit."""
    first, second = (
        base64.urlsafe_b64decode(SEAL.issue(digest, now=NOW, seconds=60)[0] + "=") for digest in (one, other)
    )
    for cut in (1, 17, 25, 57):
        mixed = base64.urlsafe_b64encode(first[:cut] + second[cut:]).rstrip(b"=").decode()
        session = SEAL.read(mixed, NOW)
        assert session is None or mixed in (_text(first), _text(second))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@given(DIGESTS)
def test_a_token_tells_nothing_of_the_key(digest: bytes) -> None:
    """Not its digest either: a key that an operator chose could be guessed by it."""
    token, session = SEAL.issue(digest, now=NOW, seconds=60)
    again, _ = SEAL.issue(digest, now=NOW, seconds=60)
    raw = base64.urlsafe_b64decode(token + "=")
    assert digest not in raw
    assert digest.hex() not in repr(session) + token
    assert session.csrf not in repr(session)
    # Under another pad each time: two sessions of one key have nothing in common.
    assert raw[25:57] != base64.urlsafe_b64decode(again + "=")[25:57]


def test_sessions_have_tokens_of_their_own() -> None:
    """Of one key at one time, too; and what a change must bring along is each session's own."""
    made = [SEAL.issue(b"d" * 32, now=NOW, seconds=60) for _ in range(100)]
    assert len({token for token, _ in made}) == len({session.csrf for _, session in made}) == 100


def test_a_short_secret_is_refused() -> None:
    """ValueError."""
    with pytest.raises(ValueError, match="32 bytes"):
        Seal(b"short")


async def test_the_secret_is_that_of_the_admin_key(tmp_path: Path) -> None:
    """The same on every machine, another for another key, and nothing is written."""
    one, same, other = (Secret(key, tmp_path / "no") for key in ("k" * 32, "k" * 32, "j" * 32))
    token, session = (await one.seal()).issue(b"d" * 32, now=NOW, seconds=60)
    assert (await same.seal()).read(token, NOW) == session
    assert (await other.seal()).read(token, NOW) is None
    assert not (tmp_path / "no").exists()
    assert derived("k" * 32) != derived("j" * 32)


def _in_a_process(folder: Path, start: object, found: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    found.put(shared_secret(folder))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_share_one_secret(tmp_path: Path) -> None:
    """Whoever is first makes it, whole; it is its owner's alone, and stays."""
    spawn = multiprocessing.get_context("spawn")
    start, found = spawn.Barrier(4), spawn.Queue()
    workers = [spawn.Process(target=_in_a_process, args=(tmp_path / "data", start, found)) for _ in range(4)]
    for one in workers:
        one.start()
    secrets = {found.get(timeout=60) for _ in workers}
    for one in workers:
        one.join(60)
    assert len(secrets) == 1
    assert shared_secret(tmp_path / "data") in secrets
    assert [path.name for path in (tmp_path / "data").iterdir()] == [NAME]
    assert stat.S_IMODE((tmp_path / "data" / NAME).stat().st_mode) == 0o600


def test_a_secret_that_cannot_be_used_names_the_setting(tmp_path: Path) -> None:
    """A folder that is none, a file that is damaged."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="GATEWAY_DATA_DIR"):
        shared_secret(tmp_path / "file")
    (tmp_path / NAME).write_bytes(b"half")
    with pytest.raises(StoreError, match="damaged: delete it"):
        shared_secret(tmp_path)
