"""The environment and the settings file: every name, every habit, every mistake."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.proxy.providers import router_of
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.settings import FileConfig, Settings, SettingsError, nano_usd, read_file, secret
from asgi_llm_gateway.stores.shared import store_url

NAMES: dict[str, tuple[str, Callable[[Settings], object], object]] = {
    "PORT": ("9000", lambda settings: settings.port, 9000),
    "HOST": ("::1", lambda settings: settings.host, "::1"),
    "WEB_CONCURRENCY": ("3", lambda settings: settings.web_concurrency, 3),
    "OPENAI_API_KEY": ("sk-a", lambda settings: secret(settings.openai_api_key), "sk-a"),
    "OPENAI_BASE_URL": ("http://o/v1", lambda settings: settings.openai_base_url, "http://o/v1"),
    "OPENROUTER_API_KEY": ("sk-b", lambda settings: secret(settings.openrouter_api_key), "sk-b"),
    "OPENROUTER_BASE_URL": ("http://r/v1", lambda settings: settings.openrouter_base_url, "http://r/v1"),
    "ANTHROPIC_API_KEY": ("sk-c", lambda settings: secret(settings.anthropic_api_key), "sk-c"),
    "ANTHROPIC_BASE_URL": ("http://a", lambda settings: settings.anthropic_base_url, "http://a"),
    "LLAMACPP_URL": ("http://l:1", lambda settings: settings.llamacpp_url, "http://l:1"),
    "LLAMACPP_API_KEY": ("k1", lambda settings: secret(settings.llamacpp_api_key), "k1"),
    "ENABLE_STREAMING": ("false", lambda settings: settings.enable_streaming, False),
    "ENABLE_RATE_LIMIT": ("0", lambda settings: settings.enable_rate_limit, False),
    "RATE_LIMIT_WINDOW_MS": ("1500", lambda settings: settings.rate_limit_window_ms, 1500),
    "RATE_LIMIT_MAX_REQUESTS": ("7", lambda settings: settings.rate_limit_max_requests, 7),
    "RATE_LIMIT_MAX_TOKENS": ("70", lambda settings: settings.rate_limit_max_tokens, 70),
    "RATE_LIMIT_MAX_CONCURRENCY": ("3", lambda settings: settings.rate_limit_max_concurrency, 3),
    "RATE_LIMIT_QUEUE_MS": ("500", lambda settings: settings.rate_limit_queue_ms, 500),
    "RATE_LIMIT_REDIS_TIMEOUT_MS": ("20", lambda settings: settings.rate_limit_redis_timeout_ms, 20),
    "REPLICAS": ("3", lambda settings: settings.replicas, 3),
    "DATABASE_URL": ("sqlite:///a.db", lambda settings: secret(settings.database_url), "sqlite:///a.db"),
    "REDIS_URL": ("redis://h:1/0", lambda settings: secret(settings.redis_url), "redis://h:1/0"),
    "GATEWAY_ADMIN_KEY": ("k" * 32, lambda settings: secret(settings.gateway_admin_key), "k" * 32),
    "GATEWAY_CONFIG": ("a.toml", lambda settings: settings.gateway_config, Path("a.toml")),
    "GATEWAY_DEMO": ("1", lambda settings: settings.gateway_demo, True),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_environment_is_read(name: str) -> None:
    """Each documented name arrives typed."""
    text, field, value = NAMES[name]
    assert field(Settings.load({name: text})) == value


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_is_an_unset_one(name: str) -> None:
    """``NAME=`` in an env file means the default."""
    assert Settings.load({name: ""}) == Settings.load({})


def test_the_defaults_are_safe() -> None:
    """Loopback, port 8080, limits on, admin closed, no demo."""
    settings = Settings.load({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.enable_rate_limit
    assert settings.enable_streaming
    assert settings.gateway_admin_key is None
    assert not settings.gateway_demo


def test_foreign_variables_are_left_alone() -> None:
    """The environment belongs to others too."""
    assert Settings.load({"PATH": "/bin", "OPENAI_ORG": "x", "port": "1"}) == Settings.load({})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("PORT", "8080 "),
        ("WEB_CONCURRENCY", "0"),
        ("ENABLE_STREAMING", "perhaps"),
        ("RATE_LIMIT_WINDOW_MS", "0"),
        ("RATE_LIMIT_MAX_REQUESTS", "1.5"),
        ("RATE_LIMIT_MAX_TOKENS", "0"),
        ("RATE_LIMIT_QUEUE_MS", "-1"),
        ("REPLICAS", "0"),
        ("MAX_BODY_BYTES", "10"),
        ("IDLE_TIMEOUT_SECONDS", "0"),
        ("IDLE_TIMEOUT_SECONDS", "nan"),
        ("GATEWAY_ADMIN_KEY", "too-short-to-be-safe"),
    ],
)
def test_a_bad_value_is_named_and_not_repeated(name: str, text: str) -> None:
    """The message names the setting; the value may be a secret."""
    if text == "8080 ":
        assert Settings.load({name: text}).port == 8080  # a stray blank is forgiven
        return
    with pytest.raises(SettingsError, match=f"^{name}: ") as refused:
        Settings.load({name: text})
    assert "too-short-to-be-safe" not in str(refused.value)


def test_every_mistake_is_told_at_once() -> None:
    """Two bad values, one message with both."""
    with pytest.raises(SettingsError, match=r"PORT: .*; ENABLE_STREAMING: "):
        Settings.load({"ENABLE_STREAMING": "perhaps", "PORT": "x"})


def test_no_secret_is_in_a_repr() -> None:
    """Settings and the file may land in a log or a traceback; keys, URLs with passwords and tenants' keys do not."""
    words = {name: f"hidden-{name.lower()}" for name in NAMES if name.endswith("_KEY")}
    words["GATEWAY_ADMIN_KEY"] = "hidden-" + "k" * 32
    settings = Settings.load(
        {**words, "DATABASE_URL": "postgresql://u:hidden-pass@h/d", "REDIS_URL": "redis://:hidden-pass@h"}
    )
    file = FileConfig.model_validate(
        {"providers": {"groq": {"api_key": "hidden-groq"}}, "tenants": {"team": {"keys": ["hidden-key"]}}}
    )
    for shown in (repr(settings), str(settings), repr(file), str(file), repr(settings.model_dump())):
        assert "hidden" not in shown
    for adapter in router_of(settings, file).adapters:
        assert "hidden" not in repr(adapter)


