"""Obligations: what a policy demands of a call that it allows."""

from __future__ import annotations

import json

from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware

from ..conversation import CHAT, JSON, ask
from . import Stranger
from .policy_parts import always, team


async def test_obligations_are_carried_out() -> None:
    """The body and its length are those of the changed request."""
    app = Stranger()
    due = {"model": "small", "max_tokens": 5, "set": {"store": False}, "remove": ["seed", "absent"]}
    body = {**CHAT, "max_tokens": 50, "seed": 7}
    layer = PolicyMiddleware(app, decide=always({"allow": True, "obligations": due}))
    headers = [JSON, (b"content-length", b"%d" % len(json.dumps(body)))]
    assert (await ask(layer, body, headers=headers)).status == 200
    assert json.loads(app.bodies[0]) == {
        "model": "small", "messages": CHAT["messages"], "max_tokens": 5, "store": False,
    }  # fmt: skip
    assert (b"content-length", b"%d" % len(app.bodies[0])) in app.scopes[0]["headers"]


async def test_an_obligation_that_is_not_understood_refuses() -> None:
    """In either mode: what a permission depends on can't be passed over."""
    app = Stranger()
    for fail in ("closed", "open"):
        due = {"allow": True, "obligations": {"watermark": True}}
        answer = await ask(PolicyMiddleware(app, decide=always(due), fail=fail), CHAT)
        assert (answer.status, answer.error["code"]) == (403, "policy_denied")
    assert app.calls == 0


async def test_an_obligation_that_makes_nonsense_refuses() -> None:
    """What the gateway would not take from a client it does not make either."""
    app = Stranger()
    due = {"allow": True, "obligations": {"set": {"stream_options": {}}}}
    assert (await ask(PolicyMiddleware(app, decide=always(due)), CHAT)).status == 403
    assert app.calls == 0


async def test_a_policy_cannot_lead_to_a_model_that_the_tenant_may_not_use() -> None:
    """The tenant's own list holds for the obliged model too."""
    store, shown = await team("acme", allowed_models=("echo", "small"))
    app = Stranger()
    rules = always({"allow": True, "obligations": {"model": "gpt-4"}})
    answer = await ask(
        TenantMiddleware(PolicyMiddleware(app, decide=rules), store=store), CHAT, headers=(JSON, shown["acme"])
    )
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert app.calls == 0
    rules = always({"allow": True, "obligations": {"model": "small"}})
    answer = await ask(
        TenantMiddleware(PolicyMiddleware(app, decide=rules), store=store), CHAT, headers=(JSON, shown["acme"])
    )
    assert (answer.status, json.loads(app.bodies[0])["model"]) == (200, "small")
