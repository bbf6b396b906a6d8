"""The admin API over HTTP, driven by schemathesis from its own description: positive, negative and stateful examples."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from asgi_llm_gateway.admin.openapi import document
from asgi_llm_gateway.admin.routes import OPERATIONS

from ..admin.conftest import ADMIN_KEY, Office
from ..servers import serving
from . import examples

pytestmark = pytest.mark.real
schemathesis: Any = pytest.importorskip("schemathesis", reason="comes with the extra 'real'")
api: Any = schemathesis.openapi.from_dict(document(OPERATIONS))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A real server with a tenant, a key and a booked call."""
    office = Office()

    async def prepare() -> None:
        await office.team(budget_usd=5)
        await office.key()
        await office.settle(cost=1000)

    asyncio.run(prepare())
    with serving(office.app) as found:
        yield found


@api.auth()
class Key:
    """Shows the admin key; schemathesis leaves it out to see what happens then."""

    def get(self, case: Any, context: Any) -> str:
        """The key."""
        return ADMIN_KEY

    def set(self, case: Any, data: str, context: Any) -> None:
        """Put it on a request."""
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


@api.parametrize()  # type: ignore[untyped-decorator]
@examples(100)
def test_the_description_holds_over_http(case: Any, url: str) -> None:
    """No 5xx, no status, header or body that it does not name; what it forbids is refused, and no key is no entry."""
    checks = schemathesis.checks
    # A description can't say all that is asked of a value: "at most nine decimals", "a tenant that is there".
    beyond = [checks.positive_data_acceptance]
    answer = case.call(base_url=url)
    if answer.status_code == 413:  # which is a refusal, too
        beyond.append(checks.negative_data_rejection)
    case.validate_response(answer, excluded_checks=beyond)
