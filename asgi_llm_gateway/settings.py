"""The environment and one optional TOML file, typed. Data only: nothing is opened or asked here.

Environment names are the field names in capitals (``PORT``, ``OPENAI_API_KEY``, ``GATEWAY_CONFIG``).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from decimal import Context, Inexact, InvalidOperation, Overflow
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import SettingsError as SettingsError
from .keys import check_tenant_id, new_key
from .periods import check_period
from .records import NANO_PER_USD

# Wide enough for every amount that is allowed; a longer one is refused, never rounded.
_EXACT = Context(prec=40, traps=[InvalidOperation, Overflow, Inexact])


def nano_usd(value: Any) -> int:
    """Dollars as written ("5", "0.000000001", 2.5) in integer nano-USD; read by Decimal from the text.

    Raises ValueError for what is no amount.
    """
    try:
        amount = _EXACT.multiply(_EXACT.create_decimal(str(value)), NANO_PER_USD)
        if 0 <= amount <= 2**62 and amount == amount.to_integral_value():
            return int(amount)
    except ArithmeticError:
        pass
    raise ValueError("an amount in USD: not negative, at most 9 decimals")


def _check_key(key: SecretStr) -> SecretStr:
    new_key("", secret=key.get_secret_value())
    return key


NanoUSD = Annotated[int, BeforeValidator(nano_usd)]
Period = Annotated[str, AfterValidator(check_period)]
TenantId = Annotated[str, AfterValidator(check_tenant_id)]
_Key = Annotated[SecretStr, AfterValidator(_check_key)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProviderConfig(_Strict):
    """``[providers.NAME]``: a server to send calls to. ``type`` is a row of the vendor table; the name, where not given."""

    type: str | None = None
    base_url: str | None = None
    api_key: SecretStr | None = None
    models: tuple[str, ...] = ()
    delay_ms: float = Field(default=0, ge=0, le=60_000)
    fault: str | None = None
    referer: str | None = Field(default=None, description="the app's URL, told to OpenRouter")
    title: str | None = Field(default=None, description="the app's name, told to OpenRouter")
    remote_urls: bool = Field(
        default=False, description="a model server of your own may load the URLs that callers send"
    )
    trust_clients: bool = Field(default=False, description="clients may send fields that reach beyond their own call")
    default_max_tokens: int | None = Field(default=None, ge=1, description="output tokens where nobody names a limit")
    server_tools: bool = Field(default=False, description="clients may use tools of Anthropic's that cost money a use")
    betas: tuple[str, ...] | None = Field(
        default=None, description="'anthropic-beta' features that clients may use; all"
    )
    api_version: str | None = Field(default=None, description="Anthropic's version for clients that name none")


class TargetConfig(_Strict):
    """A target with its share of the calls, beside the others of its model."""

    target: str
    weight: float = Field(default=1.0, gt=0, le=1_000_000)


class ModelConfig(_Strict):
    """``[models.NAME]``: a name that clients use, its targets in order, and its price in USD per million tokens.

    A ``*`` at the end of a name stands for anything, and for the same thing in its targets.
    """

    targets: tuple[str | TargetConfig, ...] = Field(default=(), description="provider/model, in order of preference")
    balance: Literal["ordered", "weighted", "least_pending"] = "ordered"
    fallbacks: tuple[str, ...] = Field(default=(), description="names to go on with when all targets fail")
    hedge_after_ms: float | None = Field(default=None, gt=0, description="a rival for a call without a first event")
    hedge_max_usd: NanoUSD = NANO_PER_USD // 10
    usd_per_million_in: NanoUSD | None = None
    usd_per_million_out: NanoUSD | None = None
    usd_per_million_cached: NanoUSD | None = None
    usd_per_million_cache_write: NanoUSD | None = None
    usd_per_image: NanoUSD | None = Field(default=None, description="of images, whatever their size")
    usd_per_minute: NanoUSD | None = Field(default=None, description="of audio that is transcribed or translated")
    usd_per_million_characters: NanoUSD | None = Field(default=None, description="of text that is spoken")
    usd_per_request: NanoUSD | None = Field(default=None, description="a call's fee, beside all else")
    context: int | None = Field(default=None, ge=1, description="tokens, prompt and answer together")


class TenantConfig(_Strict):
    """``[tenants.ID]``: a tenant that is there from the start, with its keys."""

    name: str = ""
    budget_usd: NanoUSD | None = None
    budget_tokens: int | None = Field(default=None, ge=0, le=2**62)
    budget_period: Period = "none"
    soft_limit_usd: NanoUSD | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    rate_requests: int | None = Field(default=None, ge=1)
    rate_tokens: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)
    allowed_models: tuple[str, ...] | None = None
    keys: tuple[_Key, ...] = ()


class FileConfig(_Strict):
    """The whole file."""

    providers: dict[str, ProviderConfig] = {}
    models: dict[str, ModelConfig] = {}
    tenants: dict[TenantId, TenantConfig] = {}


class Settings(BaseSettings):
    """What the environment says. An empty variable is an unset one."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True)

    port: int = Field(default=8080, ge=0, le=65535)
    host: str = "127.0.0.1"
    web_concurrency: int = Field(default=1, ge=1, le=1024)
    replicas: int = Field(default=1, ge=1, le=100_000)

    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    openrouter_api_key: SecretStr | None = None
    openrouter_base_url: str | None = None
    openrouter_referer: str | None = None
    openrouter_title: str | None = None
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None
    llamacpp_url: str | None = None
    llamacpp_api_key: SecretStr | None = None

    enable_streaming: bool = True
    enable_rate_limit: bool = True
    rate_limit_window_ms: int = Field(default=60_000, ge=1)
    rate_limit_max_requests: int = Field(default=600, ge=1)
    rate_limit_max_tokens: int | None = Field(default=None, ge=1)
    rate_limit_max_concurrency: int | None = Field(default=None, ge=1)
    rate_limit_queue_ms: int = Field(default=0, ge=0, le=600_000)
    rate_limit_redis_timeout_ms: int = Field(default=50, ge=1, le=60_000)
    default_max_output_tokens: int = Field(default=4096, ge=1)
    min_output_tokens: int = Field(default=16, ge=1)
    unknown_price: Literal["refuse", "free"] = "refuse"
    prompt_bound: Literal["bytes", "exact", "estimate"] = "bytes"
    budget_status: Literal["auto", "402", "429"] = "auto"
    hold_ttl_seconds: float = Field(default=120.0, ge=5, le=86400)
    hold_lapsed: Literal["charge", "release"] = "charge"
    sqlite_synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    enable_structured_output: bool = False
    structured_streams: Literal["pass", "hold"] = "pass"
    structured_retries: int = Field(default=1, ge=0, le=3)
    enable_cache: bool = False
    cache_calls: Literal["deterministic", "all"] = "deterministic"
    cache_ttl_seconds: float = Field(default=3600.0, gt=0, le=30 * 86_400)
    cache_max_bytes: int = Field(default=64 * 1024 * 1024, ge=4096)
    cache_max_answer_bytes: int = Field(default=1024 * 1024, ge=1024)
    cache_shared_tenants: str = ""
    cache_ignore_fields: str = ""
    cache_namespace: str = ""
    cache_redis: bool = True
    cache_redis_timeout_ms: int = Field(default=50, ge=1, le=60_000)
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)

    opa_url: str | None = None
    opa_policy: str = "llm.gateway"
    opa_token: SecretStr | None = None
    opa_timeout_ms: int = Field(default=500, ge=1, le=60_000)
    opa_fail: Literal["closed", "open"] = "closed"
    opa_dry_run: bool = False
    opa_cache_seconds: float = Field(default=10.0, ge=0, le=86_400)
    opa_send_prompt: bool = False

    allowed_hosts: str = ""
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    max_header_count: int = Field(default=100, ge=10)
    max_json_depth: int = Field(default=128, ge=8, le=1024)
    receive_timeout_seconds: float = Field(default=60.0, gt=0)

    connect_timeout_seconds: float = Field(default=10.0, gt=0)
    first_byte_timeout_seconds: float = Field(default=300.0, gt=0)
    idle_timeout_seconds: float = Field(default=120.0, gt=0)
    total_timeout_seconds: float = Field(default=1800.0, gt=0)
    first_event_timeout_seconds: float = Field(default=300.0, gt=0)
    gateway_max_retries: int = Field(default=2, ge=0, le=10)
    gateway_max_retry_wait_seconds: float = Field(default=10.0, ge=0)
    breaker_failures: int = Field(default=5, ge=0, le=1000)
    breaker_cooldown_seconds: float = Field(default=10.0, gt=0)
    max_upstream_connections: int = Field(default=1000, ge=1)

    prometheus_multiproc_dir: Path | None = None
    metrics_token: SecretStr | None = Field(default=None, min_length=16)
    metrics_public: bool = False
    metrics_max_tenants: int = Field(default=200, ge=0, le=10_000)
    metrics_max_models: int = Field(default=200, ge=0, le=10_000)
    metrics_otel: Literal["off", "stable", "new", "both"] = "off"
    trace_content_tenants: str = ""
    trace_content_max_bytes: int = Field(default=16 * 1024, ge=256, le=1024 * 1024)
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_calls: bool = True
    log_queue_lines: int = Field(default=10_000, ge=100, le=1_000_000)

    enable_realtime: bool = False
    enable_webrtc: bool = False
    realtime_handshake_seconds: float = Field(default=10.0, gt=0, le=120)
    realtime_max_handshakes: int = Field(default=64, ge=1, le=10_000)
    realtime_origins: str = ""
    realtime_max_sessions: int = Field(default=100, ge=1, le=1_000_000)
    realtime_max_messages: int = Field(default=16, ge=1, le=10_000)
    realtime_max_frame_bytes: int = Field(default=4 * 1024 * 1024, ge=4096, le=64 * 1024 * 1024)
    realtime_idle_seconds: float = Field(default=300.0, gt=0, le=86_400)
    realtime_total_seconds: float = Field(default=3600.0, gt=0, le=7 * 86_400)
    realtime_ping_seconds: float = Field(default=15.0, ge=0, le=3600)
    realtime_secret_seconds: int = Field(default=600, ge=10, le=7200)
    realtime_secret_max_seconds: int = Field(default=7200, ge=10, le=86_400)
    realtime_max_secrets: int = Field(default=120, ge=1, le=1_000_000)
    stun_urls: str = ""
    turn_urls: str = ""
    turn_secret: SecretStr | None = Field(default=None, min_length=16)
    turn_ttl_seconds: int = Field(default=3600, ge=60, le=7 * 86_400)
    trace_parent: Literal["continue", "link", "ignore"] = "continue"
    trace_upstream: bool = True
    trace_baggage: bool = False

    trace_store: Literal["sql", "memory"] = "sql"
    trace_queue: int = Field(default=10_000, ge=100, le=1_000_000)
    trace_flush_seconds: float = Field(default=1.0, ge=0.05, le=60)
    trace_retention_hours: float = Field(default=72.0, gt=0, le=24 * 366)
    trace_max_rows: int = Field(default=1_000_000, ge=100, le=1_000_000_000)

    ready_checks: str = "store,ledger"
    ready_upstreams: str = ""
    ready_grace_seconds: float = Field(default=10.0, ge=0, le=3600)
    ready_interval_seconds: float = Field(default=2.0, ge=0.1, le=3600)
    ready_timeout_seconds: float = Field(default=2.0, gt=0, le=60)
    shutdown_delay_seconds: float = Field(default=0.0, ge=0, le=3600)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=86_400)
    shutdown_signals: bool = True

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    gateway_data_dir: Path = Path(".asgi_llm_gateway")
    gateway_config: Path | None = None
    gateway_admin_key: SecretStr | None = Field(default=None, min_length=32)
    gateway_demo: bool = False
    enable_dashboard: bool = True

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment (or what is given in its place). Raises SettingsError."""
        names = {name: name.upper() for name in cls.model_fields}
        found = os.environ if environ is None else environ
        values = {name: found[upper] for name, upper in names.items() if found.get(upper)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_told(error, upper=True)) from None

    def file(self) -> FileConfig:
        """Read the TOML file that ``GATEWAY_CONFIG`` names; empty where it names none. Raises SettingsError."""
        return read_file(self.gateway_config, os.environ) if self.gateway_config else FileConfig()


def otel_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables ``OTEL_*`` that are set: OpenTelemetry's own, which its SDK reads for itself. Some hold secrets."""
    found = os.environ if environ is None else environ
    return {name: value for name, value in found.items() if name.startswith("OTEL_") and value.strip()}


