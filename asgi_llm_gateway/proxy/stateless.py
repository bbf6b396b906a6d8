"""The parts of the Responses API that ask for what was stored: here nothing is."""

from __future__ import annotations

from ..errors import GatewayError, NotFound

_KEEP = "Responses are not stored here ('store' is false): keep the answer you got, and send earlier items again in 'input'."


def responses_route(path: str, method: str) -> GatewayError:
    """What a call below ``/v1/responses/`` is answered: 404, and what to do instead.

    Args:
        path: The path, from ``/v1`` on.
        method: The HTTP method, for the message.

    Source: OpenAI API reference, "Responses" (get, delete, cancel, list input items, count input tokens, compact), autumn 2026.
    """
    name, _, rest = path.removeprefix("/v1/responses").strip("/").partition("/")
    if name == "input_tokens" and not rest:
        return NotFound("Input tokens can't be counted here: /v1/responses/input_tokens is not served. A response's 'usage' "
                        "has the count.", code="unsupported_endpoint")  # fmt: skip
    if name == "compact" and not rest:
        return NotFound("/v1/responses/compact is not served. Leave out early items of 'input' yourself, or have a model sum "
                        "them up.", code="unsupported_endpoint")  # fmt: skip
    if rest in ("", "cancel", "input_items"):
        return NotFound(f"No response '{_plain(name)}' was found. {_KEEP}", code="response_not_found")
    return NotFound(f"No such path: {method[:16]} /v1/responses/{_plain(name)}/{_plain(rest)}. {_KEEP}")


def _plain(text: str) -> str:
    """A part of a path, as it may stand in an error."""
    return "".join(letter for letter in text[:64] if letter.isprintable())
