"""Exact token counts of OpenAI's vocabularies, by whichever tokenizer is installed. Never from the network.

In this order: ``quicktok-v1``, ``bpe-openai``, ``tiktoken``; the three give equal counts. A vocabulary takes up to 0.5 s and
50 to 100 MB to load, so that only ``load`` does it, in a thread at the start; ``count`` knows what is loaded, or nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal

Vocabulary = Literal["o200k_base", "cl100k_base"]

VOCABULARIES: tuple[Vocabulary, ...] = ("o200k_base", "cl100k_base")
"""The vocabularies that are known here."""

# Source: tiktoken 0.14, ``tiktoken/model.py``. A name goes on with "-", ".", or not at all: gpt-4o is no gpt-4.
_MODELS: tuple[tuple[re.Pattern[str], Vocabulary], ...] = (
    (re.compile(r"(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|o1|o3|o4)(-|$)|gpt-5([.-]|$)"), "o200k_base"),
    (re.compile(r"(gpt-4|gpt-3\.5|gpt-35|text-embedding-3|text-embedding-ada-002)(-|$)"), "cl100k_base"),
)
# Who serves OpenAI's models under a name with the vendor in front; and ``ft:`` is a fine-tuned one.
_FRONT = re.compile(r"(openai/|azure/)?(ft:)?")

# The name under which tiktoken keeps a vocabulary, and the SHA-256 of what must be in it. Source: tiktoken 0.14,
# ``tiktoken/load.py`` (the SHA-1 of the file's address) and ``tiktoken_ext/openai_public.py``.
_KEPT: dict[Vocabulary, tuple[str, str]] = {
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}

Counter = Callable[[str], int]

_loaded: dict[Vocabulary, Counter] = {}
_loaded_by: dict[str, str] = {}


def vocabulary_of(model: str) -> Vocabulary | None:
    """The vocabulary of one of OpenAI's own models; ``None`` for any other: nobody else's can be told by its name."""
    name = model.lower()
    front = _FRONT.match(name)
    name = name[front.end() :] if front is not None else name
    for pattern, vocabulary in _MODELS:
        if pattern.match(name) is not None:
            return vocabulary
    return None


def load() -> str | None:
    """Load the vocabularies, and say whose tokenizer counts: ``None`` where none is installed.

    Blocks for up to a second: call it in a thread at the start. A second call does nothing.
    """
    if "package" in _loaded_by:
        return _loaded_by["package"]
    for package, counters in (("quicktok", _quicktok), ("bpe_openai", _bpe_openai), ("tiktoken", _tiktoken)):
        try:
            loaded = {name: counters(name) for name in VOCABULARIES}
        except (ImportError, OSError, RuntimeError, ValueError, AttributeError):  # not installed, or not as we know it
            continue
        _loaded.update(loaded)
        _loaded_by["package"] = package
        return package
    return None


def count(text: str, model: str) -> int | None:
    """The tokens of a text, exactly; ``None`` for another vendor's model, or where ``load`` was not called.

    Takes 20 to 100 us per 1,000 tokens with ``quicktok``, up to 500 with the others: above 16 KiB do it in a thread.
    """
    vocabulary = vocabulary_of(model)
    counter = _loaded.get(vocabulary) if vocabulary is not None else None
    return None if counter is None else counter(text)


def counter_of(model: str) -> Counter | None:
    """What counts a model's texts, for those who have many; ``None`` as for ``count``."""
    vocabulary = vocabulary_of(model)
    return _loaded.get(vocabulary) if vocabulary is not None else None


def _quicktok(name: Vocabulary) -> Counter:
    # By its class: the package's own function also looks into a folder that its user may have filled.
    package = import_module("quicktok")
    counter: Counter = package.Tokenizer(name, "").count
    return counter


def _bpe_openai(name: Vocabulary) -> Counter:
    encode = import_module("bpe_openai").get_encoding(name).encode_ordinary
    return lambda text: len(encode(text))


def _tiktoken(name: Vocabulary) -> Counter:
    package = import_module("tiktoken")
    key, digest = _KEPT[name]
    # These variables are tiktoken's, not ours: it is asked only for what it has already.
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        raise ValueError("tiktoken was told to keep nothing")
    kept = Path(folder or Path(tempfile.gettempdir(), "data-gym-cache"), key)
    if hashlib.sha256(kept.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{name}: not the vocabulary")  # tiktoken would throw the file away and fetch another one
    encode = package.get_encoding(name).encode_ordinary
    return lambda text: len(encode(text))


__all__ = ["VOCABULARIES", "Counter", "Vocabulary", "count", "counter_of", "load", "vocabulary_of"]
