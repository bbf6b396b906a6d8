"""The table of vendors: one row each, and what a row does to a request."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from asgi_llm_gateway.adapters.base import Endpoint, Unsupported
from asgi_llm_gateway.adapters.compatible import OPENAI, VENDORS, Vendor
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.adapters.translated import speaking
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.proxy.upstream import prepare
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

CHAT = Route("metered", "chat", "/v1/chat/completions")
RAW = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'


@pytest.mark.parametrize("name", VENDORS)
def test_a_row_is_complete(name: str) -> None:
    """A URL that our client takes, a key's name, patterns that end in a star or name one model."""
    vendor = VENDORS[name]
    if vendor.base_url is None:
        assert vendor.url_env is not None or name in ("azure", "bedrock")
    else:
        parts = urlsplit(vendor.base_url)
        assert parts.scheme == ("http" if parts.hostname == "127.0.0.1" else "https")
        assert not vendor.base_url.endswith("/")
        prepare(Endpoint("POST", vendor.base_url + "/chat/completions", ()))
    assert vendor.key_env or vendor.local
    assert vendor.limit_field in ("max_tokens", "max_completion_tokens")
    assert all("*" not in pattern[:-1] for pattern in vendor.patterns)
    assert len(set(vendor.models)) == len(vendor.models)


def test_no_two_vendors_want_the_same_names() -> None:
    """A pattern leads to one vendor only."""
    starts = [(pattern.rstrip("*"), name) for name, vendor in VENDORS.items() for pattern in vendor.patterns]
    for start, name in starts:
        for other, owner in starts:
            assert name == owner or not start.startswith(other)


@pytest.mark.parametrize("name", ["openai", "openrouter", "litellm", "llamacpp", "vllm", "ollama", "groq", "mistral"])
def test_the_vendors_that_were_promised_are_there(name: str) -> None:
    """And local ones cost nothing."""
    assert VENDORS[name].local is (name in ("llamacpp", "vllm", "ollama"))


@pytest.mark.parametrize(
    ("vendor", "key", "expected"),
    [
        (OPENAI, "k", {b"authorization": b"Bearer k"}),
        (VENDORS["azure"], "k", {b"api-key": b"k"}),
        (VENDORS["vllm"], None, {}),
        (Vendor("http://h/v1", auth="x-api-key"), "k", {b"x-api-key": b"k"}),
    ],
)
def test_the_key_goes_where_the_vendor_wants_it(vendor: Vendor, key: str | None, expected: dict[bytes, bytes]) -> None:
    """A bearer token, or a header of its own; no key, no header."""
    adapter = OpenAIAdapter("x", "http://h/v1", key, vendor=vendor)
    headers = dict(adapter.request(parse(CHAT, RAW), "m").endpoint.headers)
    for name in (b"content-type", b"accept", b"accept-encoding", b"user-agent"):
        headers.pop(name)
    assert headers == expected


@pytest.mark.parametrize("name", VENDORS)
def test_usage_is_asked_for_as_the_row_says(name: str) -> None:
    """``stream_options`` only where the vendor knows it."""
    adapter = OpenAIAdapter(name, "http://h/v1", vendor=VENDORS[name])
    body = adapter.request(parse(CHAT, RAW[:-1] + b',"stream":true}'), "m").body
    assert (b'"include_usage":true' in body) is VENDORS[name].include_usage
    assert b"stream_options" not in adapter.request(parse(CHAT, RAW), "m").body


@pytest.mark.parametrize("name", VENDORS)
def test_a_limit_of_ours_goes_by_the_rows_name(name: str) -> None:
    """One that the client named keeps the client's name."""
    vendor = VENDORS[name]
    adapter = OpenAIAdapter(name, "http://h/v1", vendor=vendor)
    ours = adapter.request(parse(CHAT, RAW).with_fields(max_tokens=9), "m").body
    assert b'"%b":9' % vendor.limit_field.encode() in ours
    assert ours.count(b'":9') == 1
    theirs = adapter.request(parse(CHAT, RAW[:-1] + b',"max_tokens":9}'), "m").body
    assert b'"max_tokens":9' in theirs


