"""The circuit breaker of a target: when it opens, that it always comes back, and that one call at a time finds out."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from asgi_llm_gateway.proxy.health import BreakerRules, Health

RULES = BreakerRules(failures=3, cooldown=10.0)
FIRST, SECOND = "one call", "another call"


def opened(rules: BreakerRules = RULES, now: float = 100.0) -> Health:
    """A breaker that has just opened."""
    health = Health(rules)
    for _ in range(rules.failures):
        health.failed(now, FIRST)
    assert health.state(now) == "open"
    return health


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    """Not one before; an answer in between begins the row anew."""
    health = Health(RULES)
    for _ in range(3):
        health.failed(1.0, FIRST)
        health.failed(1.0, FIRST)
        assert (health.tripped, health.state(1.0)) == (False, "closed")
        health.succeeded()
    for _ in range(3):
        health.failed(1.0, FIRST)
    assert (health.tripped, health.state(1.0)) == (True, "open")
    assert not health.allows(1.0, FIRST)
    assert 8.0 <= health.opens_in(1.0) <= 10.0


def test_it_opens_when_half_of_many_calls_fail() -> None:
    """Twenty calls in half a minute; fewer do not count, and neither does what is longer ago."""
    rules = BreakerRules(failures=1000)
    health = Health(rules)
    for at in range(9):
        health.failed(100.0 + at, FIRST)
        health.succeeded()
    health.failed(110.0, FIRST)
    assert not health.tripped
    health.failed(110.0, FIRST)
    assert health.tripped
    late = Health(rules)
    for at in range(9):
        late.failed(100.0 + at, FIRST)
        late.succeeded()
    late.failed(131.0, FIRST)
    late.failed(131.0, FIRST)
    assert not late.tripped


def test_a_good_target_is_not_blamed_for_few_failures_among_many_calls() -> None:
    """Ten per cent is less than half."""
    health = Health(BreakerRules(failures=5))
    for at in range(1000):
        if at % 10:
            health.succeeded()
        else:
            health.failed(at * 0.01, FIRST)
    assert not health.tripped


def test_after_the_cooldown_one_call_probes_and_its_success_closes() -> None:
    """All others stay away meanwhile."""
    health = opened()
    then = 100.0 + health.opens_in(100.0)
    assert not health.allows(then - 0.001, FIRST)
    assert health.allows(then, FIRST)
    assert health.state(then) == "half_open"
    assert [health.allows(then + at, SECOND) for at in range(100)] == [False] * 100
    health.succeeded()
    assert (health.state(then), health.tripped, health.allows(then, SECOND)) == ("closed", False, True)


def test_a_probe_that_fails_doubles_the_time_to_two_minutes_at_most() -> None:
    """10, 20, 40, 80, 120, 120 seconds, less a fifth at most."""
    health, now = opened(), 100.0
    waits = []
    for _ in range(6):
        waits.append(health.opens_in(now))
        now += waits[-1]
        assert health.allows(now, FIRST)
        health.failed(now, FIRST)
    for wait, most in zip(waits, (10, 20, 40, 80, 120, 120), strict=True):
        assert 0.8 * most <= wait <= most
    now += health.opens_in(now)
    assert health.allows(now, FIRST)
    health.succeeded()
    for _ in range(3):
        health.failed(now, FIRST)
    assert health.opens_in(now) <= 10  # from the beginning


def test_a_longer_cooldown_of_the_operators_is_kept() -> None:
    """The two minutes are the most that it grows to."""
    health = opened(BreakerRules(1, 500.0))
    assert 400 <= health.opens_in(100.0) <= 500


def test_a_call_that_began_before_the_breaker_opened_does_not_end_the_probe() -> None:
    """Its client may leave, it may fail or be told to rest: the next probe waits for the end of this one."""
    health = opened()
    then = 100.0 + health.opens_in(100.0)
    assert health.allows(then, FIRST)
    health.left(SECOND)
    assert not health.allows(then, SECOND)
    health.failed(then, SECOND)
    assert (health.state(then), health.allows(then, SECOND)) == ("half_open", False)
    health.rests(then, 1.0)
    assert not health.allows(then + 2.0, SECOND)
    health.left(FIRST)
    assert health.allows(then + 2.0, SECOND)


def test_a_probe_of_which_nobody_hears_again_is_forgotten() -> None:
    """After five minutes another call may find out."""
    health = opened()
    then = 100.0 + health.opens_in(100.0)
    assert health.allows(then, FIRST)
    assert not health.allows(then + 299, SECOND)
    assert health.allows(then + 300, SECOND)
    health.left(FIRST)  # too late: it is not the probe any more
    assert not health.allows(then + 301, FIRST)


def test_a_rest_that_was_asked_for_is_kept_and_is_no_failure() -> None:
    """Afterwards all may go there at once."""
    health = Health(RULES)
    health.rests(100.0, 5.0)
    assert (health.tripped, health.state(101.0), health.opens_in(101.0)) == (True, "closed", 4.0)
    assert not health.allows(104.9, FIRST)
    health.succeeded()  # a call that had begun before
    assert not health.allows(104.9, FIRST)
    assert health.allows(105.0, FIRST)
    assert health.allows(105.0, SECOND)
    assert not health.tripped


def test_a_longer_rest_counts_and_a_shorter_one_takes_nothing_off() -> None:
    """Of two answers the one that asks for more."""
    health = Health(RULES)
    health.rests(100.0, 50.0)
    health.rests(101.0, 1.0)
    assert health.opens_in(101.0) == 49.0
    for _ in range(3):
        health.failed(101.0, FIRST)  # opens the breaker for less
    assert health.opens_in(101.0) == 49.0


@pytest.mark.parametrize("seconds", [121.0, 86_400.0, 1e9, 1e300, float("inf")])
def test_a_rest_lasts_two_minutes_at_most(seconds: float) -> None:
    """Whatever the provider says: else one wrong header takes it out for good."""
    health = Health(RULES)
    health.rests(100.0, seconds)
    assert health.opens_in(100.0) == 120.0


def test_a_breaker_that_is_switched_off_never_opens() -> None:
    """``failures`` = 0."""
    health = Health(BreakerRules(failures=0))
    for at in range(1000):
        health.failed(float(at), FIRST)
    assert (health.tripped, health.allows(1000.0, FIRST)) == (False, True)


class Calls(RuleBasedStateMachine):
    """A target's life: calls begin where they are allowed to, and end in any order in any way, while time goes by."""

    under_way = Bundle("under_way")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.health = Health(BreakerRules(failures=3, cooldown=10.0))
        self.count = 0
        self.row = 0
        self.probe: tuple[object, float] | None = None
        self.rest = 0.0

    @rule(target=under_way)
    def begins(self) -> object:
        """A call, if it may go there."""
        health, now = self.health, self.now
        self.count += 1
        who = f"call {self.count}"
        state = health.state(now)
        allowed = not health.tripped or health.allows(now, who)
        assert allowed is (
            now >= self.rest
            and (state == "closed" or (state == "half_open" and (self.probe is None or now - self.probe[1] >= 300)))
        )
        if not allowed:
            return multiple()
        if state == "half_open":
            self.probe = (who, now)  # the only one: an older one was forgotten
        return who

    @rule(who=consumes(under_way))
    def is_answered(self, who: object) -> None:
        """Whoever is answered closes the breaker."""
        self.health.succeeded()
        self.probe, self.row = None, 0
        assert self.health.state(self.now) == "closed"

    @rule(who=consumes(under_way))
    def fails(self, who: object) -> None:
        """Of an open breaker nothing new, unless it was the probe."""
        health = self.health
        before, wait = health.state(self.now), health.opens_in(self.now)
        health.failed(self.now, who)
        if before == "closed":
            self.row += 1
            if self.row >= 3:
                assert health.state(self.now) == "open"
        elif self.probe is not None and self.probe[0] is who:
            assert health.state(self.now) == "open"
            self.probe = None
        else:
            assert (health.state(self.now), health.opens_in(self.now)) == (before, wait)

    @precondition(lambda self: self.health.state(self.now) == "closed")
    @rule()
    def breaks_down(self) -> None:
        """Three calls that fail at once."""
        for at in range(3):
            self.health.failed(self.now, f"broken {at}")
        assert self.health.state(self.now) == "open"
        self.row = 0

    @rule(who=consumes(under_way))
    def leaves(self, who: object) -> None:
        """Nothing is learnt; a probe that left makes way for another."""
        before = self.health.state(self.now)
        self.health.left(who)
        if self.probe is not None and self.probe[0] is who:
            self.probe = None
        assert self.health.state(self.now) == before

    @rule(seconds=st.one_of(st.floats(0.001, 200), st.just(1e9)))
    def is_told_to_rest(self, seconds: float) -> None:
        """For two minutes at most."""
        self.health.rests(self.now, seconds)
        self.rest = max(self.rest, self.now + min(seconds, 120.0))

    @rule(seconds=st.floats(0.001, 400))
    def time_goes_by(self, seconds: float) -> None:
        """Up to some minutes."""
        self.now += seconds

    @precondition(lambda self: self.health.state(self.now) == "half_open" and self.probe is None)
    @rule()
    def recovers(self) -> None:
        """From wherever it is: one probe that is answered, and all is well."""
        self.now = max(self.now, self.rest)
        who = object()
        assert self.health.allows(self.now, who)
        self.health.succeeded()
        self.row = 0
        assert self.health.allows(self.now, object())
        assert self.health.allows(self.now, object())

    @invariant()
    def is_never_out_for_long(self) -> None:
        """At most two minutes to the next probe, and whoever need not ask may go."""
        assert 0 <= self.health.opens_in(self.now) <= 120.001
        if not self.health.tripped:
            assert self.health.state(self.now) == "closed"
            assert self.health.opens_in(self.now) == 0


Calls.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestCalls = Calls.TestCase
