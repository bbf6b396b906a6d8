"""A model's name to a provider: the rules, the settings that make them, and what is told when there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import UpstreamRequest
from asgi_llm_gateway.adapters.compatible import VENDORS
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import NotFound
from asgi_llm_gateway.proxy.providers import router_of, with_v1
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.settings import FileConfig, Settings, SettingsError
from asgi_llm_gateway.wire import METERED, Route, parse


def adapter(name: str, *models: str) -> OpenAIAdapter:
    """A provider of that name."""
    return OpenAIAdapter(name, f"http://{name}.example/v1", models=models)


def routes(environ: dict[str, str], file: dict[str, Any] | None = None) -> Router:
    """The router that settings make."""
    return router_of(Settings.load(environ), FileConfig.model_validate(file or {}))


def found(router: Router, name: str) -> tuple[str, str]:
    """Provider and model for a name."""
    target = router.way(name).places[0].target
    return target.provider, target.model


ALL = Router(
    [
        EchoAdapter(),
        adapter("openai", "gpt-5"),
        adapter("anthropic"),
        adapter("openrouter"),
        adapter("own", "llama:7b"),
    ],
    {
        "fast": ["openai/gpt-5-mini"],
        "gpt-4o": ["anthropic/claude-sonnet-5"],
        "own/llama:7b": ["openai/gpt-5"],
        "deep": ["openrouter/deepseek/deepseek-r1"],
    },
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # a name from the file comes first, whatever else it looks like
        ("fast", ("openai", "gpt-5-mini")),
        ("gpt-4o", ("anthropic", "claude-sonnet-5")),
        ("own/llama:7b", ("openai", "gpt-5")),
        ("deep", ("openrouter", "deepseek/deepseek-r1")),
        # provider/model, known or not
        ("openai/gpt-99", ("openai", "gpt-99")),
        ("own/other", ("own", "other")),
        ("own/org/model", ("own", "org/model")),
        ("openrouter/openai/gpt-5", ("openrouter", "openai/gpt-5")),
        # a vendor's own names
        ("gpt-99", ("openai", "gpt-99")),
        ("o3-mini", ("openai", "o3-mini")),
        ("text-embedding-3-small", ("openai", "text-embedding-3-small")),
        ("claude-opus-9", ("anthropic", "claude-opus-9")),
        # the echo models that are there
        ("echo", ("echo", "echo")),
        ("echo/echo", ("echo", "echo")),
        # any other vendor/model
        ("mistralai/mistral-large", ("openrouter", "mistralai/mistral-large")),
        ("meta-llama/llama-4:free", ("openrouter", "meta-llama/llama-4:free")),
    ],
)
def test_a_name_finds_its_provider(name: str, expected: tuple[str, str]) -> None:
    """By the file, by prefix, by pattern, by OpenRouter; asked twice, the same."""
    assert found(ALL, name) == expected
    assert found(ALL, name) == expected


@pytest.mark.parametrize("name", ["llama", "gpt", "GPT-5", "openai/", "/gpt-5", "mistralai/", "/", "", " "])
def test_a_name_that_nobody_has_is_refused(name: str) -> None:
    """Naming it, and what there is."""
    with pytest.raises(NotFound) as caught:
        ALL.way(name)
    assert (caught.value.error_code, caught.value.param) == ("model_not_found", "model")
    for there in ("fast", "gpt-5", "echo"):
        assert there in caught.value.message


def test_without_openrouter_a_strange_prefix_is_unknown() -> None:
    """Nothing goes to a provider that was not named."""
    with pytest.raises(NotFound):
        Router([EchoAdapter(), adapter("openai")]).way("mistralai/mistral-large")


def test_echo_says_back_only_as_itself() -> None:
    """It would answer to any name, which would hide every typing mistake."""
    for name in ("echo/gpt-5", "echo/nothing", "echo2"):
        with pytest.raises(NotFound):
            Router([EchoAdapter()]).way(name)


def test_targets_keep_their_order() -> None:
    """The first is the preferred one."""
    router = Router([adapter("a"), adapter("b")], {"m": ["b/x", "a/y"]})
    assert [one.target for one in router.way("m").places] == [("b", "x"), ("a", "y")]


def test_the_list_holds_names_that_resolve() -> None:
    """What ``/v1/models`` lists can be asked for, and each once."""
    assert len(set(ALL.models)) == len(ALL.models)
    assert {"fast", "gpt-4o", "deep", "echo", "gpt-5", "own/llama:7b"} == set(ALL.models)
    for name in ALL.models:
        ALL.way(name)


def test_many_made_up_names_do_not_fill_the_memory() -> None:
    """Clients choose the names; only so many are remembered."""
    for at in range(10_500):
        ALL.way(f"gpt-made-up-{at}")
    assert len(ALL._found) <= 10_000
    assert found(ALL, "gpt-5") == ("openai", "gpt-5")


def test_the_error_for_an_unknown_name_stays_short() -> None:
    """Twenty names and an ellipsis."""
    router = Router([adapter("many", *(f"model-{at}" for at in range(500)))])
    with pytest.raises(NotFound) as caught:
        router.way("x")
    assert caught.value.message.count("many/") == 20
    assert caught.value.message.endswith(", ....")


# -- from the settings -------------------------------------------------------------------------------------------------


def test_nothing_configured_is_echo_alone() -> None:
    """The first ``curl`` needs no key."""
    router = routes({})
    assert [one.name for one in router.adapters] == ["echo"]
    assert router.models == ("echo",)


@pytest.mark.parametrize(
    ("environ", "name", "url", "model"),
    [
        ({"OPENAI_API_KEY": "k"}, "openai", "https://api.openai.com/v1", "gpt-5"),
        ({"OPENAI_BASE_URL": "http://h:1/v1/"}, "openai", "http://h:1/v1", "gpt-5"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic", "https://api.anthropic.com", "claude-x"),
        ({"ANTHROPIC_BASE_URL": "http://h:1"}, "anthropic", "http://h:1", "claude-x"),
        ({"OPENROUTER_API_KEY": "k"}, "openrouter", "https://openrouter.ai/api/v1", "a/b"),
        (
            {"OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": "http://h:1/api/v1"},
            "openrouter",
            "http://h:1/api/v1",
            "a/b",
        ),
        ({"LLAMACPP_URL": "http://h:1"}, "llamacpp", "http://h:1/v1", "llamacpp/default"),
        ({"LLAMACPP_URL": "http://h:1/v1/"}, "llamacpp", "http://h:1/v1", "llamacpp/any"),
    ],
)
def test_a_key_or_a_url_turns_a_provider_on(environ: dict[str, str], name: str, url: str, model: str) -> None:
    """Without any file; and its known models are listed."""
    router = routes(environ)
    resolved = router.way(model).places[0]
    assert resolved.target.provider == name
    assert isinstance(resolved.adapter, AnthropicAdapter if name == "anthropic" else OpenAIAdapter)
    assert resolved.adapter.base_url == url
    assert len(router.models) > 1


def test_the_file_adds_to_the_environment() -> None:
    """One provider from both: the file wins, field by field."""
    router = routes(
        {"OPENAI_API_KEY": "k-env", "OPENAI_BASE_URL": "http://env/v1"},
        {
            "providers": {
                "openai": {"base_url": "http://file/v1"},
                "work": {"type": "vllm", "base_url": "http://gpu:8000/v1", "models": ["qwen"]},
                "demo": {"type": "echo", "models": ["parrot"], "delay_ms": 5},
            },
            "models": {"main": {"targets": ["work/qwen", "openai/gpt-5"]}},
        },
    )
    openai = router.way("gpt-5").places[0].adapter
    assert isinstance(openai, OpenAIAdapter)
    assert openai.base_url == "http://file/v1"
    request = parse(Route("metered", "chat", ""), b'{"model":"gpt-5","messages":[{"role":"user","content":"a"}]}')
    sent = openai.request(request, "gpt-5")
    assert isinstance(sent, UpstreamRequest)
    assert (b"authorization", b"Bearer k-env") in sent.endpoint.headers
    assert [one.target for one in router.way("main").places] == [("work", "qwen"), ("openai", "gpt-5")]
    assert found(router, "work/qwen") == ("work", "qwen")
    assert found(router, "parrot") == ("demo", "parrot")
    assert found(router, "echo") == ("echo", "echo")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"providers": {"x": {}}}, ["providers.x", "unknown type 'x'", "openai"]),
        ({"providers": {"x": {"type": "vlm"}}}, ["unknown type 'vlm'", "vllm"]),
        ({"providers": {"x": {"type": "azure"}}}, ["providers.x", "base_url"]),
        ({"providers": {"openai": {"base_url": "api.openai.com"}}}, ["providers.openai", "https://"]),
        ({"providers": {"openai": {"base_url": "ftp://host/v1"}}}, ["providers.openai", "https://"]),
        ({"providers": {"openai": {"api_key": "a\r\nb"}}}, ["providers.openai", "line breaks"]),
        ({"providers": {"e": {"type": "echo", "fault": "boom"}}}, ["providers.e", "boom", "cut@N"]),
        ({"models": {"m": {"targets": ["gpt-5"]}}}, ["models.m", "provider/model"]),
        ({"models": {"m": {"targets": ["nobody/gpt-5"]}}}, ["models.m", "nobody", "echo"]),
        ({"models": {"m": {"targets": ["echo/"]}}}, ["models.m", "provider/model"]),
    ],
)
def test_a_wrong_setting_is_named(file: dict[str, Any], words: list[str]) -> None:
    """What, where, and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        routes({}, file)
    for word in words:
        assert word in str(caught.value)


