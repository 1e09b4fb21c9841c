"""Signed statements of one service that another can believe: access tokens, quotes (RFC 7519, EdDSA).

A statement names its maker (`iss`), its kind (`typ`) and its end (`exp`). The key id must belong to the maker, so no
service can speak as another, and a kind is never taken for another kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.protocol.tokens import SigningKey
from services.kit.clock import Clock


class BadSignature(ValueError):
    """The statement is forged, of another kind, or past its end."""


class Expired(BadSignature):
    """The statement was genuine and has ended."""


@dataclass(frozen=True)
class Signer:
    """Signs statements as `issuer`."""

    issuer: str
    key: SigningKey
    clock: Clock

    def sign(self, kind: str, claims: Mapping[str, Any], *, ttl_s: int) -> str:
        """A statement of `kind` that holds for `ttl_s` seconds."""
        now = int(self.clock().timestamp())
        body = {**claims, "iss": self.issuer, "typ": kind, "iat": now, "exp": now + ttl_s}
        return jwt.encode(body, self.key.key, algorithm="EdDSA", headers={"kid": self.key.kid})


@dataclass(frozen=True)
class Verifier:
    """Believes statements that are signed by the one that they name."""

    keys: Mapping[str, Ed25519PublicKey]
    clock: Clock

    def verify(self, kind: str, issuer: str, token: str) -> dict[str, Any]:
        """The claims of a genuine statement. Raises Expired or BadSignature."""
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            if kid.split("/")[0] != issuer:
                raise BadSignature(f"not signed by {issuer}")
            claims: dict[str, Any] = jwt.decode(
                token,
                self.keys[kid],
                algorithms=["EdDSA"],
                issuer=issuer,
                options={"require": ["exp", "iss"], "verify_exp": False, "verify_aud": False, "verify_iat": False},
            )
        except (jwt.PyJWTError, KeyError) as error:
            raise BadSignature("the signature does not hold") from error
        if claims.get("typ") != kind:
            raise BadSignature(f"this is no {kind}")
        if claims["exp"] <= self.clock().timestamp():
            raise Expired(f"this {kind} has ended")
        return claims
