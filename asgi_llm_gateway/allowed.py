"""Which models a caller may use: asked of the one that a client names, and again of one put in its place."""

from __future__ import annotations

from .errors import NotFound
from .records import Identity


def may_use(identity: Identity, model: str) -> bool:
    """Whether a caller may ask for that name: its tenant's list and its key's, where they have one, both hold it."""
    key = identity.key
    lists = (identity.tenant.allowed_models, key.allowed_models if key is not None else None)
    return all(names is None or model in names for names in lists)


def check_model(identity: Identity, model: str) -> None:
    """Refuse a model that the tenant or the key may not use, in the words used for one that does not exist.

    Raises NotFound (404 ``model_not_found``).
    """
    for allowed in (identity.tenant.allowed_models, identity.key.allowed_models if identity.key else None):
        if allowed is not None and model not in allowed:
            listed = ", ".join(sorted(allowed)[:20]) or "none"
            raise NotFound(
                f"The model '{model}' does not exist or you do not have access to it. Yours: {listed}.",
                code="model_not_found",
                param="model",
            )


__all__ = ["check_model", "may_use"]