# -- the file ----------------------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    """A settings file."""
    path = folder / "gateway.toml"
    path.write_text(text, "utf-8")
    return path


def test_variables_in_the_file_expand(tmp_path: Path) -> None:
    """``${NAME}`` stands for the environment's value anywhere in a string, in lists too, and is not expanded twice."""
    path = written(
        tmp_path,
        """
        [providers.groq]
        base_url = "http://${HOST_NAME}:${PORT_NUMBER}/v1"
        api_key = "${GROQ}"
        models = ["${MODEL}", "plain", "$MODEL", "${}"]
        """,
    )
    env = {"HOST_NAME": "gpu", "PORT_NUMBER": "81", "GROQ": "gsk-${MODEL}", "MODEL": "llama"}
    groq = read_file(path, env).providers["groq"]
    assert groq.base_url == "http://gpu:81/v1"
    assert secret(groq.api_key) == "gsk-${MODEL}"
    assert groq.models == ("llama", "plain", "$MODEL", "${}")


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    """A key that silently became empty would be found out by the first customer."""
    path = written(tmp_path, '[providers.groq]\napi_key = "${GROQ}"\n')
    with pytest.raises(SettingsError, match=r"\$\{GROQ\} is not set"):
        read_file(path, {"OTHER": "x"})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("[tenant.team]", "unknown key 'tenant'"),
        ("[tenants.team]\nbudget = 1", "unknown key 'tenants.team.budget'"),
        ('[providers.groq]\nkey = "x"', "unknown key 'providers.groq.key'"),
        ("[models.fast]\nprice = 1", "unknown key 'models.fast.price'"),
    ],
)
def test_an_unknown_key_of_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A typing error never passes for a setting."""
    with pytest.raises(SettingsError) as refused:
        read_file(written(tmp_path, text), {})
    assert named in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[tenants.team]\nbudget_usd = "five"', "tenants.team.budget_usd"),
        ("[tenants.team]\nbudget_usd = -0.01", "tenants.team.budget_usd"),
        ("[tenants.team]\nbudget_usd = inf", "tenants.team.budget_usd"),
        ("[tenants.team]\nkeys = 'abcdefgh'", "tenants.team.keys"),
        ("[tenants.team]\nkeys = ['hidden word']", "tenants.team.keys.0"),
        ("[tenants.'a b']", "tenants.a b"),
        ("[tenants.Acme]", "tenants.Acme"),
        ("[models.fast]\nusd_per_million_in = 'x'", "models.fast.usd_per_million_in"),
        ("providers = 5", "providers"),
    ],
)
def test_a_bad_value_of_the_file_is_named_and_not_repeated(tmp_path: Path, text: str, place: str) -> None:
    """The place as a path with dots, the reason, and no value."""
    with pytest.raises(SettingsError) as refused:
        read_file(written(tmp_path, text), {})
    assert place in str(refused.value)
    assert "hidden word" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Not there, not TOML, not UTF-8: each names the file."""
    (tmp_path / "latin.toml").write_bytes(b'[tenants.team]\nname = "\xe9"\n')
    (tmp_path / "broken.toml").write_text("[tenants", "utf-8")
    for name in ("none.toml", "latin.toml", "broken.toml", "."):
        with pytest.raises(SettingsError, match="GATEWAY_CONFIG="):
            read_file(tmp_path / name, {})


