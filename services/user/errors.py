"""What the user service refuses, and how it says so."""

from __future__ import annotations

from services.kit.problems import Problem, bad_request, conflict, unauthorized


def login_taken(kind: str) -> Problem:
    """409: somebody has this username, e-mail or phone already."""
    return Problem(
        409,
        "login-taken",
        f"This {kind} belongs to another account. Choose another, or log in.",
        errors=[{"pointer": f"/{kind}", "detail": "is taken"}],
    )


def unusable_login(kind: str, message: str) -> Problem:
    """400: this cannot be a username, e-mail or phone."""
    return bad_request(message, code="invalid-request", errors=[{"pointer": f"/{kind}", "detail": message}])


def wrong_credentials() -> Problem:
    """401: the same answer for an unknown login and a wrong password."""
    return unauthorized("用户名或密码错误 (unknown login or wrong password)")


def too_many_attempts(wait_s: int) -> Problem:
    """429: too many wrong passwords for this login or account."""
    return Problem(
        429,
        "too-many-attempts",
        f"Too many wrong passwords. Try again in {wait_s} seconds.",
        headers={"Retry-After": str(wait_s)},
    )


def session_ended() -> Problem:
    """401: the refresh token is unknown, used or old."""
    return unauthorized("This session has ended. Log in again at POST /api/users/login.")


def illegal_status(detail: str) -> Problem:
    """409: the account's state does not allow it."""
    return conflict("illegal-status", detail)
