"""The providers that the settings name, and the router over them."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, cast

from ..adapters.anthropic import AnthropicAdapter
from ..adapters.base import Adapter, Endpoint
from ..adapters.compatible import VENDORS
from ..adapters.echo import EchoAdapter
from ..adapters.vendors import adapter_of
from ..settings import FileConfig, ModelConfig, ProviderConfig, Settings, SettingsError, secret
from .health import BreakerRules
from .routing import Model, Router
from .upstream import prepare
from .ways import Hedge

GROUP = "asgi_llm_gateway.adapters"
"""The entry point group of adapters that other packages bring: a provider type's name to a callable ``(name, config)``."""


def router_of(settings: Settings, file: FileConfig) -> Router:
    """The router for the settings: every provider that is configured, and ``echo``. Raises SettingsError."""
    configured: dict[str, ProviderConfig] = {}
    for name, config in _from_environment(settings).items():
        configured[name] = config
    for name, config in file.providers.items():
        before = configured.get(name, ProviderConfig())
        configured[name] = before.model_copy(update=config.model_dump(exclude_unset=True))
    configured.setdefault("echo", ProviderConfig(type="echo"))
    adapters = [_adapter(name, config) for name, config in configured.items()]
    models = {name: _model(one) for name, one in file.models.items() if one.targets or one.fallbacks}
    rules = BreakerRules(settings.breaker_failures, settings.breaker_cooldown_seconds)
    return Router(adapters, models, breaker=rules)


def _model(config: ModelConfig) -> Model:
    hedge = None
    if config.hedge_after_ms is not None:
        hedge = Hedge(config.hedge_after_ms / 1000, config.hedge_max_usd)
    targets = tuple(one if isinstance(one, str) else (one.target, one.weight) for one in config.targets)
    return Model(targets, config.balance, config.fallbacks, hedge)


def _from_environment(settings: Settings) -> dict[str, ProviderConfig]:
    """The providers whose key (or URL) is set."""
    found: dict[str, ProviderConfig] = {}
    if settings.openai_api_key or settings.openai_base_url:
        found["openai"] = ProviderConfig(base_url=settings.openai_base_url, api_key=settings.openai_api_key)
    if settings.anthropic_api_key or settings.anthropic_base_url:
        url = settings.anthropic_base_url
        # Anthropic's own SDK takes the base URL without the version.
        found["anthropic"] = ProviderConfig(base_url=with_v1(url) if url else None, api_key=settings.anthropic_api_key)
    if settings.openrouter_api_key or settings.openrouter_base_url:
        found["openrouter"] = ProviderConfig(
            base_url=settings.openrouter_base_url, api_key=settings.openrouter_api_key,
            referer=settings.openrouter_referer, title=settings.openrouter_title,
        )  # fmt: skip
    if settings.llamacpp_url:
        found["llamacpp"] = ProviderConfig(base_url=with_v1(settings.llamacpp_url), api_key=settings.llamacpp_api_key)
    return found


def with_v1(url: str) -> str:
    """The URL with ``/v1`` at its end."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else url + "/v1"


def _adapter(name: str, config: ProviderConfig) -> Adapter:
    kind = config.type or name
    models = config.models or None
    if models is None and config.base_url is not None and name != kind:
        models = ()  # somebody else's server: what the vendor has is not what is there
    try:
        if kind == "echo":
            return EchoAdapter(name, models=models or (name,), delay=config.delay_ms / 1000, fault=config.fault)
        vendor = VENDORS.get(kind)
        if vendor is None:
            return _brought(name, kind, config)
        url = config.base_url or vendor.base_url
        if url is None:
            raise SettingsError(f"[providers.{name}]: base_url is needed")
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"[providers.{name}]: base_url must begin with http:// or https://")
        prepare(Endpoint("POST", url, ()))  # what the client could not send to is told now, and not to a caller
        key = secret(config.api_key)
        if kind == "anthropic":
            more: dict[str, Any] = {"version": config.api_version, "betas": config.betas}
            return AnthropicAdapter(
                name,
                url,
                key,
                models=models or vendor.models,
                server_tools=config.server_tools,
                **{name: value for name, value in more.items() if value is not None},
            )
        return adapter_of(
            kind, name, url, key, models=models, referer=config.referer, title=config.title,
            remote_urls=config.remote_urls, trust_clients=config.trust_clients,
            default_max_tokens=config.default_max_tokens,
        )  # fmt: skip
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"[providers.{name}]: {error}") from None


def _brought(name: str, kind: str, config: ProviderConfig) -> Adapter:
    """An adapter of another package's. Raises SettingsError."""
    brought = {found.name: found for found in entry_points(group=GROUP)}
    if kind not in brought:
        there = ", ".join(sorted({*VENDORS, "echo", *brought}))
        raise SettingsError(f"[providers.{name}]: unknown type '{kind}'; there are: {there}")
    try:
        made: Any = brought[kind].load()(name, config)
    except Exception as error:  # another package's code: whatever it raises is told as a wrong setting
        told = f"{type(error).__name__}: {error}"
        raise SettingsError(f"[providers.{name}]: the adapter '{kind}' can't be made: {told}") from error
    missing = [one for one in ("name", "models", "speaks", "translates", "request", "response", "stream", "error")
               if not hasattr(made, one)]  # fmt: skip
    if missing:
        raise SettingsError(f"[providers.{name}]: the adapter '{kind}' has no {', '.join(missing)}")
    if made.name != name:
        raise SettingsError(
            f"[providers.{name}]: the adapter '{kind}' calls itself '{made.name}'; it is to take the name"
        )
    return cast(Adapter, made)
