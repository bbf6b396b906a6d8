"""How long the refusal of a wrong key waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.damping import ALARM_SECONDS, Damping, source_of


class Hand:
    """Time, moved by hand."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_a_burst_is_refused_at_once_and_what_is_beyond_it_waits() -> None:
    """The wait grows by the time that a token takes, up to the longest; another source does not wait."""
    damping = Damping(burst=3, per_second=2, longest=1.2, clock=Hand())
    assert [round(damping.failed("a", None), 9) for _ in range(7)] == [0, 0, 0, 0.5, 1.0, 1.2, 1.2]
    assert damping.failed("b", None) == 0
    assert (damping.failures, damping.delayed) == (8, 4)


def test_who_stops_guessing_is_forgiven() -> None:
    """In the time of the burst and the longest wait together, however many were wrong before."""
    clock = Hand()
    damping = Damping(burst=4, per_second=1, longest=2, clock=clock)
    for _ in range(1000):
        damping.failed("a", None)
    clock.now += 4 + 2
    assert [damping.failed("a", None) for _ in range(4)] == [0, 0, 0, 0]
    assert damping.failed("a", None) == 1


def test_many_sources_are_one_attack() -> None:
    """A new address for each guess is no way round."""
    damping = Damping(burst=5, all_burst=10, all_per_second=1, longest=5, clock=Hand())
    assert [damping.failed(f"source-{at}", None) > 0 for at in range(12)] == [False] * 10 + [True] * 2


def test_only_so_many_refusals_wait() -> None:
    """One more goes out at once; when a wait is over, there is room for another."""
    damping = Damping(burst=0, waiting=2, clock=Hand())
    assert [damping.failed("a", None) > 0 for _ in range(3)] == [True, True, False]
    damping.waited()
    assert damping.failed("a", None) > 0
    assert damping.now_waiting == 2


def test_a_wrong_key_is_remembered_only_where_too_many_are_wrong() -> None:
    """And only for a moment: a key that is made meanwhile works soon after."""
    clock = Hand()
    damping = Damping(burst=1, remember=2, clock=clock)
    damping.failed("a", "first")
    damping.failed("a", "second")
    assert (damping.knows("first"), damping.knows("second")) == (False, True)
    clock.now += 2
    assert not damping.knows("second")


def test_it_can_be_switched_off() -> None:
    """Failures are counted all the same."""
    damping = Damping(longest=0, burst=0)
    assert [damping.failed("a", "x") for _ in range(50)] == [0] * 50
    assert (damping.failures, damping.knows("x")) == (50, False)


def test_the_operator_is_told_once_a_minute() -> None:
    """Not once a guess: the log is no place to be filled by strangers."""
    clock = Hand()
    damping = Damping(clock=clock)
    assert [damping.alarm(), damping.alarm()] == [True, False]
    clock.now += ALARM_SECONDS
    assert damping.alarm()


@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5), st.booleans()), max_size=80),
    burst=st.integers(0, 5),
    per_second=st.floats(0.1, 10),
)
def test_no_source_fails_faster_than_its_bucket_fills(
    steps: list[tuple[str, float, bool]], burst: int, per_second: float
) -> None:
    """At any times: of one source, no more refusals go out without waiting than the bucket had tokens; none waits too long."""
    clock = Hand()
    begun = clock.now
    damping = Damping(burst=burst, per_second=per_second, longest=1.0, waiting=3, all_burst=10**6, clock=clock)
    free = dict.fromkeys("abc", 0)
    for source, pause, over in steps:
        clock.now += pause
        full = damping.now_waiting == 3
        delay = damping.failed(source, "digest")
        assert 0 <= delay <= 1.0
        free[source] += delay == 0 and not full
        assert free[source] <= burst + (clock.now - begun) * per_second + 1e-6
        if over and damping.now_waiting:
            damping.waited()
        assert 0 <= damping.now_waiting <= 3


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(1, 8))
def test_its_memory_is_bounded(sources: list[int], most: int) -> None:
    """Whatever comes, in whatever order."""
    damping = Damping(burst=0, most=most, waiting=0, clock=Hand())
    for source in sources:
        damping.failed(f"s{source}", f"d{source}")
        assert len(damping._due) <= most
        assert len(damping._wrong) <= most


@pytest.mark.parametrize(
    ("client", "source"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (["192.0.2.7", 4711], "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 4711), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 4711), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 4711), "fe80::/64"),
        (("testclient", 50000), "testclient"),
        (("x\nfoo: bar", 0), ""),
        (("", 0), ""),
        ((None, 0), ""),
        ((), ""),
        (None, ""),
    ],
)
def test_a_source_is_an_address_or_a_network(client: object, source: str) -> None:
    """IPv6 by its 64 bits of network: a guesser has all the addresses in it. What is none is one source, and no log line."""
    assert source_of(client) == source


@pytest.mark.parametrize(
    "wrong",
    [{"burst": -1}, {"longest": float("nan")}, {"per_second": 0}, {"all_per_second": float("inf")}, {"most": 0}],
)
def test_an_argument_that_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    """By its name, when it is made."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Damping(**wrong)  # type: ignore[arg-type]
