"""Service tokens: who is speaking, to whom, and until when."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from coordinator.protocol.errors import CallerRefused
from coordinator.protocol.tokens import TOKEN_TTL_S, SigningKey, TokenMaker, TokenVerifier, read_key_set

ORDER = SigningKey.generate("order")
ORDER_NEXT = SigningKey.generate("order/2")
CAPACITY = SigningKey.generate("capacity")
KEYS = read_key_set(json.dumps({"keys": [k.public_jwk() for k in (ORDER, ORDER_NEXT, CAPACITY)]}))


def verifier(audience: str = "coordinator", now: float = 1000.0) -> TokenVerifier:
    return TokenVerifier(audience, KEYS, lambda: now)


def token(key: SigningKey = ORDER, issuer: str = "order", audience: str = "coordinator", now: float = 1000.0) -> str:
    return TokenMaker(issuer, key, lambda: now).token_for(audience)


def test_a_token_says_who_is_speaking() -> None:
    """The issuer comes back, from the first key and from its successor."""
    assert verifier().caller_of(token()) == "order"
    assert verifier().caller_of(token(ORDER_NEXT)) == "order"


def test_a_key_speaks_for_its_owner_only() -> None:
    """A token that names another service than its key's owner is refused."""
    with pytest.raises(CallerRefused):
        verifier().caller_of(token(CAPACITY, issuer="order"))


def test_a_token_is_for_one_reader() -> None:
    """A token made for one service is refused by another."""
    with pytest.raises(CallerRefused):
        verifier("payment").caller_of(token())


def test_a_token_ends_also_where_it_was_verified_before() -> None:
    """The verifier's memory does not outlive the token."""
    now = 1000.0
    checking = TokenVerifier("coordinator", KEYS, lambda: now)
    made = token()
    assert checking.caller_of(made) == "order"
    now += TOKEN_TTL_S + 1
    with pytest.raises(CallerRefused, match="expired"):
        checking.caller_of(made)


def test_a_maker_renews_its_token_before_it_ends() -> None:
    """The cached token is replaced in its last minute, and not before."""
    now = 1000.0
    maker = TokenMaker("order", ORDER, lambda: now)
    first = maker.token_for("coordinator")
    now += TOKEN_TTL_S - 61
    assert maker.token_for("coordinator") == first
    now += 2
    assert maker.token_for("coordinator") != first


def test_an_access_token_is_no_service_token() -> None:
    """A statement of another kind, signed by a known key for this reader, is refused."""
    claims = {"iss": "order", "aud": "coordinator", "exp": 2000, "typ": "access"}
    other = jwt.encode(claims, ORDER.key, algorithm="EdDSA", headers={"kid": "order"})
    with pytest.raises(CallerRefused):
        verifier().caller_of(other)


def test_a_maker_whose_clock_is_ahead_is_heard() -> None:
    """Hosts' clocks differ: only the end of a token counts, by the reader's clock."""
    assert TokenVerifier("coordinator", KEYS).caller_of(token(now=time.time() + 30)) == "order"


@pytest.mark.parametrize("ends", ["soon", [2000], 10**400, None, float("nan")])
def test_an_end_that_is_no_instant_is_refused(ends: object) -> None:
    """Whatever a known key has signed."""
    claims = {"iss": "order", "aud": "coordinator", "exp": ends, "typ": "service"}
    other = jwt.encode(claims, ORDER.key, algorithm="EdDSA", headers={"kid": "order"})
    with pytest.raises(CallerRefused):
        verifier().caller_of(other)


@pytest.mark.parametrize("noise", ["", "x", "a.b.c"])
def test_noise_is_refused(noise: str) -> None:
    """What is no token is refused."""
    with pytest.raises(CallerRefused):
        verifier().caller_of(noise)
