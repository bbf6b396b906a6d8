"""Good requests of each dialect with all that they may hold, for a fuzzer to spoil."""

from __future__ import annotations

from typing import Any

PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FUNCTION = {"name": "look_up", "description": "Finds it.", "parameters": SCHEMA, "strict": True}

CHAT: dict[str, Any] = {
    "model": "echo",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "In English."}], "name": "d"},
        {"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
        ]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{\"name\": \"x\"}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "[]"},
        {"role": "user", "content": "And now?"},
    ],
    "stream": False,
    "max_completion_tokens": 20,
    "n": 1,
    "temperature": 0.5,
    "top_p": 1,
    "stop": ["END"],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
    "reasoning_effort": "low",
    "logit_bias": {"1": 2},
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 1,
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "default",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "web_search_options": {},
}  # fmt: skip
STREAM: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": "one two three"}],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "max_tokens": 9,
}
MESSAGES: dict[str, Any] = {
    "model": "echo",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "t",
             "citations": {"enabled": True}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"name": "x"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "[]"}], "is_error": False},
        ]},
    ],
    "stream": False,
    "stop_sequences": ["END"],
    "temperature": 1,
    "top_k": 5,
    "tools": [{"name": "look_up", "description": "Finds it.", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "context_management": {"edits": []},
}  # fmt: skip
RESPONSES: dict[str, Any] = {
    "model": "echo",
    "instructions": "Be brief.",
    "input": [
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "What is it?"},
            {"type": "input_image", "image_url": PNG, "detail": "low"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "[]"},
        {"role": "user", "content": "And now?"},
    ],
    "stream": False,
    "max_output_tokens": 20,
    "temperature": 0.5,
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "store": False,
    "truncation": "disabled",
    "previous_response_id": None,
    "conversation": None,
    "background": False,
    "prompt": None,
    "metadata": {"a": "b"},
    "user": "u",
    "service_tier": "auto",
    "top_logprobs": 0,
}  # fmt: skip
EMBEDDINGS: dict[str, Any] = {
    "model": "echo", "input": ["one", "two"], "encoding_format": "base64", "dimensions": 8, "user": "u",
}  # fmt: skip
COMPLETIONS: dict[str, Any] = {
    "model": "echo", "prompt": ["one", "two"], "max_tokens": 9, "n": 1, "best_of": 1, "echo": False, "logprobs": 1,
    "suffix": "x", "stop": "END", "stream": False, "logit_bias": {"1": 2}, "seed": 1,
}  # fmt: skip
MODERATIONS: dict[str, Any] = {"model": "echo", "input": [{"type": "text", "text": "x"}]}
SPEECH: dict[str, Any] = {"model": "echo", "input": "x", "voice": "alloy", "speed": 1.5, "stream_format": "audio",
                          "response_format": "mp3", "instructions": "slowly"}  # fmt: skip
IMAGES: dict[str, Any] = {"model": "echo", "prompt": "x", "n": 1, "size": "1024x1024", "quality": "high",
                          "stream": False, "partial_images": 0, "background": "auto", "output_format": "png"}  # fmt: skip
EDITS: dict[str, Any] = {**IMAGES, "images": [{"image_url": PNG}], "mask": {"image_url": PNG}, "input_fidelity": "low"}

BY_PATH: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (CHAT, STREAM, {**CHAT, "stream": True}),
    "/v1/messages": (MESSAGES, {**MESSAGES, "stream": True}),
    "/v1/messages/count_tokens": ({name: MESSAGES[name] for name in ("model", "messages", "system", "tools")},),
    "/v1/responses": (RESPONSES, {**RESPONSES, "stream": True}),
    "/v1/embeddings": (EMBEDDINGS,),
    "/v1/completions": (COMPLETIONS, {**COMPLETIONS, "stream": True}),
    "/v1/moderations": (MODERATIONS,),
    "/v1/audio/speech": (SPEECH,),
    "/v1/images/generations": (IMAGES,),
    "/v1/images/edits": (EDITS,),
}
"""By the path that they are sent to."""
