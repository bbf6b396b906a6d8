"""A tenant with all its fields, a key, and a store for a URL: what the tests of TenantStore share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from asgi_llm_gateway import settings
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.stores.shared import store_url
from asgi_llm_gateway.stores.sql import SQLTenants

FULL = Tenant(
    "team",
    "Team \N{GREEK SMALL LETTER ALPHA} 'x'",
    2**62,
    True,
    ("gpt-4o", "echo"),
    {"a": [1, None]},
    12.5,
    budget_tokens=2**61,
    period="12h",
    soft_limit=2**60,
    max_output_tokens=1,
    rate_requests=2,
    rate_tokens=2**40,
    concurrency=3,
)


def key_for(tenant: str = "team", secret: str = "gw-a-secret-of-the-team", **more: Any) -> ApiKey:
    """A key with all its fields."""
    return replace(new_key(tenant, secret=secret)[0], **more)


def sql_store(url: str) -> SQLTenants:
    """A store for a URL as users write it; its tables must be there."""
    return SQLTenants(store_url(settings.Settings.load({"DATABASE_URL": url})))
