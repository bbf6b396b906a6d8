"""Requests and answers whose content is read."""

from __future__ import annotations

from asgi_llm_gateway.wire import METERED

PATHS = {dialect: path for path, dialect in METERED.items()}

CHAT = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            {"type": "image_url", "image_url": {"url": "https://example.org/cat.jpg"}},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": \"cat\"}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
    ],
    "tools": [{"type": "function", "function": {
        "name": "look", "description": "Look closer.", "parameters": {"type": "object"}}}],
}  # fmt: skip

MESSAGES = {
    "model": "claude-sonnet-5",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
            {"type": "text", "text": "What is this?"},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Look.", "signature": "sig"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "cat"}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"}]},
    ],
    "tools": [
        {"name": "look", "description": "Look closer.", "input_schema": {"type": "object"}},
        {"type": "web_search_20250305", "name": "web_search"},
    ],
}  # fmt: skip

RESPONSES = {
    "model": "gpt-5",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": "https://example.org/cat.jpg"},
            {"type": "input_file", "file_id": "file-1"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look."}]},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{\"at\": \"cat\"}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "cat"}},
    ],
    "tools": [{"type": "function", "name": "look", "description": "Look closer.", "parameters": {"type": "object"}},
              {"type": "web_search"}],
}  # fmt: skip

CHAT_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A cat."}},
        {"index": 1, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": None, "reasoning_content": "Closer.", "tool_calls": [
                {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": "{\"at\":\"paw\"}"}}]}},
    ],
}  # fmt: skip

MESSAGES_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [
        {"type": "thinking", "thinking": "Closer.", "signature": "sig"},
        {"type": "text", "text": "A cat."},
        {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {"at": "paw"}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 5, "output_tokens": 6},
}

RESPONSES_ANSWER = {
    "id": "resp_1",
    "object": "response",
    "model": "gpt-5",
    "status": "completed",
    "output": [
        {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "Closer."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "A cat.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_2", "name": "look", "arguments": "{\"at\":\"paw\"}"},
    ],
}  # fmt: skip
