"""How a person's command reaches the coordinator: the one of the running system, or the one that settings name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coordinator.protocol.tokens import SigningKey, TokenMaker
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.secrets import COORDINATOR, OPERATOR

URL_VARIABLE = "PAWSTAY_COORDINATOR_URL"
KEY_VARIABLE = "PAWSTAY_OPERATOR_KEY_FILE"
CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CoordinatorCalls:
    """Calls of one coordinator with an operator's token. `hint` says where to look when it does not answer."""

    url: str
    token: str = field(repr=False)
    hint: str
    timeout_s: float = CALL_TIMEOUT_S

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The JSON answer. Raises RuntimeProblem with the coordinator's own words."""
        import aiohttp

        headers = {"Authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, f"{self.url}{path}", headers=headers, json=body) as answer,
            ):
                found = await answer.json(content_type=None)
                if answer.status >= 400:
                    reason = found.get("detail", found) if isinstance(found, dict) else found
                    raise RuntimeProblem(f"the coordinator answers {answer.status}: {reason}", ExitCode.FAILED)
                return found
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RuntimeProblem(
                f"the coordinator does not answer ({type(error).__name__}): {self.hint}.", ExitCode.FAILED
            ) from error


def calls_by_settings(environ: Mapping[str, str] = os.environ) -> CoordinatorCalls | None:
    """Calls of the coordinator that PAWSTAY_COORDINATOR_URL names, or None where it names none.

    PAWSTAY_OPERATOR_KEY_FILE leads to the operator's private key, a JWK. Raises RuntimeProblem for wrong settings.
    """
    url = environ.get(URL_VARIABLE)
    if not url:
        return None
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise RuntimeProblem(f"{URL_VARIABLE} is {url!r}, which is no http or https URL.", ExitCode.SETTING_WRONG)
    key_file = environ.get(KEY_VARIABLE)
    if not key_file:
        raise RuntimeProblem(
            f"{KEY_VARIABLE} is not set: it leads to the operator's key for {url}.", ExitCode.SETTING_WRONG
        )
    try:
        key = SigningKey.from_jwk(Path(key_file).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeProblem(f"{KEY_VARIABLE}: {key_file} cannot be used: {error}.", ExitCode.SETTING_WRONG) from error
    token = TokenMaker(OPERATOR, key).token_for(COORDINATOR)
    return CoordinatorCalls(url.rstrip("/"), token, f"look whether it runs at {url}")
