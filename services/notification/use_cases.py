"""What the notification service does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.paging import Page, page_of
from services.kit.problems import not_found
from services.kit.runtime import Runtime
from services.notification import clients, domain, errors, repository
from services.notification.config import MAIL_FROM, STREAM_BATCH_MAX, STREAM_MAX_S, STREAM_POLL_S
from services.notification.schemas import Notification, Preferences

log = structlog.get_logger(__name__)


@dataclass
class Notifications:
    """The use cases, over one runtime."""

    runtime: Runtime

    async def notify(
        self, *, message_id: UUID, recipient: UUID, kind: str, title: str, text: str, order_id: UUID | None
    ) -> None:
        """Tells somebody something: stored once, however often it is delivered, and mailed.

        The e-mail is written under the message's id before the row, so a repeat writes the same file again and a crash
        between the two loses neither.
        """
        if await self.runtime.store.read(lambda s: repository.known(s, message_id, recipient)):
            log.info("notification.repeated", recipient=str(recipient))
            return
        await self._mail(message_id, recipient, kind, title, text)

        async def work(session: AsyncSession) -> bool:
            return await repository.add(
                session, id=message_id, recipient=recipient, kind=kind, title=title, text=text, order_id=order_id
            )

        if not await self.runtime.store.local(work):
            log.info("notification.repeated", recipient=str(recipient))

    async def page(self, user_id: UUID, *, unread: bool, cursor: str | None, limit: int) -> Page[Notification]:
        """Somebody's notifications, newest first."""
        after = self.runtime.cursors.decode(cursor, tuple[int])
        rows = await self.runtime.store.read(
            lambda s: repository.page(s, user_id, unread=unread, before=after[0] if after else None, limit=limit + 1)
        )
        return page_of([_shown(row) for row in rows], limit, self.runtime.cursors, lambda n: (n.number,))

    async def unread(self, user_id: UUID) -> int:
        """How many somebody has not read."""
        return await self.runtime.store.read(lambda s: repository.unread_count(s, user_id))

    async def read(self, user_id: UUID, notification_id: UUID) -> None:
        """Marks one as read. 404 when it is nobody's or somebody else's."""
        if not await self.runtime.store.local(lambda s: repository.mark_read(s, user_id, notification_id)):
            raise not_found("notification", notification_id)

    async def read_all(self, user_id: UUID) -> int:
        """Marks all as read; returns how many were not."""
        return await self.runtime.store.local(lambda s: repository.mark_read(s, user_id, None))

    async def stream(self, user_id: UUID, last_number: int | None) -> AsyncIterator[Notification]:
        """What somebody is told from now on, or after `last_number`, as it comes; ends after STREAM_MAX_S seconds."""
        number = last_number
        if number is None:
            number = await self.runtime.store.read(lambda s: repository.latest(s, user_id))
        ends = asyncio.get_running_loop().time() + STREAM_MAX_S
        while asyncio.get_running_loop().time() < ends:
            rows = await self._since(user_id, number)
            for row in rows:
                number = row.number
                yield _shown(row)
            if not rows:
                await asyncio.sleep(STREAM_POLL_S)

    async def preferences(self, user_id: UUID) -> Preferences:
        """What somebody wants by e-mail, every kind named."""
        known = await self.runtime.store.read(lambda s: repository.preferences_of(s, user_id))
        return Preferences({kind: domain.wants_email(known, kind) for kind in domain.KINDS})

    async def set_preferences(self, user_id: UUID, body: Preferences) -> Preferences:
        """Replaces what somebody wants by e-mail. 400 for a kind that there is not."""
        for kind in body.email:
            if kind not in domain.KINDS:
                raise errors.unknown_kind(kind)
        await self.runtime.store.local(lambda s: repository.set_preferences(s, user_id, body.email))
        return await self.preferences(user_id)

    async def _since(self, user_id: UUID, number: int) -> Any:
        return await self.runtime.store.read(lambda s: repository.since(s, user_id, number, STREAM_BATCH_MAX))

    async def _mail(self, message_id: UUID, recipient: UUID, kind: str, title: str, text: str) -> None:
        folder = self.runtime.settings.mail_dir
        if folder is None:
            return
        known = await self.runtime.store.read(lambda s: repository.preferences_of(s, recipient))
        if not domain.wants_email(known, kind):
            return
        contact = await clients.contact_of(self.runtime, recipient)
        if contact is None or contact.email is None:
            return
        mail = domain.email(
            sender=MAIL_FROM, to=contact.email, title=title, text=text, message_id=message_id, at=self.runtime.clock()
        )
        await asyncio.to_thread(_write, folder, f"{message_id}-{recipient}.eml", mail.as_bytes())


def _write(folder: Path, name: str, body: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # A draft of its own: two workers may write the mail of one message at the same time.
    with NamedTemporaryFile(dir=folder, prefix=".", suffix=".draft", delete=False) as draft:
        draft.write(body)
    Path(draft.name).replace(folder / name)  # whole or not at all


def _shown(row: Any) -> Notification:
    return Notification(row.number, row.id, row.kind, row.title, row.text, row.order_id, row.created_at, row.read_at)
