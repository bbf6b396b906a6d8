"""``/v1/models``: what the caller may use."""

from __future__ import annotations

from typing import Any

import orjson

from ..errors import NotFound
from ..records import Identity
from .routing import Router


def _allowed(identity: Identity, name: str) -> bool:
    lists = (identity.tenant.allowed_models, identity.key.allowed_models if identity.key is not None else None)
    return all(names is None or name in names for names in lists)


def _entry(router: Router, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": router.resolve(name)[0].target.provider}


def model_list(router: Router, identity: Identity) -> bytes:
    """The body of ``GET /v1/models``."""
    data = [_entry(router, name) for name in router.models if _allowed(identity, name)]
    return orjson.dumps({"object": "list", "data": data})


def one_model(router: Router, identity: Identity, name: str) -> bytes:
    """The body of ``GET /v1/models/{id}``. Raises NotFound."""
    if not _allowed(identity, name):
        raise NotFound(f"The model '{name}' does not exist.", code="model_not_found", param="model")
    return orjson.dumps(_entry(router, name))
