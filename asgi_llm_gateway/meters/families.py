"""The metrics by name: what each counts, in which unit, by which labels.

Names and units: Prometheus documentation, "Metric and label naming". Money is counted in integer nano-USD and told in USD.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "histogram", "gauge"]

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Upper bounds in seconds. A client library's usual ones end at 10 s, where many an answer of a model only begins."""

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: As it is exposed; that of a counter ends in ``_total``.
        help: What it says.
        labels: The names of its labels.
        kind: What it is.
        bounds: Of a histogram, the buckets' upper bounds.
        scale: What one unit counted is told as a part of: 1e9 for nano-USD told in USD.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Kind = "counter"
    bounds: tuple[float, ...] = ()
    scale: int = 1

    @property
    def base(self) -> str:
        """The family's name in the exposition formats, which is a counter's less ``_total``."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


_USD = 1_000_000_000

REQUESTS = Family(
    "http_requests_total", "HTTP requests answered; 499: the client left first.", ("method", "route", "status")
)
DURATION = Family("http_request_duration_seconds", "Seconds from a request's arrival until its answer was complete.",
                  ("method", "route"), "histogram", DURATIONS)  # fmt: skip
IN_FLIGHT = Family("http_requests_in_flight", "HTTP requests being answered now.", (), "gauge")
TOKENS = Family("llm_tokens_total", "Tokens booked; type is prompt or completion.", ("model", "tenant", "type"))
TOKEN_DETAILS = Family("llm_token_details_total", "Parts of the prompt (cached, cache_write) and of the completion (reasoning) "
                       "that llm_tokens_total counts.", ("model", "tenant", "type"))  # fmt: skip
COST = Family("llm_cost_total", "USD booked on the ledger.", ("tenant",), scale=_USD)
CALLS = Family("llm_calls_total", "Calls booked on the ledger.", ("model", "tenant"))
BUDGET_EXCEEDED = Family("llm_budget_exceeded_total", "Calls refused because a budget did not suffice.", ("tenant",))
RATE_LIMITED = Family("llm_rate_limited_total", "Calls refused by the gateway's own rate limits.", ("tenant",))
ERRORS = Family("llm_errors_total", "Calls that failed or were refused, by the error's code.", ("code",))
FIRST = Family("llm_time_to_first_token_seconds", "Seconds from a request's arrival to its stream's first byte.", ("model",),
               "histogram", FIRST_TOKEN)  # fmt: skip
PER_OUTPUT = Family("llm_time_per_output_token_seconds", "Seconds a token after the first, of streams that came to their end.",
                    ("model",), "histogram", PER_TOKEN)  # fmt: skip
ATTEMPTS = Family(
    "llm_upstream_attempts_total", "Upstream calls; outcome is ok or the failure's code.", ("provider", "outcome")
)
CACHE = Family("llm_cache_events_total", "Calls that met the cache; event is hit, joined, miss or bypass.", ("event",))
CACHE_SAVED = Family("llm_cache_saved_total", "USD that answers from the cache had cost.", scale=_USD)
ABORTED = Family("llm_aborted_total", "Answers that did not come to their end: the client left, or the upstream broke off.",
                 ("kind",))  # fmt: skip

COUNTED = (
    REQUESTS, TOKENS, TOKEN_DETAILS, COST, CALLS, BUDGET_EXCEEDED, RATE_LIMITED, ERRORS, ATTEMPTS, CACHE, CACHE_SAVED, ABORTED,
)  # fmt: skip
OBSERVED = (DURATION, FIRST, PER_OUTPUT)

# -- what is asked for when it is read ---------------------------------------------------------------------------------

BREAKER = Family("llm_breaker_open", "A target's circuit breaker: 0 closed, 0.5 half open, 1 open; the worst of all workers.",
                 ("provider", "model"), "gauge")  # fmt: skip
RATE_EVENTS = Family("llm_rate_limit_events_total", "What the rate limits did: admitted, refused by measure (refused_requests, "
                     "refused_tokens, refused_calls), queued, gave_up and left in the queue, decided without Redis (local), "
                     "Redis found lost (shared_lost).", ("event",))  # fmt: skip
RATE_REDIS_DOWN = Family("llm_rate_limit_redis_down", "Whether a worker counts rate limits alone, since Redis does not answer: "
                         "the worst of all.", (), "gauge")  # fmt: skip
LOG_DROPPED = Family("llm_log_lines_dropped_total", "Log lines dropped because whoever reads the log is too slow.")
TRACES_LOST = Family(
    "llm_traces_lost_total", "Traces lost because the store was away or slow for longer than they wait."
)

BUDGET = Family(
    "llm_budget_usd", "A tenant's budget for its period in USD, adjustments included.", ("tenant",), "gauge"
)
BUDGET_LEFT = Family(
    "llm_budget_left_usd",
    "USD of the budget neither spent nor held; negative after an overdraft.",
    ("tenant",),
    "gauge",
)
HELD = Family("llm_held_usd", "USD held now for calls that run.", ("tenant",), "gauge")
UNLISTED = Family("llm_budget_tenants_unlisted", "Tenants with a budget that are not listed: METRICS_MAX_TENANTS.", (),
                  "gauge")  # fmt: skip
SETTLED = Family(
    "llm_ledger_settled_usd", "USD of all call records of the ledger, whatever process booked them.", (), "gauge"
)
STORE_UP = Family("llm_store_up", "Whether the store answered this page: 1 or 0.", (), "gauge")