PNG = "data:image/png;base64,AAAA"
HI: Any = [{"role": "user", "content": "a"}]


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A parsed request."""
    dialect = METERED[path]
    told: dict[str, Any] = {"model": "m", **fields}
    if dialect in ("chat", "messages"):
        told.setdefault("messages", HI)
    return parse(Route("metered", dialect, path), json.dumps(told).encode())


def sent(kind: str, asked: LLMRequest, **more: Any) -> dict[str, Any]:
    """The body that a vendor gets."""
    found: dict[str, Any] = json.loads(adapter_of(kind, kind, "http://h/v1", **more).request(asked, "m").body)
    return found


def picture(url: Any) -> Any:
    """Messages with a picture."""
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}]


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        ("/v1/messages", {"max_tokens": 9}, 9),
        ("/v1/responses", {"input": "a", "max_output_tokens": 9}, 9),
        ("/v1/responses", {"input": "a"}, None),
    ],
)
@pytest.mark.parametrize("name", ["groq", "azure", "together", "gemini"])
def test_a_limit_of_another_dialect_goes_by_the_rows_name(
    name: str, path: str, fields: dict[str, Any], limit: int | None
) -> None:
    """A client that speaks Messages or Responses did not choose a word of chat's: each vendor gets its own, once."""
    asked = request(path, **fields)
    adapter = speaking(OpenAIAdapter(name, "http://h/v1", vendor=VENDORS[name]), METERED[path])
    made: Any = adapter.request(asked, "other")
    pairs = json.loads(made.body, object_pairs_hook=list)
    limits = [(key, value) for key, value in pairs if key in ("max_tokens", "max_completion_tokens")]
    assert limits == ([(VENDORS[name].limit_field, limit)] if limit else [])
    assert ("model", "other") in pairs


@pytest.mark.parametrize("name", VENDORS)
def test_a_limit_that_a_vendor_does_not_know_is_sent_under_the_name_it_knows(name: str) -> None:
    """Passed over, it would be no limit, and the call would cost more than was set aside."""
    body = sent(name, request(max_completion_tokens=9))
    known = "max_tokens" if VENDORS[name].one_limit else "max_completion_tokens"
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {known: 9}
    assert VENDORS[name].one_limit is (name in ("mistral", "together", "deepseek", "ollama", "fireworks"))


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("/v1/chat/completions", {}, "max_tokens"),
        ("/v1/completions", {"prompt": "x"}, "max_tokens"),
        ("/v1/messages", {}, "max_tokens"),
        ("/v1/responses", {"input": "x"}, "max_output_tokens"),
    ],
)
def test_a_server_that_would_go_on_for_ever_is_given_a_limit(path: str, fields: dict[str, Any], field: str) -> None:
    """llama.cpp has none of its own; the others have, and are left to it."""
    assert sent("llamacpp", request(path, **fields))[field] == 4096
    assert sent("llamacpp", request(path, **fields), default_max_tokens=7)[field] == 7
    assert sent("llamacpp", request(path, **fields, **{field: 5}))[field] == 5
    if path == "/v1/chat/completions":
        assert field not in sent("vllm", request(path, **fields))


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "ollama"])
@pytest.mark.parametrize(
    ("path", "fields", "place"),
    [
        ("/v1/chat/completions", {"messages": picture({"url": "http://169.254.169.254/x"})}, "image_url"),
        ("/v1/chat/completions", {"messages": picture("https://example.com/x.png")}, "image_url"),
        ("/v1/chat/completions", {"messages": picture({"url": "file:///etc/passwd"})}, "image_url"),
        ("/v1/chat/completions", {"messages": picture({"url": 7})}, "image_url"),
        ("/v1/chat/completions",
         {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "http://h/"}}]}]},
         "video_url"),
        ("/v1/messages",
         {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [
             {"type": "image", "source": {"type": "url", "url": "http://h/x.png"}}]}]}]}, "source"),
    ],
)  # fmt: skip
def test_a_server_of_ones_own_is_not_sent_to_load_urls(
    kind: str, path: str, fields: dict[str, Any], place: str
) -> None:
    """It would do so from within the operator's network. Allowed where it is configured."""
    with pytest.raises(Unsupported, match=r"must be a data: URI") as caught:
        sent(kind, request(path, **fields))
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[")
    assert caught.value.param.endswith(place)
    assert sent(kind, request(path, **fields), remote_urls=True)["messages"] == fields["messages"]


def test_a_picture_in_the_request_itself_goes_anywhere() -> None:
    """And a URL goes to who is far away."""
    for kind in VENDORS:
        if kind != "anthropic":
            assert sent(kind, request(messages=picture({"url": PNG})))["messages"] == picture({"url": PNG})
    far = picture({"url": "https://example.com/x.png"})
    assert sent("openai", request(messages=far))["messages"] == far
    item = {"role": "user", "content": [{"type": "input_image", "image_url": "http://h/x.png"}]}
    with pytest.raises(Unsupported, match="image_url"):
        sent("llamacpp", request("/v1/responses", input=[item]))


def test_what_ollama_passes_over_is_told_and_more_than_one_answer_is_refused() -> None:
    """The caller is not left to think that it was heard."""
    adapter = adapter_of("ollama", "ollama", "http://h/v1")
    assert adapter.request(request(user="u", logit_bias={"1": 2}, n=1), "m").dropped == ("logit_bias", "user")
    with pytest.raises(Unsupported) as caught:
        adapter.request(request(n=2), "m")
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1/chat/completions"),
        ("https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
         "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"),
        ("https://r.openai.azure.com/openai/v1/?api-version=preview",
         "https://r.openai.azure.com/openai/v1/chat/completions?api-version=preview"),
    ],
)  # fmt: skip
def test_the_path_goes_before_a_base_urls_query(base: str, url: str) -> None:
    """Both forms of Azure's, which our client takes so; the model is the deployment's name."""
    made = adapter_of("azure", "azure", base, "k").request(request(), "my-deployment")
    assert made.endpoint.url == url
    assert json.loads(made.body)["model"] == "my-deployment"
    assert prepare(made.endpoint) is not None


