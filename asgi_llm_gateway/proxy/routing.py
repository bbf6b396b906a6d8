"""A model's name to an ordered list of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..adapters.anthropic import AnthropicAdapter
from ..adapters.base import Adapter
from ..adapters.compatible import VENDORS
from ..adapters.echo import EchoAdapter
from ..adapters.openai import OpenAIAdapter
from ..errors import NotFound
from ..records import Target
from ..settings import FileConfig, ProviderConfig, Settings, SettingsError, secret

_LISTED = 20  # names that an error tells


class Resolved(NamedTuple):
    """A target and the adapter that speaks to it."""

    target: Target
    adapter: Adapter


class Router:
    """Which provider answers for a model's name.

    In this order: a name from ``models``; ``provider/model``; a vendor's own names (``gpt-*``, ``claude-*``); any other
    ``vendor/model`` goes to OpenRouter, if that is there.

    Args:
        adapters: The configured providers.
        models: Names that clients use, to ``provider/model`` in order of preference.
    """

    def __init__(self, adapters: Sequence[Adapter], models: Mapping[str, Sequence[str]] | None = None) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._exact: dict[str, tuple[Resolved, ...]] = {}
        self._patterns: list[tuple[str, Adapter]] = []
        for adapter in adapters:
            vendor = VENDORS.get(adapter.name)
            for pattern in vendor.patterns if vendor is not None else ():
                self._patterns.append((pattern.rstrip("*"), adapter))
        listed: dict[str, None] = {}
        for name, targets in (models or {}).items():
            self._exact[name] = tuple(self._target(name, one) for one in targets)
            listed[name] = None
        for adapter in adapters:
            for model in adapter.models:
                # "openrouter/auto" is called so at OpenRouter itself: the provider's name is part of the model's.
                named = isinstance(adapter, EchoAdapter) or model.startswith(f"{adapter.name}/")
                own = model if named or self._by_pattern(model) is adapter else None
                name = own or f"{adapter.name}/{model}"
                listed[name] = None
                if own is not None:
                    self._exact.setdefault(own, (Resolved(Target(adapter.name, model), adapter),))
        self.models = tuple(listed)
        """What ``/v1/models`` lists."""
        self._found: dict[str, tuple[Resolved, ...]] = dict(self._exact)

    @property
    def adapters(self) -> Sequence[Adapter]:
        """The configured providers."""
        return tuple(self._adapters.values())

    def _target(self, name: str, text: str) -> Resolved:
        provider, slash, model = text.partition("/")
        if not slash or not model:
            raise SettingsError(f"[models.{name}]: '{text}' is no target; write 'provider/model'")
        adapter = self._adapters.get(provider)
        if adapter is None:
            there = ", ".join(self._adapters) or "none"
            raise SettingsError(f"[models.{name}]: no provider '{provider}' is configured; there are: {there}")
        return Resolved(Target(provider, model), adapter)

    def resolve(self, model: str) -> tuple[Resolved, ...]:
        """The targets for a name, best first. Raises NotFound, naming what exists."""
        found = self._found.get(model)
        if found is None:
            found = (self._look_up(model),)
            if len(self._found) < 10_000:  # clients choose the names
                self._found[model] = found
        return found

    def _look_up(self, model: str) -> Resolved:
        front, slash, rest = model.partition("/")
        if slash and rest and front in self._adapters:
            adapter = self._adapters[front]
            if not isinstance(adapter, EchoAdapter) or rest in adapter.models:
                return Resolved(Target(front, rest), adapter)
        matched = self._by_pattern(model)
        if matched is not None:
            return Resolved(Target(matched.name, model), matched)
        if front and rest and "openrouter" in self._adapters:
            return Resolved(Target("openrouter", model), self._adapters["openrouter"])
        names = ", ".join(self.models[:_LISTED]) + (", ..." if len(self.models) > _LISTED else "")
        raise NotFound(
            f"The model '{model}' does not exist. Available: {names or 'none'}.", code="model_not_found", param="model"
        )

    def _by_pattern(self, model: str) -> Adapter | None:
        for start, adapter in self._patterns:
            if model.startswith(start):
                return adapter
        return None


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
    return Router(adapters, {name: model.targets for name, model in file.models.items() if model.targets})


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
        found["openrouter"] = ProviderConfig(base_url=settings.openrouter_base_url, api_key=settings.openrouter_api_key)
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
    if kind == "echo":
        try:
            return EchoAdapter(name, models=models or (name,), delay=config.delay_ms / 1000, fault=config.fault)
        except ValueError as error:
            raise SettingsError(f"[providers.{name}]: {error}") from None
    vendor = VENDORS.get(kind)
    if vendor is None:
        there = ", ".join(sorted([*VENDORS, "echo"]))
        raise SettingsError(f"[providers.{name}]: unknown type '{kind}'; there are: {there}")
    url = config.base_url or vendor.base_url
    if url is None:
        raise SettingsError(f"[providers.{name}]: base_url is needed")
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"[providers.{name}]: base_url must begin with http:// or https://")
    key = secret(config.api_key)
    try:
        if kind == "anthropic":
            return AnthropicAdapter(name, url, key, models=models or vendor.models)
        return OpenAIAdapter(name, url, key, vendor=vendor, models=models)
    except ValueError as error:
        raise SettingsError(f"[providers.{name}]: {error}") from None
