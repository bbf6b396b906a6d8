"""STUN and TURN servers, and credentials that end by themselves."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest

from asgi_llm_gateway.errors import SettingsError
from asgi_llm_gateway.realtime.ice import IceServers
from asgi_llm_gateway.settings import Settings

from .stage import stage

SECRET = "a-secret-that-coturn-knows"
TURN = IceServers(("stun:stun.example:3478",), ("turn:turn.example:3478", "turns:turn.example:5349"), SECRET, ttl=600)


async def test_a_caller_is_told_the_servers_as_a_browser_takes_them() -> None:
    """RTCIceServer objects; the password is HMAC-SHA1 of ``expiry:tenant``, as coturn checks it."""
    async with stage(ice=TURN, clock=lambda: 1000.9) as st:
        answer = await st.http("GET", "/v1/realtime/ice")
        told = answer.json()
        stun, turn = told["iceServers"]
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert stun == {"urls": ["stun:stun.example:3478"]}
        assert turn["urls"] == ["turn:turn.example:3478", "turns:turn.example:5349"]
        assert (turn["username"], told["expires_at"], told["ttl"]) == ("1600:a", 1600, 600)
        wanted = hmac.new(SECRET.encode(), b"1600:a", hashlib.sha1).digest()
        assert base64.b64decode(turn["credential"]) == wanted
        assert SECRET not in answer.body.decode()


async def test_it_is_for_callers_only() -> None:
    """Credentials are money: somebody else's traffic would go through the relay."""
    async with stage(ice=TURN) as st:
        assert (await st.http("GET", "/v1/realtime/ice", headers=[])).status == 401
        assert (await st.http("POST", "/v1/realtime/ice", {})).headers["allow"] == "GET"


async def test_without_servers_the_list_is_empty() -> None:
    """Host candidates may do."""
    async with stage() as st:
        assert (await st.http("GET", "/v1/realtime/ice")).json()["iceServers"] == []


def test_the_settings_name_the_servers() -> None:
    """Lists with commas; the secret is in no repr."""
    found = IceServers.of(Settings.load({
        "STUN_URLS": "stun:a.example", "TURN_URLS": "turn:b.example, turn:c.example?transport=tcp", "TURN_SECRET": SECRET,
        "TURN_TTL_SECONDS": "120",
    }))  # fmt: skip
    assert found == IceServers(("stun:a.example",), ("turn:b.example", "turn:c.example?transport=tcp"), SECRET, 120)
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"turn": ("turn:b.example",)}, "TURN_SECRET"),
        ({"turn": ("stun:b.example",), "secret": SECRET}, "TURN_URLS"),
        ({"turn": ("turn:",), "secret": SECRET}, "TURN_URLS"),
        ({"turn": ("turn://b.example",), "secret": SECRET}, "TURN_URLS"),
        ({"turn": ("turn:user:pass@b.example",), "secret": SECRET}, "TURN_URLS"),
        ({"stun": ("https://b.example",)}, "STUN_URLS"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], named: str) -> None:
    """With what is allowed."""
    with pytest.raises(SettingsError, match=named):
        IceServers(**given)


async def test_there_is_no_webrtc_yet() -> None:
    """The paths are ours: they reach no app further in, and name the lane that there is."""
    async with stage() as st:
        for method, path in (("POST", "/v1/realtime/calls"), ("DELETE", "/v1/realtime/calls/rtc_1")):
            answer = await st.http(method, path, {})
            assert (answer.status, answer.error["code"]) == (404, "webrtc_disabled")