def test_a_key_is_in_no_repr(tmp_path: Path) -> None:
    """Neither the adapter's nor its endpoints'."""
    router = routes({"OPENAI_API_KEY": "sk-secret-0123456789"})
    adapter_ = router.way("gpt-5").places[0].adapter
    request = parse(Route("metered", "chat", ""), b'{"model":"gpt-5","messages":[{"role":"user","content":"a"}]}')
    sent = adapter_.request(request, "gpt-5")
    assert isinstance(sent, UpstreamRequest)
    shown = repr(router) + repr(adapter_) + repr(sent.endpoint) + repr(sent)
    assert "sk-secret" not in shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", "http://h/v1"),
        ("http://h/", "http://h/v1"),
        ("http://h/v1", "http://h/v1"),
        ("http://h/v1/", "http://h/v1"),
    ],
)
def test_the_version_is_added_where_it_is_absent(url: str, expected: str) -> None:
    """As users write them."""
    assert with_v1(url) == expected


def test_every_vendor_can_be_configured() -> None:
    """Each row of the table, with a base URL of one's own."""
    for name in VENDORS:
        router = routes({}, {"providers": {name: {"base_url": "http://h/v1", "api_key": "k"}}})
        assert found(router, f"{name}/m") == (name, "m")
    assert METERED["/v1/chat/completions"] == "chat"
