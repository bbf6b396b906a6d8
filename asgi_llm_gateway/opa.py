"""What a policy is asked, and how its answer is read. Source: OPA documentation, "REST API", "Data API" (OPA 1.x).

The question is ``POST /v1/data/{package path}`` with ``{"input": {...}}``; the answer is ``{"result": ...}``, or no
``result`` where the policy says nothing about the case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from .errors import BadRequest, Header
from .exchange import Exchange
from .prices import PriceTable, ceiling_of
from .records import NANO_PER_USD
from .tokens import estimate
from .validation import MAX_MODEL_LENGTH, REFUSED_FIELDS
from .wire import LLMRequest, limit_names

PARAMETERS = frozenset(
    {
        "best_of", "dimensions", "encoding_format", "frequency_penalty", "logprobs", "max_completion_tokens",
        "max_output_tokens", "max_tokens", "modalities", "n", "parallel_tool_calls", "presence_penalty", "reasoning_effort",
        "seed", "service_tier", "store", "temperature", "tool_choice", "top_k", "top_logprobs", "top_p", "truncation",
        "verbosity",
    }
)  # fmt: skip
"""Body fields that are sent as ``input.parameters``. None of them carries a prompt, an answer or an end user's name."""

PROMPT_FIELDS = frozenset({"messages", "input", "prompt", "system", "instructions", "suffix", "prediction", "tools"})
"""Body fields that are never among the parameters; ``input.body`` (by opt-in) has them."""

OMITTABLE = frozenset({"client", "estimate", "key", "parameters", "time", "tools"})
"""Parts of the input that an operator may leave out."""

_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
)
MAX_REASON = 500
"""Characters of a policy's reason that a client is told."""


class PolicyFault(Exception):
    """There is no answer, or none that says yes or no. The text is for the log, and holds no part of the question."""


class Obligations(NamedTuple):
    """What an allowed request has to become first.

    Attributes:
        model: The model that is to answer.
        max_tokens: The output limit in tokens, for one choice; a lower one of the client's stays.
        values: Body fields to set; ``None`` takes one out.
    """

    model: str | None = None
    max_tokens: int | None = None
    values: Mapping[str, Any] = {}


class Decision(NamedTuple):
    """What the policy said.

    Attributes:
        allow: Whether the request may go on.
        reason: Why; told to the client of a refused request.
        obligations: What has to be done to an allowed request.
        unmet: What the policy asked for and nobody here understands; such a request must not go on.
        undefined: The policy said nothing, which is a no.
        id: OPA's ``decision_id``, as its decision log has it.
    """

    allow: bool
    reason: str | None = None
    obligations: Obligations | None = None
    unmet: str | None = None
    undefined: bool = False
    id: str | None = None


def data_path(policy: str) -> str:
    """The URL path of a policy's document: ``llm.gateway`` and ``llm/gateway`` are ``/v1/data/llm/gateway``.

    Raises ValueError.
    """
    plain = policy.strip("/").removeprefix("data.")
    segments = plain.split("/" if "/" in plain else ".")
    if not all(segments) or any(segment in (".", "..") or not segment.isprintable() for segment in segments):
        raise ValueError("a package's path, such as llm.gateway or llm/gateway/allow")
    return "/v1/data/" + "/".join(quote(segment, safe="") for segment in segments)


# -- the question ------------------------------------------------------------------------------------------------------


