"""A gateway behind a policy: ``OPA_URL=http://127.0.0.1:8181 uvicorn examples.policy.app:app``.

OPA serves the rules next to this file: ``opa run --server examples/policy/gateway.rego``. Without OPA_URL, a function of the
same kind stands in for it.
"""

import os
from typing import Any

from asgi_llm_gateway import ProxyApp, TenantMiddleware
from asgi_llm_gateway.middleware.policy import PolicyMiddleware


def decide(question: dict[str, Any]) -> dict[str, Any]:
    """The input of a policy in, its document out: allow, reason, obligations."""
    if question["kind"] == "authenticated" or question["model"] == "echo":
        return {"allow": True, "obligations": {"max_tokens": 256}}
    return {"allow": False, "reason": "only echo is allowed here"}


app = TenantMiddleware(PolicyMiddleware(ProxyApp(), decide=None if os.environ.get("OPA_URL") else decide))
