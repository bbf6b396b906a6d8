"""OpenTelemetry's metrics of generative AI, for those who send all they measure to a collector.

Names, units and boundaries: OpenTelemetry semantic conventions, "Generative AI metrics", v1.41 (``stable`` here, for the
names that dashboards know), and the conventions' own repository of 2026 (``new``). All of it is marked as in development.
"""

from __future__ import annotations

from typing import Any, Literal

from .. import __version__
from ..errors import SettingsError
from ..exchange import Exchange
from ..spans.names import OPERATIONS, PROVIDERS

Names = Literal["off", "stable", "new", "both"]

_SECONDS = [0.01 * 2**at for at in range(14)]
_TOKENS = [4**at for at in range(14)]
_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_EACH = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]

# Moderation, images and sound have no metrics in the conventions.
_MEASURED = frozenset({"chat", "messages", "responses", "completions", "embeddings"})
_FEW = 200  # models that are told apart


class Telemetry:
    """The instruments.

    Args:
        names: Which names to record under.
        meter: OpenTelemetry's meter.
    """

    def __init__(self, names: Names, meter: Any) -> None:
        def seconds(name: str, what: str, bounds: list[float] = _SECONDS) -> Any:
            return meter.create_histogram(name, unit="s", description=what, explicit_bucket_boundaries_advisory=bounds)

        def tokens(name: str, what: str) -> Any:
            return meter.create_histogram(
                name, unit="{token}", description=what, explicit_bucket_boundaries_advisory=_TOKENS
            )

        old, new = names in ("stable", "both"), names in ("new", "both")
        self._durations = [seconds("gen_ai.server.request.duration", "Time of a call.")]
        self._usage: Any = None
        self._sums: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}
        if old:
            self._durations.append(seconds("gen_ai.client.operation.duration", "Time of a call."))
            self._usage = tokens("gen_ai.client.token.usage", "Tokens of a call.")
        if new:
            self._durations.append(seconds("gen_ai.client.inference.duration", "Time of a call."))
            for kind in ("input_tokens", "output_tokens", "cache_read.input_tokens", "cache_write.input_tokens",
                         "reasoning.output_tokens"):  # fmt: skip
                self._sums[kind] = meter.create_counter(
                    f"gen_ai.client.inference.usage.{kind}", unit="{token}", description="Tokens used."
                )
            for kind in ("input_tokens", "output_tokens"):
                self._sizes[kind] = tokens(f"gen_ai.client.inference.operation.{kind}", "Tokens of a call.")
        self._first = seconds("gen_ai.server.time_to_first_token", "Time to a stream's first byte.", _FIRST)
        self._each = seconds("gen_ai.server.time_per_output_token", "Time a token after the first.", _EACH)
        self._models: set[str] = set()

    def ended(self, exchange: Exchange, status: int, started: float, ended: float) -> None:
        """A call is over; times by ``perf_counter``. Calls that never reached a model are not recorded."""
        dialect = exchange.route.dialect
        if dialect not in _MEASURED or (exchange.usage is None and not exchange.calls):
            return
        context = exchange.tracer.context if exchange.tracer is not None else None  # exemplars name the call's span
        about = self._about(exchange, OPERATIONS[dialect], status)
        record, usage, request = exchange.record, exchange.usage, exchange.request
        failed: dict[str, Any] = about
        if status >= 400 or (record is not None and record.error is not None):
            failed = {**about, "error.type": str(status) if status >= 400 else "stream"}
        for duration in self._durations:
            duration.record(ended - started, failed, context=context)
        if usage is not None and status < 400 and (record is None or record.cache not in ("hit", "joined")):
            self._tokens(usage, about, context)
        first = exchange.first_byte_at
        if first is not None and failed is about and request is not None and request.stream:
            self._first.record(first - started, about, context=context)
            if usage is not None and usage.completion > 1 and exchange.complete:
                self._each.record((ended - first) / (usage.completion - 1), about, context=context)

    def _tokens(self, usage: Any, about: dict[str, Any], context: Any) -> None:
        if self._usage is not None:
            self._usage.record(usage.prompt, {**about, "gen_ai.token.type": "input"}, context=context)
            self._usage.record(usage.completion, {**about, "gen_ai.token.type": "output"}, context=context)
        if self._sums:
            counts = {
                "input_tokens": usage.prompt,
                "output_tokens": usage.completion,
                "cache_read.input_tokens": usage.cached,
                "cache_write.input_tokens": usage.cache_write,
                "reasoning.output_tokens": usage.reasoning,
            }
            kind = {**about, "gen_ai.token.modality": "text" if usage.units is None else "unknown"}
            for name, amount in counts.items():
                if amount:
                    self._sums[name].add(amount, kind, context=context)
            for name, size in self._sizes.items():
                size.record(counts[name], about, context=context)

    def _about(self, exchange: Exchange, operation: str, status: int) -> dict[str, Any]:
        request, calls = exchange.request, exchange.calls
        provider = calls[-1].target.provider if calls else "_OTHER"
        about = {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDERS.get(provider, provider)}
        if request is not None:
            model = request.model
            if model not in self._models:
                if status >= 400 or len(self._models) >= _FEW or len(model) > 128:
                    model = "other"
                else:
                    self._models.add(model)
            about["gen_ai.request.model"] = model
        return about


def open_telemetry(names: Names, provider: Any) -> Telemetry:
    """The instruments at OpenTelemetry's meter provider. Raises SettingsError where its API is not installed."""
    try:
        from opentelemetry.metrics import get_meter
    except ModuleNotFoundError:
        raise SettingsError("METRICS_OTEL is set; it needs: pip install 'asgi-llm-gateway[otel]'") from None
    return Telemetry(names, get_meter("asgi_llm_gateway", __version__, meter_provider=provider))


__all__ = ["Names", "Telemetry", "open_telemetry"]
