"""Coding agents that are given nothing but a base URL and a key: one on Messages (as Claude Code is), one on Responses (as
Codex CLI is), each in a whole task against every provider.

What they send is what those agents send: marked system blocks, many tools, streams, thinking, parallel calls, results with
errors and pictures, hints between the turns, ``count_tokens``; ``store: false`` with encrypted reasoning.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from .matrix.clients import PICTURE
from .matrix.stage import MODELS, Account, Stage, playing, staged

every_provider = pytest.mark.parametrize("provider", list(MODELS))
TASK = "fix the tests of /src"
BETAS = ["claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"]
REMINDER = "<system-reminder>\nThe todo list is empty. Don't mention this.\n</system-reminder>"
# Claude Code's own, and enough of an MCP server's with names that are longer than chat's.
NAMES = ["Task", "Bash", "Glob", "Grep", "Read", "Edit", "Write", "NotebookEdit", "WebFetch", "TodoWrite", "WebSearch",
         *(f"mcp__a_server_with_a_long_name__{'deeply_nested_' * 3}tool_{number}" for number in range(9))]  # fmt: skip
MARK = ', "cache_control": {"type": "ephemeral"}'
SCHEMA = {"type": "object", "additionalProperties": False, "$schema": "http://json-schema.org/draft-07/schema#",
          "properties": {"file_path": {"type": "string", "description": "Absolute."}, "command": {"type": "string"},
                         "limit": {"type": "number", "minimum": 1}, "timeout": {"type": "number"},
                         "old_string": {"type": "string"}, "new_string": {"type": "string"}}}  # fmt: skip
SYSTEM = ["You are a coding agent.", "# Rules\n\nBe „exact“.\n" + "- A rule of many words.\n" * 200]


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The gateway's process and its providers."""
    with staged(tmp_path_factory.mktemp("agent")) as made:
        yield made


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    """The same for one test."""
    with playing(whole_stage):
        yield whole_stage


@pytest.fixture
def account(stage: Stage) -> Account:
    """The agent's user."""
    return Account(stage)


def run(name: str, given: dict[str, Any]) -> tuple[str, bool]:
    """What a tool says, and whether it failed."""
    if name == "Read":
        return ('     1\tx = "1"\n' if given["file_path"].endswith("a.py") else "# empty", False)
    if name == "Bash":
        return ("1 failed in 0.1s", True)
    return ("done", False)


# -- on Messages -------------------------------------------------------------------------------------------------------


class Messages:
    """The agent: the environment is all it knows of the gateway."""

    def __init__(self, model: str) -> None:
        self._client = anthropic.Anthropic(max_retries=0, _strict_response_validation=True)
        self._model = model
        self._talk: list[Any] = []
        self.streamed: list[str] = []

    def _fields(self) -> dict[str, Any]:
        mark = {"type": "ephemeral"}
        tools = [{"name": name, "description": "It does.", "input_schema": SCHEMA} for name in NAMES]
        return {
            "model": self._model,
            "messages": self._talk,
            "system": [{"type": "text", "text": text, "cache_control": mark} for text in SYSTEM],
            "tools": [*tools[:-1], {**tools[-1], "cache_control": mark}],
            "thinking": {"type": "enabled", "budget_tokens": 31_999},
            "betas": BETAS,
        }

    def counted(self) -> int:
        """How long the conversation is."""
        return self._client.beta.messages.count_tokens(**self._fields()).input_tokens

    def quota(self) -> Any:
        """Its first call of all, which asks for one token."""
        said: Any = [{"role": "user", "content": "talk"}]
        return self._client.messages.create(model=self._model, max_tokens=1, messages=said, metadata={"user_id": "u"})

    def work(self, task: str) -> str:
        """Until there are no calls any more; the last words."""
        self._talk.append({"role": "user", "content": [{"type": "text", "text": task}]})
        while True:
            self.counted()
            with self._client.beta.messages.stream(
                **self._fields(), max_tokens=32_000, metadata={"user_id": f"user_{'0f' * 32}_account__session_{'1a' * 16}"},
                context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            ) as events:  # fmt: skip
                self.streamed += [event.type for event in events]
                answer = events.get_final_message()
            self._talk.append({"role": "assistant", "content": answer.content})
            calls = [block for block in answer.content if block.type == "tool_use"]
            assert (answer.stop_reason == "tool_use") == bool(calls)
            if not calls:
                return "".join(block.text for block in answer.content if block.type == "text")
            results = [
                self._result(call.id, *run(call.name, call.input), picture=call.name == "Edit") for call in calls
            ]
            for turn in self._talk[::2]:  # the mark moves on: there may be four of them
                for block in turn["content"]:
                    block.pop("cache_control", None)
            mark = {"type": "ephemeral"}
            hint = {"type": "text", "text": REMINDER, "cache_control": mark}
            self._talk.append({"role": "user", "content": [*results, hint]})

    def _result(self, id: str, text: str, failed: bool, *, picture: bool) -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PICTURE).decode()}
        image = [{"type": "image", "source": source}] if picture else []
        content: Any = [{"type": "text", "text": text}, *image] if picture else text
        return {"tool_use_id": id, "type": "tool_result", "content": content, **({"is_error": True} if failed else {})}