def secret(value: SecretStr | None) -> str | None:
    """The text of a secret, for the one place that needs it."""
    return None if value is None else value.get_secret_value()


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def read_file(path: Path, environ: Mapping[str, str]) -> FileConfig:
    """Read a TOML file; ``${NAME}`` in a string is the environment's value. Raises SettingsError."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"GATEWAY_CONFIG={path}: {error.strerror or 'not readable'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"GATEWAY_CONFIG={path}: not valid TOML: {error}") from None
    try:
        return FileConfig.model_validate(_expand(data, environ, str(path)))
    except ValidationError as error:
        raise SettingsError(f"GATEWAY_CONFIG={path}: {_told(error)}") from None


def _expand(value: Any, environ: Mapping[str, str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(inner, environ, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, environ, where) for inner in value]
    if not isinstance(value, str):
        return value

    def look_up(found: re.Match[str]) -> str:
        if found[1] not in environ:
            raise SettingsError(f"GATEWAY_CONFIG={where}: ${{{found[1]}}} is not set in the environment")
        return environ[found[1]]

    return _VARIABLE.sub(look_up, value)


def _told(error: ValidationError, *, upper: bool = False) -> str:
    """What is wrong, setting by setting, without the value: it may be a secret."""
    lines = []
    for fault in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key '{name}'")
        else:
            lines.append(f"{name.upper() if upper else name}: {fault['msg']}")
    return "; ".join(lines)


@lru_cache(maxsize=1)
def current() -> Settings:
    """The environment's settings, read on first use: what a middleware built without arguments asks."""
    return Settings.load()


@lru_cache(maxsize=1)
def current_file() -> FileConfig:
    """The file's settings, read on first use."""
    return current().file()


def forget() -> None:
    """Read the environment anew on next use."""
    current.cache_clear()
    current_file.cache_clear()
