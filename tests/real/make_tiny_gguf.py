"""Write a tiny llama model with random weights: real tokenizer, chat template, cache and sampling; its text is word salad.

The same bytes for the same seed. Run as ``python -m tests.real.make_tiny_gguf OUT.gguf``; needs gguf and numpy.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

WORDS = """the of and to in a is that it was for on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know get through back much before
go good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never us
left end along while might next sound below saw something thought both few those always show large often together asked
house world going want school important until form food keep children feet land side without boy once animal life enough
took four head above kind began almost live page got earth need far hand high year mother light country father let night
picture being study second soon story since white ever paper hard near sentence better best across during today however
sure knew try told young sun thing whole hear example heard several change answer room sea against top turned learn
point city play toward five himself usually money seen car morning model token cache budget gateway stream request
response"""

# ChatML with tool calls of the shape that llama.cpp recognises in a template, and can constrain.
CHAT_TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nFor each call, return <tool_call>{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.tool_calls %}{{- '<|im_start|>assistant' }}
{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>{\\"name\\": \\"' }}{{- tool_call.name }}{{- '\\", \\"arguments\\": ' }}{{- tool_call.arguments | tojson }}{{- '}</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""  # noqa: E501

LAYERS, DIM, HEADS, FORWARD, CONTEXT = 2, 64, 4, 128, 4096


class Vocabulary:
    """Tokens, scores and types of a SentencePiece vocabulary: bytes, whole words with all their beginnings, characters."""

    def __init__(self, kind: Any) -> None:
        self.tokens: list[str] = []
        self.scores: list[float] = []
        self.types: list[int] = []
        self._add("<unk>", kind.UNKNOWN)
        self.begin = self._add("<s>", kind.CONTROL)
        self._add("</s>", kind.CONTROL)
        for byte in range(256):
            self._add(f"<0x{byte:02X}>", kind.BYTE)
        self._add("<|im_start|>", kind.CONTROL)
        self.end = self._add("<|im_end|>", kind.CONTROL)
        # One token each, so that a request's logit_bias can make the model start and end a tool call.
        self._add("<tool_call>", kind.USER_DEFINED)
        self._add("</tool_call>", kind.USER_DEFINED)
        self.words = {f"\u2581{word}" for word in WORDS.split()}
        # The tokenizer joins pieces step by step, so every beginning of a word must be a token as well.
        pieces = {word[:length] for word in self.words for length in range(2, len(word) + 1)}
        characters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
        for rank, piece in enumerate([*sorted(pieces, key=lambda one: (len(one), one)), *characters], 1):
            self._add(piece, kind.NORMAL, -float(rank))

    def _add(self, token: str, kind: Any, score: float = 0.0) -> int:
        self.tokens.append(token)
        self.scores.append(score)
        self.types.append(int(kind))
        return len(self.tokens) - 1


def main(out: str, seed: int = 7) -> None:
    """Write the file."""
    import gguf
    import numpy as np

    random = np.random.default_rng(seed)
    words = Vocabulary(gguf.TokenType)
    size = len(words.tokens)

    def weights(*shape: int, scale: float) -> Any:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    file = gguf.GGUFWriter(out, "llama")
    file.add_name("tiny")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(DIM)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(FORWARD)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_rope_dimension_count(DIM // HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(size)
    file.add_file_type(gguf.LlamaFileType.ALL_F32)
    file.add_tokenizer_model("llama")
    file.add_token_list([token.encode() for token in words.tokens])
    file.add_token_scores(words.scores)
    file.add_token_types(words.types)
    file.add_bos_token_id(words.begin)
    file.add_eos_token_id(words.end)
    file.add_unk_token_id(0)
    file.add_add_bos_token(True)
    file.add_add_eos_token(False)
    file.add_add_space_prefix(False)  # else "<|im_start|>assistant" gains a space, and grammars cannot start
    file.add_chat_template(CHAT_TEMPLATE)

    embedding = weights(size, DIM, scale=1.0)
    embedding[:, 0] = 4.0  # a constant direction, which serves as a bias for each token below
    output = weights(size, DIM, scale=0.6)
    output[:, 0] = -8.0  # bytes, pieces of words and control tokens are as good as never drawn
    for number, token in enumerate(words.tokens):
        if token in words.words:
            output[number, 0] = 0.0
    output[words.end, 0] = 0.0
    file.add_tensor("token_embd.weight", embedding)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            file.add_tensor(f"{prefix}{name}.weight", np.ones(DIM, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v"):
            file.add_tensor(f"{prefix}{name}.weight", weights(DIM, DIM, scale=0.5 / np.sqrt(DIM)))
        for name in ("ffn_gate", "ffn_up"):
            file.add_tensor(f"{prefix}{name}.weight", weights(FORWARD, DIM, scale=0.5 / np.sqrt(DIM)))
        for name, width in (("attn_output", DIM), ("ffn_down", FORWARD)):
            back = weights(DIM, width, scale=0.5 / np.sqrt(width))
            back[0, :] = 0.0  # leaves the constant direction alone
            file.add_tensor(f"{prefix}{name}.weight", back)
    file.add_tensor("output_norm.weight", np.ones(DIM, dtype=np.float32))
    file.add_tensor("output.weight", output)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