@every_provider
def test_an_agent_that_only_knows_a_base_url(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, account: Account, provider: str
) -> None:
    """It does its task in four steps; every step is booked as it was billed, with what the cache had of it."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", account.url)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", account.key)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    agent = Messages(MODELS[provider][0])
    assert agent.quota().stop_reason == "max_tokens"
    assert agent.work(TASK) == "Fixed: `x = 1`."
    assert stage.providers.heard[-1].images == [PICTURE]
    assert stage.providers.heard[-1].system.replace("\n", "") == "".join(SYSTEM).replace("\n", "")
    assert all(heard.stream and heard.thinks for heard in stage.providers.heard if heard.command == REMINDER
               and heard.limit is not None)  # fmt: skip
    assert "input_json" in agent.streamed
    account.settled()


@every_provider
def test_the_agent_counts_its_prompt(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, account: Account, provider: str
) -> None:
    """Anthropic is asked, and its count is told; for others it is estimated. It costs nothing and is no call."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", account.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", account.key)
    agent = Messages(MODELS[provider][0])
    agent._talk.append({"role": "user", "content": TASK})
    found = agent.counted()
    if provider == "anthropic":
        (asked,) = stage.providers.asked
        assert asked.path == "/v1/messages/count_tokens"
        assert asked.headers["anthropic-beta"].split(",")[:2] == BETAS[:2]
        assert found == 2000 + len("".join(SYSTEM))
    else:
        assert stage.providers.asked == []
        assert 1000 < found < 8000
    account.closed(0)


def test_what_goes_to_anthropic_is_what_the_agent_sent(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, account: Account
) -> None:
    """Field by field, in the agent's order, so that the provider's cache finds the prefix again; and its own headers."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", account.url)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", account.key)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    Messages(MODELS["anthropic"][0]).work(TASK)
    steps = [asked for asked in stage.providers.asked if asked.path == "/v1/messages"]
    assert len(steps) == 4
    for before, after in itertools.pairwise(steps):
        count = len(before.body["messages"])
        same = json.dumps(before.body["messages"]).replace(MARK, "")
        assert json.dumps(after.body["messages"][:count]).replace(MARK, "") == same
        assert json.dumps([after.body[name] for name in ("system", "tools")]) == json.dumps(
            [before.body[name] for name in ("system", "tools")]
        )
    last = steps[-1]
    assert list(last.body)[:2] == ["max_tokens", "messages"]
    assert last.body["model"] == MODELS["anthropic"][1]
    assert last.headers["anthropic-beta"].split(",")[:3] == BETAS
    assert last.body["context_management"]["edits"][0]["keep"] == "all"
    assert account.key not in str(last)


@every_provider
def test_the_agents_key_may_be_taken_away(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, account: Account, provider: str
) -> None:
    """A wrong key ends it with the SDK's own error, before anybody is asked."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", account.url)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", account.key + "x")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(anthropic.AuthenticationError):
        Messages(MODELS[provider][0]).work(TASK)
    assert stage.providers.asked == []
    account.closed(0)


# -- on Responses ------------------------------------------------------------------------------------------------------


class Responses:
    """The agent. It keeps the conversation itself, out of the stream's ``output_item.done`` events."""

    def __init__(self, model: str) -> None:
        self._client = openai.OpenAI(
            max_retries=0, _strict_response_validation=True,
            default_headers={"OpenAI-Beta": "responses=experimental", "originator": "codex_cli_rs", "session_id": "0f1e"},
        )  # fmt: skip
        self._model = model
        self._talk: list[Any] = []
        self.streamed: list[str] = []

    def work(self, task: str) -> str:
        """Until there are no calls any more; the last words."""
        context = {"type": "input_text", "text": "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"}
        self._talk += [
            {"type": "message", "role": "developer", "content": [context]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": task}]},
        ]
        tools: Any = [{"type": "function", "name": name, "description": "It does.", "strict": False, "parameters": SCHEMA}
                      for name in NAMES[:11]]  # fmt: skip
        while True:
            made: list[Any] = []
            with self._client.responses.create(
                model=self._model, instructions=SYSTEM[1], input=self._talk, tools=tools, tool_choice="auto",
                parallel_tool_calls=True, reasoning={"effort": "high", "summary": "auto"}, store=False, stream=True,
                include=["reasoning.encrypted_content"], prompt_cache_key="0f1e", text={"verbosity": "low"},
            ) as events:  # fmt: skip
                for event in events:
                    self.streamed.append(event.type)
                    if event.type == "response.output_item.done":
                        made.append(event.item)
            assert self.streamed[-1] == "response.completed"
            # As Codex sends them: without ids, for nothing is stored.
            self._talk += [
                {key: value for key, value in item.to_dict().items() if key not in ("id", "status")} for item in made
            ]
            calls = [item for item in made if item.type == "function_call"]
            if not calls:
                return "".join(part.text for item in made if item.type == "message" for part in item.content)
            for call in calls:
                text, failed = run(call.name, json.loads(call.arguments))
                output = f"error: {text}" if failed else text
                self._talk.append({"type": "function_call_output", "call_id": call.call_id, "output": output})


@every_provider
def test_an_agent_on_responses(monkeypatch: pytest.MonkeyPatch, stage: Stage, account: Account, provider: str) -> None:
    """It does its task; where the provider speaks Responses itself, its encrypted thoughts come back to it."""
    monkeypatch.setenv("OPENAI_BASE_URL", account.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", account.key)
    agent = Responses(MODELS[provider][0])
    assert agent.work(TASK) == "Fixed: `x = 1`."
    assert len(stage.providers.heard) == 4
    assert all(heard.stream and heard.thinks for heard in stage.providers.heard)
    assert [heard.replayed for heard in stage.providers.heard][1:] == [provider == "openai"] * 3
    assert stage.providers.heard[-1].system.startswith(SYSTEM[1])
    paths = {"openai": "/v1/responses", "anthropic": "/v1/messages", "vendor": "/v1/chat/completions"}
    assert {asked.path for asked in stage.providers.asked} == {paths[provider]}
    account.settled()
