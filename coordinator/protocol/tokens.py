"""Service tokens: who is speaking, signed, for a short time (RFC 7519 with EdDSA over Ed25519, RFC 8037).

Every party holds its own private key; everybody holds the public ones. A token says its maker (`iss`), its
reader (`aud`) and its end (`exp`); its `kid` picks the key, so that keys can be rotated by adding one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordinator.protocol.errors import CallerRefused

TOKEN_TTL_S = 300
"""Life of a service token. Short: a leaked one is worth little."""

TOKEN_RENEW_S = 60
"""A cached token is replaced when it has less than this left."""

VERIFIED_MAX = 1024
"""Verified tokens that a verifier remembers, so that a token is checked once, not once a call."""


@dataclass(frozen=True)
class SigningKey:
    """A private key with its id, as read from a private JWK (kty OKP, crv Ed25519)."""

    kid: str
    key: Ed25519PrivateKey

    @classmethod
    def from_jwk(cls, text: str) -> SigningKey:
        """Reads a private JWK. Raises ValueError when it is not one."""
        data = json.loads(text)
        key = jwt.algorithms.OKPAlgorithm.from_jwk(data)
        if not isinstance(key, Ed25519PrivateKey) or "kid" not in data:
            raise ValueError("not a private Ed25519 JWK with a kid")
        return cls(kid=data["kid"], key=key)

    @classmethod
    def generate(cls, kid: str) -> SigningKey:
        """A fresh key."""
        return cls(kid=kid, key=Ed25519PrivateKey.generate())

    def private_jwk(self) -> str:
        """The key as a private JWK, for a file that only its owner may read."""
        return json.dumps({**jwt.algorithms.OKPAlgorithm.to_jwk(self.key, as_dict=True), "kid": self.kid})

    def public_jwk(self) -> dict[str, str]:
        """The public half, for the key set that everybody reads."""
        public = jwt.algorithms.OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "use": "sig", "alg": "EdDSA"}


def read_key_set(text: str) -> dict[str, Ed25519PublicKey]:
    """The public keys of a JWK set by kid. The kid is `owner` or `owner/number`: a key speaks for its owner only."""
    keys: dict[str, Ed25519PublicKey] = {}
    for data in json.loads(text)["keys"]:
        key = jwt.algorithms.OKPAlgorithm.from_jwk(data)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"key {data.get('kid')!r} is not a public Ed25519 key")
        keys[data["kid"]] = key
    return keys


@dataclass
class TokenMaker:
    """Makes tokens as `issuer`, one per reader, renewed before they end."""

    issuer: str
    signing_key: SigningKey
    clock: Callable[[], float] = time.time
    _cache: dict[str, tuple[float, str]] = field(default_factory=dict, repr=False)

    def token_for(self, audience: str) -> str:
        """A token that `audience` will accept for at least TOKEN_RENEW_S more."""
        now = self.clock()
        cached = self._cache.get(audience)
        if cached is not None and cached[0] - now > TOKEN_RENEW_S:
            return cached[1]
        ends = now + TOKEN_TTL_S
        claims = {"iss": self.issuer, "aud": audience, "iat": int(now), "exp": int(ends), "typ": "service"}
        token = jwt.encode(claims, self.signing_key.key, algorithm="EdDSA", headers={"kid": self.signing_key.kid})
        self._cache[audience] = (ends, token)
        return token


@dataclass
class TokenVerifier:
    """Checks tokens addressed to `audience` against known public keys."""

    audience: str
    keys: Mapping[str, Ed25519PublicKey]
    clock: Callable[[], float] = time.time
    _verified: dict[str, tuple[float, str]] = field(default_factory=dict, repr=False)

    def caller_of(self, token: str) -> str:
        """The issuer of a valid token. Raises CallerRefused for any other."""
        now = self.clock()
        known = self._verified.get(token)
        if known is not None and known[0] > now:
            return known[1]
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            key = self.keys[kid]
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=self.audience,
                # The end is checked by our own clock; when it was made is its maker's affair, whose clock may be ahead.
                options={"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_iat": False},
            )
            ends = float(claims["exp"])
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise CallerRefused(f"the service token is not valid here: {type(error).__name__}") from error
        if claims.get("typ") != "service" or kid.split("/")[0] != claims["iss"]:
            raise CallerRefused("the service token is not signed by the service that it names")
        if not now < ends:
            raise CallerRefused("the service token has expired")
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        self._verified[token] = (ends, claims["iss"])
        return str(claims["iss"])
