"""Keys and passwords of one embedded system, made once, each readable by its owner only."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from coordinator.protocol.tokens import SigningKey, TokenMaker
from deploy.embedded.layout import write_private

OPERATOR = "operator"
COORDINATOR = "coordinator"
PASSWORD_BYTES = 24
ADMIN_PASSWORD_BYTES = 12


@dataclass(frozen=True)
class Secrets:
    """What lies in the folder of secrets."""

    folder: Path

    def ensure(self, services: Iterable[str], roles: Iterable[str]) -> None:
        """Makes what is missing: a signing key for each service, the coordinator and the operator, the public key set,
        a password for each database role and for Valkey, and the administrator's password. Keeps what is there.
        """
        public = []
        for owner in (*services, COORDINATOR, OPERATOR):
            path = self.key_file(owner)
            _once(path, lambda owner=owner: SigningKey.generate(owner).private_jwk())  # type: ignore[misc]
            public.append(SigningKey.from_jwk(path.read_text()).public_jwk())
        write_private(self.keys_file, json.dumps({"keys": public}, indent=1))
        for role in roles:
            _once(self._password_file(role), lambda: secrets.token_urlsafe(PASSWORD_BYTES))
        _once(self.admin_password_file, lambda: secrets.token_urlsafe(ADMIN_PASSWORD_BYTES))

    def key_file(self, owner: str) -> Path:
        """The private JWK of one service, of the coordinator or of the operator."""
        return self.folder / f"{owner}.jwk"

    @property
    def keys_file(self) -> Path:
        """The JWK set with everybody's public key."""
        return self.folder / "keys.json"

    @property
    def admin_password_file(self) -> Path:
        """The password of the first administrator."""
        return self.folder / "admin-password"

    def password(self, role: str) -> str:
        """The password of a database role, or of Valkey (`valkey`)."""
        return self._password_file(role).read_text().strip()

    def _password_file(self, role: str) -> Path:
        return self.folder / f"{role}.password"

    def operator_token(self, audience: str) -> str:
        """A short-lived token with which the operator speaks to `audience`."""
        key = SigningKey.from_jwk(self.key_file(OPERATOR).read_text())
        return TokenMaker(OPERATOR, key).token_for(audience)


def _once(path: Path, make: Callable[[], str]) -> None:
    if not path.exists():
        write_private(path, make())
