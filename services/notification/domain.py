"""E-mails as RFC 5322 has them, and who wants which. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from uuid import UUID

KINDS = (
    "order_created",
    "payment_completed",
    "order_confirmed",
    "order_rejected",
    "order_cancelled",
    "order_expired",
    "order_completed",
    "order_disputed",
    "check_in",
    "care_log",
    "review_published",
    "account_approved",
    "account_rejected",
    "account_suspended",
    "account_restored",
    "provider_approved",
    "listing_approved",
    "listing_rejected",
    "listing_taken_down",
    "listing_restored",
    "notification",
)
"""What somebody can be told. The seed's three names are among them."""

NUMBER = re.compile(r"[0-9]{1,18}")
"""What can be a notification's number: every number of so many digits fits a bigint."""


def number_of(last_event_id: str | None) -> int | None:
    """The number that a reader of a live stream has seen last; None for nothing, and for what is no number of ours."""
    return int(last_event_id) if last_event_id and NUMBER.fullmatch(last_event_id) else None


def wants_email(preferences: Mapping[str, bool], kind: str) -> bool:
    """Whether somebody wants this kind by e-mail: yes, unless switched off."""
    return preferences.get(kind, True)


def email(*, sender: str, to: str, title: str, text: str, message_id: UUID, at: datetime) -> EmailMessage:
    """A plain e-mail. The message's id is the notification's, so that a repeated one is recognised."""
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = to
    mail["Subject"] = " ".join(title.split())
    mail["Date"] = format_datetime(at)
    mail["Message-ID"] = f"<{message_id}@pawstay.example>"
    mail.set_content(text)
    return mail
