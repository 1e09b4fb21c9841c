"""What a reader says of the last stream, and e-mails to every address that an account may have."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.notification.domain import email, number_of


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("42", 42),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("-1", None),
        ("\u00b2", None),
        ("4 2", None),
        ("\u0664\u0662", None),
    ],
)
def test_only_what_can_be_a_number_of_ours_is_one(said: str | None, number: int | None) -> None:
    """What `isdigit` would take besides, superscripts and other scripts' digits, is none."""
    assert number_of(said) == number


@pytest.mark.parametrize("to", ["anna@example.org", "o'hara+pets=2@mail.example.org", "安娜@例子.公司"])
def test_an_e_mail_goes_to_one_reader(to: str) -> None:
    """However the address looks, the header names it alone."""
    at = datetime(2026, 11, 25, tzinfo=UTC)
    mail = email(sender="x@example.org", to=to, title="a\nb", text="好", message_id=UUID(int=1), at=at)
    assert mail.as_bytes()
    assert [address.addr_spec for address in mail["To"].addresses] == [to]