@pytest.mark.parametrize(
    ("written", "nano"),
    [("5", 5_000_000_000), (2.5, 2_500_000_000), ("0.000000001", 1), (0, 0), ("1e-9", 1), ("12.30", 12_300_000_000)],
)
def test_an_amount_is_exact(written: Any, nano: int) -> None:
    """Dollars become integer nano-USD by decimal arithmetic."""
    assert nano_usd(written) == nano


@pytest.mark.parametrize(
    "written",
    ["five", "", True, None, "nan", "inf", "-inf", -1, "-0.5", "0.0000000001", "1e400", "1e999999999", "1.0000000001",
     "0.00000000100000000000000000000000000001"],
)  # fmt: skip
def test_what_is_no_amount_is_refused(written: Any) -> None:
    """Never rounded, never an arithmetic traceback."""
    with pytest.raises(ValueError, match="at most 9 decimals"):
        nano_usd(written)


# -- providers ---------------------------------------------------------------------------------------------------------


def routed(file: FileConfig | None = None, /, **env: str) -> Router:
    """The router of an environment."""
    return router_of(Settings.load(env), file or FileConfig())


def urls(router: Router) -> dict[str, str]:
    """Providers and their base URLs."""
    return {adapter.name: url for adapter in router.adapters if (url := getattr(adapter, "base_url", None))}