class Questions:
    """Makes the input document of a request: the body of the question, which is also what a decision is remembered by.

    Nothing that may change a decision is missing from that key, for it *is* the question. So that equal requests ask
    the same question, what varies without end is rounded in the document itself: the time down to a ``step``, the
    prompt's tokens up to two significant bits (96, 128, 192, 256, ...). Ids of a single request are not in it.

    Args:
        prompt: Send the whole body of the request as ``input.body``.
        parameters: More body fields for ``input.parameters``.
        headers: Request headers for ``input.headers``; never one that carries a credential.
        omit: Parts to leave out, of ``OMITTABLE``.
        step: Seconds to which ``input.time`` is rounded down; 0 is the exact second.
        prices: Gives ``input.estimate.cost_usd``; ``None`` leaves it out.
        clock: Unix time in seconds.

    Raises:
        ValueError: A name that can't be meant.
    """

    def __init__(
        self,
        *,
        prompt: bool = False,
        parameters: Sequence[str] = (),
        headers: Sequence[str] = (),
        omit: Sequence[str] = (),
        step: float = 60.0,
        prices: PriceTable | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if wrong := PROMPT_FIELDS.intersection(parameters):
            raise ValueError(f"parameters: {sorted(wrong)[0]!r} is the prompt's; use prompt=True")
        if wrong := _SECRET_HEADERS.intersection(name.lower() for name in headers):
            raise ValueError(f"headers: {sorted(wrong)[0]!r} carries a secret, and is never sent")
        if unknown := set(omit) - OMITTABLE:
            raise ValueError(f"omit: {sorted(unknown)[0]!r}; use of {', '.join(sorted(OMITTABLE))}")
        if step < 0:
            raise ValueError(f"time_step={step}: seconds, 0 or more")
        self._prompt = prompt
        self._parameters = PARAMETERS.union(parameters)
        self._headers = tuple((name.lower(), name.lower().encode("latin-1")) for name in headers)
        self._tells = {part: part not in omit for part in OMITTABLE}
        self._step = max(1, round(step))
        self._prices = prices
        self._clock = clock
        self._time = (-1, "")

    def about(self, exchange: Exchange, scope: Any) -> bytes:
        """The question about a call, as JSON. Raises BadRequest for what can't be written."""
        tenant, key = exchange.identity
        route, request, tells = exchange.route, exchange.request, self._tells
        asked: dict[str, Any] = {
            "tenant": {"id": tenant.id, "name": tenant.name, "metadata": tenant.metadata},
            "kind": route.kind,
            "method": scope["method"],
            "path": route.path,
            "dialect": route.dialect,
        }
        if tells["key"]:
            asked["key"] = None if key is None else {"id": key.id, "name": key.name}
        if request is None:
            asked["model"] = None
        else:
            self._request(asked, request)
        if tells["client"]:
            client = scope.get("client")
            asked["client"] = {"address": client[0] if client else None}
        if tells["time"]:
            asked["time"] = self._now()
        if self._headers:
            sent = exchange.sent(scope)
            asked["headers"] = {
                name: b", ".join(values).decode("latin-1")
                for name, raw in self._headers
                if (values := sent.all(raw))
            }  # fmt: skip
        try:
            return orjson.dumps({"input": asked}, default=dict)
        except orjson.JSONEncodeError:
            # Text that is no Unicode, or nesting beyond what the writer takes: nobody means that by a parameter.
            raise BadRequest("The request can't be shown to the gateway's policy: a value is nested too deeply or is "
                             "no valid text.", code="invalid_json") from None  # fmt: skip

    def _request(self, asked: dict[str, Any], request: LLMRequest) -> None:
        data, tells = request.data, self._tells
        asked["model"] = request.model
        asked["stream"] = request.stream
        if tells["parameters"]:
            asked["parameters"] = {name: data[name] for name in data if name in self._parameters}
        if tells["tools"] and "tools" in data:
            asked["tools"] = _names_of(data["tools"])
        if tells["estimate"]:
            prompt = rounded_up(estimate(request).prompt)
            most = request.max_tokens
            output = None if most is None else most * request.choices
            asked["estimate"] = {"prompt_tokens": prompt, "output_tokens": output}
            if self._prices is not None:
                price = self._prices.find(request.model)
                known = price is not None and output is not None
                cost = ceiling_of(prompt, output or 0, price) / NANO_PER_USD if price is not None and known else None
                asked["estimate"]["cost_usd"] = cost
        if self._prompt:
            asked["body"] = orjson.Fragment(request.body)

    def _now(self) -> str:
        slot = int(self._clock() // self._step)
        known, text = self._time
        if slot != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(slot * self._step))
            self._time = (slot, text)
        return text


def rounded_up(number: int) -> int:
    """The next number of two significant bits: at most half as much again."""
    if number <= 3:
        return number
    shift = number.bit_length() - 2
    return -(-number >> shift) << shift


def _names_of(tools: Any) -> list[str]:
    """What the tools are called: a function's name, or the type of one that the provider runs itself."""
    names = []
    for tool in tools if type(tools) is list else [tools]:
        found = None
        if type(tool) is dict:
            inner = tool.get("function")
            found = (inner.get("name") if type(inner) is dict else None) or tool.get("name") or tool.get("type")
        names.append(found if type(found) is str else "")
    return names


# -- the answer --------------------------------------------------------------------------------------------------------


def read_answer(status: int, body: bytes) -> Decision:
    """OPA's answer to a question. Raises PolicyFault."""
    if status != 200:
        raise PolicyFault(f"it answered {status}")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise PolicyFault("its answer is not JSON") from None
    if type(found) is not dict:
        raise PolicyFault("its answer is no JSON object")
    named = found.get("decision_id")
    decision = read_result(found.get("result"))
    return decision._replace(id=named[:128] if type(named) is str else None)


def read_result(result: Any) -> Decision:
    """What a policy's document says: a boolean, or ``{allow, reason, obligations}``; ``None`` is undefined, which is a no.

    Raises PolicyFault for anything else.
    """
    if result is True or result is False:
        return Decision(result)
    if result is None:
        return Decision(False, undefined=True)
    if not isinstance(result, Mapping):
        raise PolicyFault("its result is neither a boolean nor an object with 'allow'")
    allow = result.get("allow")
    if allow is None:  # a rule without a default, whose conditions do not hold
        return Decision(False, _text(result.get("reason")), undefined=True)
    if type(allow) is not bool:
        raise PolicyFault("its 'allow' is not a boolean")
    reason = _text(result.get("reason"))
    if not allow:
        return Decision(False, reason)
    asked = result.get("obligations")
    if asked is None:
        return Decision(True, reason)
    try:
        return Decision(True, reason, _obligations(asked))
    except _NotUnderstood as fault:
        return Decision(True, reason, unmet=str(fault))


class _NotUnderstood(Exception):
    pass


def _text(value: Any) -> str | None:
    return value[:MAX_REASON] if type(value) is str and value else None


# What a policy can't set one by one: it has a word of its own, is the prompt's, or is the gateway's to decide.
_NOT_SET = (
    PROMPT_FIELDS
    | REFUSED_FIELDS
    | {"model", "tenant", "stream", "stream_options", "n", "best_of"}
    | {"max_tokens", "max_completion_tokens", "max_output_tokens"}
)  # fmt: skip


def _obligations(asked: Any) -> Obligations:
    if not isinstance(asked, Mapping):
        raise _NotUnderstood("'obligations' is no object")
    values: dict[str, Any] = {}
    model = most = None
    for name, value in asked.items():
        if value is None:
            continue
        if name == "model" and type(value) is str and 1 <= len(value) <= MAX_MODEL_LENGTH and value.isprintable():
            model = value
        elif name == "max_tokens" and type(value) is int and 1 <= value <= 2**31 - 1:
            most = value
        elif name == "set" and isinstance(value, Mapping):
            values.update((field, given) for field, given in value.items() if given is not None)
        elif name == "remove" and isinstance(value, (list, tuple)) and all(type(field) is str for field in value):
            values.update(dict.fromkeys(value))
        else:
            raise _NotUnderstood(f"the obligation {str(name)[:40]!r} is unknown, or its value is of the wrong kind")
    if wrong := _NOT_SET.intersection(values):
        raise _NotUnderstood(f"'set' and 'remove' can't change {sorted(wrong)[0]!r}")
    return Obligations(model, most, values)


def changes(request: LLMRequest, obligations: Obligations) -> dict[str, Any]:
    """The fields that obligations change in a request; an output limit is lowered, never raised."""
    fields = {
        name: value for name, value in obligations.values.items() if value is not None or name in request.data
    }  # fmt: skip
    if obligations.model is not None and obligations.model != request.model:
        fields["model"] = obligations.model
    most = obligations.max_tokens
    if most is None or request.route.dialect == "embeddings":
        return fields
    named = [name for name in limit_names(request.route.dialect) if request.data.get(name) is not None]
    if not named:
        fields[limit_names(request.route.dialect)[-1]] = most
    else:
        fields.update((name, most) for name in named if request.data[name] > most)
    return fields


def decision_header(decision: Decision) -> tuple[Header, ...]:
    """The decision's id for the client of a refused request, so that an operator finds it in OPA's decision log."""
    named = decision.id
    if named is None or not named.isascii() or not named.isprintable():
        return ()
    return ((b"x-llm-policy-decision", named.encode()),)


__all__ = [
    "Decision", "Obligations", "PolicyFault", "Questions", "changes", "data_path", "decision_header",
    "read_answer", "read_result", "rounded_up",
]  # fmt: skip
