"""What can go wrong in the client beyond the errors of the protocol.

CoordinatorError
├── CallNotSent                nobody took the call: nothing was done
├── CallOutcomeUnknown         a call to a participant ended without an answer: it may have done its work or not
└── CallFailed                 a participant answered with a status that was not expected
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.protocol.errors import CoordinatorError


class CallNotSent(CoordinatorError):
    """No connection to the participant could be made in time. Nothing was done there; the transaction may go on."""


class CallOutcomeUnknown(CoordinatorError):
    """A call timed out or was cut after it may have been sent. Its transaction can only roll back."""


class CallFailed(CoordinatorError):
    """The answer's `status` was not among the expected ones. `body` is the raw answer, often a problem (RFC 9457)."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body
