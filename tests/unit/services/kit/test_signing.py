"""Signed statements are believed only from their maker, for their kind, until their end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from coordinator.protocol.tokens import SigningKey, read_key_set
from services.kit.signing import BadSignature, Expired, Signer, Verifier

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOARDING = SigningKey.generate("boarding")
ORDER = SigningKey.generate("order")
KEYS = read_key_set(json.dumps({"keys": [BOARDING.public_jwk(), ORDER.public_jwk()]}))


def verifier(at: datetime = NOW) -> Verifier:
    return Verifier(KEYS, lambda: at)


def signer(issuer: str = "boarding", key: SigningKey = BOARDING) -> Signer:
    return Signer(issuer, key, lambda: NOW)


def test_a_genuine_statement_is_believed() -> None:
    """Claims come back as they were signed."""
    token = signer().sign("quote", {"total_cents": 36_000}, ttl_s=600)
    assert verifier().verify("quote", "boarding", token)["total_cents"] == 36_000


def test_a_statement_ends() -> None:
    """Past its end a statement raises Expired."""
    token = signer().sign("quote", {}, ttl_s=600)
    with pytest.raises(Expired):
        verifier(NOW + timedelta(seconds=600)).verify("quote", "boarding", token)


def test_one_kind_is_never_taken_for_another() -> None:
    """A quote is no access token."""
    token = signer().sign("quote", {}, ttl_s=600)
    with pytest.raises(BadSignature, match="no access"):
        verifier().verify("access", "boarding", token)


def test_no_service_speaks_as_another() -> None:
    """A statement that names boarding and is signed by order is refused, whichever key id it carries."""
    forged = signer("boarding", ORDER).sign("quote", {}, ttl_s=600)
    with pytest.raises(BadSignature):
        verifier().verify("quote", "boarding", forged)
    claims = {"iss": "boarding", "typ": "quote", "exp": int(NOW.timestamp()) + 600}
    relabelled = jwt.encode(claims, ORDER.key, algorithm="EdDSA", headers={"kid": "boarding"})
    with pytest.raises(BadSignature):
        verifier().verify("quote", "boarding", relabelled)


def test_an_unsigned_statement_is_refused() -> None:
    """The algorithm none, and HMAC with the public key as its secret, are refused."""
    claims = {"iss": "boarding", "typ": "quote", "exp": int(NOW.timestamp()) + 600}
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": "boarding"})
    with pytest.raises(BadSignature):
        verifier().verify("quote", "boarding", unsigned)
    secret = BOARDING.public_jwk()["x"] * 2
    confused = jwt.encode(claims, secret, algorithm="HS256", headers={"kid": "boarding"})
    with pytest.raises(BadSignature):
        verifier().verify("quote", "boarding", confused)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ey.ey.ey"])
def test_noise_is_refused(token: str) -> None:
    """What is no token at all is refused like a forged one."""
    with pytest.raises(BadSignature):
        verifier().verify("quote", "boarding", token)
