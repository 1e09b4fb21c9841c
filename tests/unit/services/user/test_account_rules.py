"""What may be a login, and what a refresh token says."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.kit.roles import AccountStatus
from services.user.domain import (
    REFRESH_SECRET_BYTES,
    Login,
    LoginKind,
    decide,
    guess_login,
    normalise,
    read_refresh_token,
    refresh_token,
    token_hash,
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (" Anna ", Login(LoginKind.USERNAME, "anna")),
        ("Anna@Example.ORG", Login(LoginKind.EMAIL, "anna@example.org")),
        ("o'hara+pets=2@mail.example.org", Login(LoginKind.EMAIL, "o'hara+pets=2@mail.example.org")),
        ("安娜@例子.公司", Login(LoginKind.EMAIL, "安娜@例子.公司")),
        ("+86 138-0013 8000", Login(LoginKind.PHONE, "+8613800138000")),
        ("13800138000", Login(LoginKind.PHONE, "13800138000")),
    ],
)
def test_what_is_typed_is_known_by_its_form(typed: str, meant: Login) -> None:
    """No two kinds can be taken for one another, so one field serves all three."""
    assert guess_login(typed) == meant


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (LoginKind.USERNAME, "138001"),
        (LoginKind.USERNAME, "a@b.cd"),
        (LoginKind.USERNAME, "ab"),
        (LoginKind.EMAIL, "anna@example"),
        (LoginKind.EMAIL, "an na@example.org"),
        (LoginKind.EMAIL, "anna,bob@example.org"),
        (LoginKind.EMAIL, "friends:anna@example.org"),
        (LoginKind.EMAIL, "<anna@example.org"),
        (LoginKind.EMAIL, "anna@[example.org"),
        (LoginKind.EMAIL, "anna\x00@example.org"),
        (LoginKind.EMAIL, "=?utf-8?q?bob=40example.net?=@example.org"),
        (LoginKind.PHONE, "12345"),
        (LoginKind.PHONE, "0049x1234567"),
    ],
)
def test_what_would_be_taken_for_another_kind_or_for_nothing_is_refused(kind: LoginKind, raw: str) -> None:
    """A username looks neither like a phone number nor like an e-mail address."""
    with pytest.raises(ValueError, match="usable"):
        normalise(kind, raw)


def test_a_refresh_token_names_its_user_and_is_stored_as_a_hash() -> None:
    """The token leads to the user's shard; what is stored does not lead to the token."""
    user_id = UUID(int=5)
    token = refresh_token(user_id, b"s" * REFRESH_SECRET_BYTES)
    found, stored = read_refresh_token(token)
    assert (found, stored) == (user_id, token_hash(token))
    assert token.encode() not in stored


@pytest.mark.parametrize("token", ["", "x", "x" * 63, "ä" * 64, "=" * 64])
def test_what_is_no_refresh_token_is_a_value_error(token: str) -> None:
    """Whatever comes over the wire, nothing else is raised."""
    with pytest.raises(ValueError, match="not a refresh token"):
        read_refresh_token(token)


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        ("approve", AccountStatus.PENDING, AccountStatus.ACTIVE),
        ("approve", AccountStatus.ACTIVE, AccountStatus.ACTIVE),
        ("reject", AccountStatus.PENDING, AccountStatus.SUSPENDED),
        ("suspend", AccountStatus.PENDING, AccountStatus.SUSPENDED),
        ("suspend", AccountStatus.ACTIVE, AccountStatus.SUSPENDED),
        ("restore", AccountStatus.SUSPENDED, AccountStatus.ACTIVE),
    ],
)
def test_a_decision_leads_from_one_status_to_the_next(verb: str, before: AccountStatus, after: AccountStatus) -> None:
    """An approval may come twice; a rejected account waits no longer."""
    assert decide(before, verb) is after


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("approve", AccountStatus.SUSPENDED),
        ("reject", AccountStatus.ACTIVE),
        ("reject", AccountStatus.SUSPENDED),
        ("suspend", AccountStatus.SUSPENDED),
        ("restore", AccountStatus.PENDING),
        ("restore", AccountStatus.ACTIVE),
    ],
)
def test_a_decision_that_the_status_does_not_allow_says_for_whom_it_is(verb: str, status: AccountStatus) -> None:
    """A suspension is lifted by name and never in passing; a restoration is no way around an approval."""
    with pytest.raises(ValueError, match=f"'{verb}' is for an account that is .*{status.name.lower()}"):
        decide(status, verb)