@pytest.mark.parametrize(
    ("env", "name", "url"),
    [
        ({"OPENAI_API_KEY": "k"}, "openai", "https://api.openai.com/v1"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h/v1"}, "openai", "http://h/v1"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h/v1/"}, "openai", "http://h/v1"),
        ({"OPENAI_BASE_URL": "http://h/api/v3"}, "openai", "http://h/api/v3"),
        ({"OPENROUTER_API_KEY": "k"}, "openrouter", "https://openrouter.ai/api/v1"),
        ({"OPENROUTER_BASE_URL": "http://h/api/v1"}, "openrouter", "http://h/api/v1"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic", "https://api.anthropic.com"),
        ({"ANTHROPIC_BASE_URL": "http://h:1"}, "anthropic", "http://h:1"),
        ({"ANTHROPIC_BASE_URL": "http://h:1/"}, "anthropic", "http://h:1"),
        ({"ANTHROPIC_BASE_URL": "http://h:1/v1"}, "anthropic", "http://h:1"),
        ({"LLAMACPP_URL": "http://127.0.0.1:8081"}, "llamacpp", "http://127.0.0.1:8081/v1"),
        ({"LLAMACPP_URL": "http://127.0.0.1:8081/"}, "llamacpp", "http://127.0.0.1:8081/v1"),
        ({"LLAMACPP_URL": "http://127.0.0.1:8081/v1"}, "llamacpp", "http://127.0.0.1:8081/v1"),
        ({"LLAMACPP_URL": "http://127.0.0.1:8081/v1/"}, "llamacpp", "http://127.0.0.1:8081/v1"),
    ],
)
def test_a_base_url_is_taken_as_the_sdks_take_it(env: dict[str, str], name: str, url: str) -> None:
    """OpenAI-like with the version in it, Anthropic without, llama.cpp either way."""
    assert urls(routed(**env))[name] == url


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://h/v1", "//h/v1", "unix:///tmp/socket"])
def test_a_base_url_without_http_is_refused(url: str) -> None:
    """And the provider is named."""
    with pytest.raises(SettingsError, match="openai"):
        routed(OPENAI_BASE_URL=url)


def test_a_key_turns_a_provider_on() -> None:
    """Without keys there is ``echo`` alone; with one, the names of its models are routed and listed."""
    assert routed().models == ("echo",)
    router = routed(OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k", OPENROUTER_API_KEY="k", LLAMACPP_URL="http://h")
    names: Sequence[tuple[str, str, str]] = [
        ("gpt-4o", "openai", "gpt-4o"),
        ("gpt-99-new", "openai", "gpt-99-new"),
        ("o3", "openai", "o3"),
        ("text-embedding-3-small", "openai", "text-embedding-3-small"),
        ("claude-opus-5", "anthropic", "claude-opus-5"),
        ("openai/gpt-4o", "openai", "gpt-4o"),
        ("anthropic/claude-opus-5", "anthropic", "claude-opus-5"),
        ("meta-llama/llama-4", "openrouter", "meta-llama/llama-4"),
        ("openrouter/meta-llama/llama-4", "openrouter", "meta-llama/llama-4"),
        ("openrouter/auto", "openrouter", "openrouter/auto"),
        ("llamacpp/anything", "llamacpp", "anything"),
        ("echo", "echo", "echo"),
    ]
    for model, provider, upstream in names:
        target = router.way(model).places[0].target
        assert (target.provider, target.model) == (provider, upstream)
    assert {"echo", "gpt-4o", "claude-opus-5", "openrouter/auto", "llamacpp/default"} <= set(router.models)


def test_the_file_goes_before_the_environment() -> None:
    """A provider that both configure takes what the file sets from the file, and the rest from the environment."""
    file = FileConfig.model_validate(
        {"providers": {"openai": {"base_url": "http://own/v1", "models": ["gpt-own"]}, "big": {"type": "vllm"}}}
    )
    router = routed(file, OPENAI_API_KEY="k", OPENAI_BASE_URL="http://env/v1")
    assert urls(router) == {"openai": "http://own/v1", "big": "http://127.0.0.1:8000/v1"}
    assert "gpt-own" in router.models


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("sqlite:///gateway.db", "sqlite+aiosqlite:///gateway.db"),
        ("sqlite:////var/lib/gateway.db", "sqlite+aiosqlite:////var/lib/gateway.db"),
        ("sqlite+aiosqlite:///gateway.db", "sqlite+aiosqlite:///gateway.db"),
        ("SQLite:///gateway.db", "sqlite+aiosqlite:///gateway.db"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgres://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql+psycopg2://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@/d?host=/run/postgresql", "postgresql+asyncpg://u:p@/d?host=/run/postgresql"),
    ],
)
def test_a_database_url_is_taken_as_it_is_written(written: str, url: str) -> None:
    """Whatever driver a user's habit names, the async one is taken."""
    assert store_url(Settings.load({"DATABASE_URL": written})) == url


@pytest.mark.parametrize(
    "written", ["gateway.db", "mysql://u:hidden@h/d", "sqlite:", "postgresql://", "://x", "http://h"]
)
def test_a_database_url_that_is_none_is_named_and_not_repeated(written: str) -> None:
    """The message names the setting and shows how one looks; what was written may hold a password."""
    with pytest.raises(StoreError, match=r"DATABASE_URL.*postgresql://") as refused:
        store_url(Settings.load({"DATABASE_URL": written}))
    assert "hidden" not in str(refused.value)


def test_without_a_database_url_there_is_sqlite_in_the_data_folder(tmp_path: Path) -> None:
    """The folder is made on first use, for its owner only."""
    folder = tmp_path / "a" / "b"
    settings = Settings.load({"GATEWAY_DATA_DIR": str(folder)})
    assert not folder.exists()
    assert store_url(settings) == f"sqlite+aiosqlite:///{folder}/gateway.db"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The setting is in the message."""
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StoreError, match="GATEWAY_DATA_DIR="):
        store_url(Settings.load({"GATEWAY_DATA_DIR": str(tmp_path / "file" / "below")}))