def test_usage_is_not_asked_for_where_it_comes_all_the_same() -> None:
    """A client's ``stream_options`` would be refused by who does not know the field; the client gets its usage event."""
    options = {"include_usage": True}
    asked = request(stream=True, stream_options=options)
    assert "stream_options" not in sent("mistral", asked)
    assert sent("groq", asked)["stream_options"] == options
    assert asked.wants_usage


@pytest.mark.parametrize(
    ("kind", "dialects"),
    [
        ("openai", {"responses"}),
        ("llamacpp", {"responses", "messages"}),
        ("vllm", {"messages"}),
        ("ollama", {"messages"}),
        ("openrouter", {"messages"}),
        ("groq", set()),
    ],
)
def test_a_dialect_that_a_vendor_speaks_is_not_translated(kind: str, dialects: set[str]) -> None:
    """It is sent to the path below the same base URL, in the client's own words."""
    adapter = adapter_of(kind, kind, "http://h/v1")
    assert adapter.speaks & {"responses", "messages"} == dialects
    if "messages" in dialects:
        asked = request("/v1/messages", max_tokens=9, system="s", metadata={"user_id": "u"})
        made = adapter.request(asked, "m")
        assert (made.endpoint.url, made.body) == ("http://h/v1/messages", asked.raw)
        assert dict(made.headers) == {b"anthropic-version": b"2023-06-01"}
        with pytest.raises(Unsupported, match="container"):
            adapter.request(request("/v1/messages", max_tokens=9, container="c"), "m")
    if "responses" in dialects:
        made = adapter.request(request("/v1/responses", input="x", max_output_tokens=9), "m")
        assert made.endpoint.url == "http://h/v1/responses"
        assert json.loads(made.body)["store"] is False


def test_media_go_to_their_own_paths() -> None:
    """With the content type of the request's own."""
    asked = request("/v1/images/generations", prompt="a cat")
    made = adapter_of("openai", "openai", "http://h/v1", "k").request(asked, "m")
    assert (made.endpoint.url, made.body) == ("http://h/v1/images/generations", asked.raw)
    assert [value for name, value in (*made.endpoint.headers, *made.headers) if name == b"content-type"] == [
        b"application/json"
    ]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("openai", {"base_url": "http://h/v1#x"}),
        ("openai", {"default_max_tokens": 0}),
        ("openai", {"referer": "https://a.example"}),
        ("openai", {"title": "A"}),
        ("openrouter", {"remote_urls": True}),
        ("openrouter", {"default_max_tokens": 5}),
        ("openrouter", {"title": "a\nb"}),
        ("nobody", {}),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_the_start(kind: str, more: dict[str, Any]) -> None:
    """Not at the first call, and not passed over."""
    with pytest.raises(ValueError, match=r"."):
        adapter_of(kind, "x", **{"base_url": "http://h/v1", **more})


@pytest.mark.parametrize("field", ["n_predict", "n_cmpl"])
def test_a_second_name_for_a_limit_is_no_way_round_it(field: str) -> None:
    """llama.cpp reads these in place of what was checked; also of a client that is trusted."""
    for trusted in (False, True):
        fields: dict[str, Any] = {field: 9}
        with pytest.raises(BadRequest) as caught:
            sent("llamacpp", request(**fields), trust_clients=trusted)
        assert caught.value.param == field
