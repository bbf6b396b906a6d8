"""What a tenant may not ask of an account that all tenants share, and which of its headers go along.

Sources: Anthropic API reference, "Messages" (and its beta), "Versions" and "Beta headers", 2023-06-01 and 2026-10-21.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import BadRequest, Header, NoThreads
from ..wire import LLMRequest
from .base import Unsupported

VERSIONS = ("2023-06-01", "2026-10-21")
"""Versions of the API whose answers are understood here."""

_SHARED = "it names what is kept in the account that all tenants share"
_BILLED = "whom and how the provider bills is the operator's affair"
_REFUSED: Mapping[str, str] = {
    "container": _SHARED,
    "diagnostics": _SHARED,
    "thread": _SHARED,
    "mcp_servers": "the provider would call servers of the caller's choice; call them yourself and send their 'tools'",
    "fallbacks": "other models have other prices; ask the operator for a fallback in the gateway",
    "fallback_credit_token": _BILLED,
    "billing_policy": _BILLED,
    "user_profile_id": _BILLED,
    "workspace_id": _BILLED,
    "inference_geo": "its price is another; the operator sets it for the workspace",
}
_TIERS = ("auto", "standard_only")
# Tools that the client runs, by the beginning of their type. Every other typed tool the provider runs itself.
_CLIENTS_OWN = ("bash_", "text_editor_", "computer_", "memory_")
# An escape for an ASCII character: it may spell a key in disguise.
_DISGUISE = b"\\u00"
_BETA = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")
_MAX_BETAS = 64


def guard(request: LLMRequest, *, server_tools: bool) -> None:
    """Refuse by name what is not a tenant's to ask, whatever server speaks Messages.

    Args:
        request: A request for Messages.
        server_tools: Whether tools are allowed that the provider runs itself (web search, code execution, ...): they cost
            money a use, which is not metered.

    Raises Unsupported, BadRequest.
    """
    data = request.data
    for name in _REFUSED.keys() & data.keys():
        if data[name] is not None and data[name] != []:
            if name == "thread":
                raise NoThreads
            raise Unsupported(f"'{name}' can't be used through this gateway: {_REFUSED[name]}. Remove it.", param=name)
    tier = data.get("service_tier")
    if tier is not None and tier not in _TIERS:
        raise Unsupported(f"'service_tier' must be one of {', '.join(_TIERS)}.", param="service_tier")
    if data.get("tools") is not None:
        _check_tools(data["tools"], server_tools)
    if request.raw.find(b"file_id") >= 0 or request.raw.find(_DISGUISE) >= 0:
        for at, message in enumerate(data["messages"]):
            _refuse_files(message.get("content"), f"messages[{at}].content")


def _check_tools(tools: Any, server_tools: bool) -> None:
    if type(tools) is not list:
        raise BadRequest("'tools' must be an array.", param="tools")
    for at, tool in enumerate(tools):
        kind = tool.get("type") if type(tool) is dict else ""
        if kind is None or kind == "custom":
            continue
        if type(kind) is not str or not kind:
            raise BadRequest(f"'tools[{at}]' must be an object whose 'type', if it has one, is a string.",
                             param=f"tools[{at}]")  # fmt: skip
        if not server_tools and not kind.startswith(_CLIENTS_OWN):
            raise Unsupported(
                f"'tools[{at}]' of type '{kind[:64]}' is run by the provider, at a cost that is not metered here. "
                "Use a tool of your own, or ask the operator to allow 'server_tools'.",
                param=f"tools[{at}].type",
            )


def _refuse_files(content: Any, place: str) -> None:
    """Refuse files of the account, wherever a block may name one. What a tool call has in its input is text."""
    waiting = [(content, place)]
    while waiting:
        blocks, here = waiting.pop()
        for at, block in enumerate(blocks if type(blocks) is list else ()):
            if type(block) is not dict:
                continue
            spot = f"{here}[{at}]"
            source = block.get("source")
            for holder, name in ((source, f"{spot}.source.file_id"), (block, f"{spot}.file_id")):
                if type(holder) is dict and "file_id" in holder:
                    raise Unsupported(f"'{name}' can't be used through this gateway: {_SHARED}. Send the file itself, in "
                                      "base64.", param=name)  # fmt: skip
            if type(source) is dict:
                waiting.append((source.get("content"), f"{spot}.source.content"))
            if block.get("type") in ("tool_result", "search_result"):
                waiting.append((block.get("content"), f"{spot}.content"))


def api_headers(request: LLMRequest, version: str, betas: Collection[str] | None) -> tuple[Header, ...]:
    """The version and the beta features that the client asks for, as they go to the provider.

    Args:
        request: What the client sent.
        version: The version for a client that names none; allowed beside ``VERSIONS``.
        betas: The beta features that are allowed; ``None`` for all.

    Raises BadRequest, naming the header.
    """
    asked = request.header(b"anthropic-version")
    if asked is None:
        chosen = version
    else:
        chosen = asked.decode("latin-1").strip()
        if chosen != version and chosen not in VERSIONS:
            known = ", ".join(dict.fromkeys((*VERSIONS, version)))
            raise BadRequest(f"This 'anthropic-version' is not known here. Use one of {known}.",
                             param="anthropic-version", code="unsupported_version")  # fmt: skip
    headers: tuple[Header, ...] = ((b"anthropic-version", chosen.encode("latin-1")),)
    beta = request.header(b"anthropic-beta")
    if beta is None or not beta.strip():
        return headers
    names = [name.strip() for name in beta.decode("latin-1").split(",", _MAX_BETAS)]
    if len(names) > _MAX_BETAS or any(_BETA.match(name) is None for name in names):
        raise BadRequest(f"'anthropic-beta' must be at most {_MAX_BETAS} names with commas between them.",
                         param="anthropic-beta")  # fmt: skip
    for name in names:
        if betas is not None and name not in betas:
            there = ", ".join(sorted(betas)) or "none"
            raise BadRequest(f"The beta feature '{name}' is not allowed through this gateway. Allowed: {there}.",
                             param="anthropic-beta", code="unsupported_beta")  # fmt: skip
    return (*headers, (b"anthropic-beta", ",".join(names).encode()))


__all__ = ["VERSIONS", "api_headers", "guard"]
