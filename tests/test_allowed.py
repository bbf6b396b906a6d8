"""Which models a caller may use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.allowed import may_use
from asgi_llm_gateway.records import ApiKey, Identity, Tenant


@given(
    st.none() | st.lists(st.sampled_from("abc")), st.none() | st.lists(st.sampled_from("abc")), st.sampled_from("abc")
)
def test_a_name_is_allowed_if_every_list_that_is_there_has_it(
    tenants: list[str] | None, keys: list[str] | None, name: str
) -> None:
    """An empty list allows nothing."""
    key = ApiKey("k", "t", "0" * 64, allowed_models=None if keys is None else tuple(keys))
    tenant = Tenant("t", allowed_models=None if tenants is None else tuple(tenants))
    expected = (tenants is None or name in tenants) and (keys is None or name in keys)
    assert may_use(Identity(tenant, key), name) is expected
