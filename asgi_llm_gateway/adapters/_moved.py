"""A conversation that began at another provider, and goes on at one that would refuse what that one left in it.

A fallback does that, and so does a client that changes its model. What is taken out here is what only the gateway's own
translation can have put in, or what the provider can't have any more; all else stays the client's, for the provider to judge.
Sources: Anthropic API reference, "Messages" and "Extended thinking"; OpenAI API reference, "Create a model response" (items
are not kept where ``store`` is false) and "Create chat completion", autumn 2026.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..wire import LLMRequest
from ._anthropic_messages import safe_name
from ._anthropic_models import abilities

Block = dict[str, Any]
Fitted = tuple[dict[str, Any], tuple[str, ...]]
"""The fields to change, and the names of what was left out."""

_NOTHING: Fitted = ({}, ())
# Anthropic's own ids begin so, whoever sells its models: toolu_, toolu_bdrk_, toolu_vrtx_.
_OWN_CALL = "toolu_"
_CALL_ID = re.compile(r"[A-Za-z0-9_-]+\Z")
_THOUGHTS = ("thinking", "redacted_thinking")
_EXTENSIONS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")


# -- Messages ----------------------------------------------------------------------------------------------------------


def fit_messages(request: LLMRequest, model: str, version: str) -> Fitted:
    """What of a Messages request Anthropic would refuse because another provider made it.

    Thoughts without a signature go: the gateway made them out of a provider's that signs none. Ids of calls are put in the
    letters that are allowed, the same one everywhere. Where the last call to be answered has lost its thoughts, or never had
    any, a budget of thinking becomes adaptive thinking; a model that has none answers without.

    Args:
        request: A request for Messages.
        model: The provider's own name of the model.
        version: The version of the API.
    """
    raw = request.raw
    if raw.find(b'"tool_use"') < 0 and raw.find(b'"thinking"') < 0:
        return _NOTHING
    messages: list[Block] = request.data["messages"]
    odd = unsigned = False
    last: str | None = None  # the id of the last call
    for message in messages:
        content = message.get("content")
        for block in content if type(content) is list else ():
            kind = block.get("type") if type(block) is dict else None
            if kind == "tool_use":
                last = block.get("id")
                odd = odd or (type(last) is str and _CALL_ID.match(last) is None)
            elif kind == "thinking" and block.get("signature") == "":
                unsigned = True
    changes: dict[str, Any] = {}
    dropped: tuple[str, ...] = ()
    if odd or unsigned:
        messages = changes["messages"] = [kept for message in messages if (kept := _fit_turn(message)) is not None]
        dropped = ("messages.thinking",) if unsigned else ()
    if unsigned or (type(last) is str and not last.startswith(_OWN_CALL)):
        thinking = request.data.get("thinking")
        if type(thinking) is dict and thinking.get("type") == "enabled" and _unthought(messages):
            adaptive = abilities(model, version).thinking == "adaptive"
            shown = {name: value for name, value in thinking.items() if name == "display"}
            changes["thinking"] = {"type": "adaptive", **shown} if adaptive else None
            dropped += ("thinking.budget_tokens" if adaptive else "thinking",)
    return changes, dropped


def _fit_turn(message: Block) -> Block | None:
    """A turn that Anthropic takes; ``None`` where nothing is left of it."""
    content = message.get("content")
    if type(content) is not list:
        return message
    kept = [_fit_block(block) for block in content if not _is_unsigned(block)]
    return {**message, "content": kept} if kept or not content else None


def _is_unsigned(block: Any) -> bool:
    return type(block) is dict and block.get("type") == "thinking" and block.get("signature") == ""


def _fit_block(block: Any) -> Any:
    for kind, name in (("tool_use", "id"), ("tool_result", "tool_use_id")):
        if type(block) is dict and block.get("type") == kind and type(block.get(name)) is str and block[name]:
            return {**block, name: safe_name(block[name])}
    return block


def _unthought(messages: Sequence[Block]) -> bool:
    """Whether the last turn of the assistant has a call and no thought before it: with a budget it must have one."""
    at = len(messages) - 1
    while at >= 0 and messages[at].get("role") != "assistant":
        at -= 1
    blocks: list[Any] = []
    while at >= 0 and messages[at].get("role") == "assistant":  # turns of one role are one
        content = messages[at].get("content")
        blocks[:0] = content if type(content) is list else [{"type": "text"}]
        at -= 1
    kinds = [block.get("type") for block in blocks if type(block) is dict]
    return "tool_use" in kinds and kinds[0] not in _THOUGHTS


# -- Responses ---------------------------------------------------------------------------------------------------------


def fit_items(items: Any) -> Any:
    """The items of a Responses request without thoughts that nobody has: ``items`` itself where there are none.

    A reasoning item that is only a name and a summary stands for what is kept at the provider; with ``store`` false nothing is.
    It may also be of another provider's. Items that belonged to it lose their ids, by which it would be looked for.
    """
    if type(items) is not list or not any(_is_forgotten(item) for item in items):
        return items
    kept = []
    for item in items:
        if _is_forgotten(item):
            continue
        if type(item) is dict and item.get("type") in ("function_call", "custom_tool_call", "message") and "id" in item:
            item = {name: value for name, value in item.items() if name != "id"}
        kept.append(item)
    return kept


def _is_forgotten(item: Any) -> bool:
    """Whether an item is a thought of which there is neither the text nor the provider's own encryption."""
    return (
        type(item) is dict
        and item.get("type") == "reasoning"
        and not item.get("encrypted_content")
        and not item.get("content")
    )


# -- Chat --------------------------------------------------------------------------------------------------------------


def has_extensions(raw: bytes) -> bool:
    """Whether a body may hold what only the answers of other vendors have."""
    return raw.find(b'"reasoning') >= 0 or raw.find(b'"thinking_blocks"') >= 0


def fit_chat(request: LLMRequest) -> Fitted:
    """What of a chat request OpenAI would refuse: the thoughts that other providers put beside an answer."""
    if not has_extensions(request.raw):
        return _NOTHING
    kept = []
    lost: dict[str, None] = {}
    for message in request.data["messages"]:
        if type(message) is dict and message.get("role") == "assistant":
            found = [name for name in _EXTENSIONS if name in message]
            if found:
                message = {name: value for name, value in message.items() if name not in found}
                lost.update(dict.fromkeys(f"messages.{name}" for name in found))
        kept.append(message)
    return ({"messages": kept}, tuple(lost)) if lost else _NOTHING
