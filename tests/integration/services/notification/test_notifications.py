"""What people are told: once, in the app, by e-mail and as a live stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import dramatiq
import pytest

from coordinator.protocol.ids import uuid7
from services.kit.broker import make_broker
from services.notification import repository
from services.notification.config import SPEC, STREAM_POLL_S
from services.notification.use_cases import Notifications
from tests.support.services import eventually, queued, replica
from tests.support.system import Api, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM_TIMEOUT_S = 20
numbers = count(1)


def somebody(system: System, user_id: UUID) -> Api:
    return system.as_person("notification", user_id)


async def registered(system: System, *, email: bool = True) -> UUID:
    name = f"reader{next(numbers)}"
    body = {"username": name, "password": "a-long-password", **({"email": f"{name}@example.org"} if email else {})}
    answer = await system.client("user").post("/api/users", body)
    return UUID(answer.body["user_id"])


@asynccontextmanager
async def notifications(system: System) -> AsyncIterator[Notifications]:
    async with replica(system, SPEC) as runtime:
        yield Notifications(runtime)


async def tell(use_cases: Notifications, recipient: UUID, *, message_id: UUID | None = None, **change: Any) -> UUID:
    told: dict[str, Any] = {"kind": "order_created", "title": "订单已创建", "text": "请在十五分钟内付款。"}
    chosen = message_id or uuid7(next(numbers))
    await use_cases.notify(message_id=chosen, recipient=recipient, order_id=None, **{**told, **change})
    return chosen


async def shown(system: System, recipient: UUID, **params: str) -> list[dict[str, Any]]:
    answer = await somebody(system, recipient).get("/api/notifications", **params)
    assert answer.status == 200, answer
    return list(answer.body["items"])


def mails(system: System, recipient: UUID) -> list[Path]:
    return [path for path in (system.folder / "mail").iterdir() if str(recipient) in path.name]


async def test_a_message_that_is_delivered_twice_is_shown_and_mailed_once(system: System) -> None:
    """A worker takes both deliveries from the queue; the reader sees one."""
    recipient, message_id = await registered(system), uuid7(1)
    args = {"recipient": str(recipient), "kind": "check_in", "title": "入住", "text": "到了", "order_id": str(uuid4())}
    broker = make_broker(system.redis_url, processing=False)
    message: dramatiq.Message[Any] = dramatiq.Message(
        queue_name="notification",
        actor_name="notification.notify",
        args=(),
        kwargs={**args, "message_id": str(message_id)},
        options={},
        message_id=str(message_id),
    )
    await asyncio.to_thread(lambda: [broker.enqueue(message) for _ in range(2)])
    broker.close()

    async def taken() -> bool:
        return not await queued(system.redis_url, "notification") and bool(await shown(system, recipient))

    async with system.worker("notification"):
        await eventually(taken)
    [item] = await shown(system, recipient)
    assert (item["id"], item["title"], item["order_id"]) == (str(message_id), "入住", args["order_id"])
    assert len(mails(system, recipient)) == 1


async def test_concurrent_deliveries_of_one_message_are_one_notification(system: System) -> None:
    """Two workers with the same message at the same time store one row and write one file."""
    recipient = await registered(system)
    async with notifications(system) as use_cases:
        message_id = uuid7(2)
        await asyncio.gather(*(tell(use_cases, recipient, message_id=message_id) for _ in range(5)))
    assert len(await shown(system, recipient)) == 1
    assert len(mails(system, recipient)) == 1


async def test_the_e_mail_is_one_that_any_reader_understands(system: System) -> None:
    """RFC 5322 with a Chinese subject and text, under the message's own id."""
    recipient = await registered(system)
    async with notifications(system) as use_cases:
        message_id = await tell(use_cases, recipient, title="订单\r\nBcc: all@example.org")
    [path] = mails(system, recipient)
    mail = message_from_bytes(path.read_bytes(), _class=EmailMessage, policy=policy.default)
    assert str(mail["To"]).endswith("@example.org")
    assert mail["Subject"] == "订单 Bcc: all@example.org"
    assert mail["Bcc"] is None
    assert str(message_id) in mail["Message-ID"]
    assert mail["Date"].datetime is not None
    assert mail.get_content().strip() == "请在十五分钟内付款。"


async def test_who_wants_no_e_mail_of_a_kind_is_told_in_the_app_only(system: System) -> None:
    """A preference holds for its kind; other kinds are still mailed."""
    recipient = await registered(system)
    me = somebody(system, recipient)
    answer = await me.put("/api/notifications/preferences", {"email": {"care_log": False}})
    assert (answer.body["email"]["care_log"], answer.body["email"]["order_created"]) == (False, True)
    async with notifications(system) as use_cases:
        await tell(use_cases, recipient, kind="care_log")
        assert mails(system, recipient) == []
        await tell(use_cases, recipient)
    assert len(mails(system, recipient)) == 1
    assert len(await shown(system, recipient)) == 2


async def test_somebody_without_an_address_is_told_in_the_app(system: System) -> None:
    """Neither a missing e-mail address nor a missing account stops the notification."""
    for recipient in (await registered(system, email=False), system.new_id()):
        async with notifications(system) as use_cases:
            await tell(use_cases, recipient)
        assert len(await shown(system, recipient)) == 1
        assert mails(system, recipient) == []


async def test_reading_is_counted_and_is_the_readers_own(system: System) -> None:
    """Reading one leaves the others; somebody else's is a 404; reading all leaves none."""
    recipient, stranger = system.new_id(), system.new_id()
    async with notifications(system) as use_cases:
        ids = [await tell(use_cases, recipient) for _ in range(3)]
    me = somebody(system, recipient)
    assert (await me.get("/api/notifications/unread-count")).body == {"unread": 3}
    assert (await me.post(f"/api/notifications/{ids[0]}/read")).body == {"unread": 2}
    assert (await me.post(f"/api/notifications/{ids[0]}/read")).body == {"unread": 2}
    assert (await somebody(system, stranger).post(f"/api/notifications/{ids[1]}/read")).status == 404
    assert len(await shown(system, recipient, unread="true")) == 2
    assert (await me.post("/api/notifications/read-all")).body == {"unread": 0}
    assert await shown(system, recipient, unread="true") == []
    assert await shown(system, stranger) == []


async def test_pages_show_everything_once_newest_first(system: System) -> None:
    """Following the cursor meets every notification."""
    recipient = system.new_id()
    async with notifications(system) as use_cases:
        ids = [str(await tell(use_cases, recipient)) for _ in range(5)]
    me, seen, params = somebody(system, recipient), [], {"limit": "2"}
    while True:
        body = (await me.get("/api/notifications", **params)).body
        seen += [item["id"] for item in body["items"]]
        if body["next_cursor"] is None:
            break
        params["cursor"] = body["next_cursor"]
    assert seen == ids[::-1]
    assert (await me.get("/api/notifications", cursor="forged")).status == 400


@pytest.mark.parametrize(
    "body", [{"email": {"weather": True}}, {"email": {"care_log": "no"}}, {"mail": {}}, {}, {"email": {}, "sms": {}}]
)
async def test_preferences_that_do_not_fit_are_a_400(system: System, body: dict[str, Any]) -> None:
    """Unknown kinds and members, and values that are no yes or no."""
    answer = await somebody(system, system.new_id()).put("/api/notifications/preferences", body)
    assert answer.status == 400


async def test_a_stranger_is_asked_to_log_in(system: System) -> None:
    """Every address of the service needs somebody."""
    for path in ("/api/notifications", "/api/notifications/stream", "/api/notifications/preferences"):
        assert (await system.client("notification").get(path)).status == 401


@asynccontextmanager
async def stream(system: System, recipient: UUID, last: int | str | None) -> AsyncIterator[aiohttp.StreamReader]:
    headers = {"Authorization": f"Bearer {system.access_token(recipient)}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    url = f"{system.urls['notification']}/api/notifications/stream"
    async with system.session.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield response.content


async def next_event(lines: aiohttp.StreamReader) -> dict[str, str]:
    event: dict[str, str] = {}
    async with asyncio.timeout(STREAM_TIMEOUT_S):
        while True:
            line = (await lines.readline()).decode().strip()
            if line:
                name, _, value = line.partition(":")
                event[name] = value.strip()
            elif "data" in event:
                return event


async def test_a_stream_goes_on_where_the_last_one_broke_off(system: System) -> None:
    """With Last-Event-ID nothing is missed and nothing comes twice; then what is new comes live."""
    recipient = system.new_id()
    async with notifications(system) as use_cases:
        ids = [await tell(use_cases, recipient) for _ in range(3)]
        known = {item["id"]: item["number"] for item in await shown(system, recipient)}
        async with stream(system, recipient, known[str(ids[0])]) as lines:
            events = [await next_event(lines), await next_event(lines)]
            assert [json.loads(event["data"])["id"] for event in events] == [str(ids[1]), str(ids[2])]
            assert [int(event["id"]) for event in events] == [known[str(ids[1])], known[str(ids[2])]]
            await tell(use_cases, system.new_id())
            live = await tell(use_cases, recipient, kind="care_log")
            event = await next_event(lines)
    assert (event["event"], json.loads(event["data"])["id"]) == ("care_log", str(live))


@pytest.mark.parametrize("last", ["9" * 19, "9" * 5000, "-1", "soon"])
async def test_a_last_event_id_that_is_none_of_ours_begins_a_new_stream(system: System, last: str) -> None:
    """Whatever a reader says of the last stream, the live one comes."""
    recipient = system.new_id()
    async with notifications(system) as use_cases:
        await tell(use_cases, recipient)
        async with stream(system, recipient, last) as lines:
            await asyncio.sleep(STREAM_POLL_S)
            live = await tell(use_cases, recipient)
            assert json.loads((await next_event(lines))["data"])["id"] == str(live)


async def test_a_later_number_is_never_seen_before_an_earlier_one(system: System) -> None:
    """While one notification is being stored, the next one for the same reader waits; others do not."""
    recipient = system.new_id()
    told: dict[str, Any] = {"kind": "care_log", "title": "日志", "text": "吃饱了", "order_id": None}
    async with notifications(system) as use_cases:
        async with use_cases.runtime.store.session() as session, session.begin():
            await repository.add(session, recipient=recipient, id=uuid7(3), **told)
            second = asyncio.create_task(tell(use_cases, recipient))
            await tell(use_cases, system.new_id())
            done, _ = await asyncio.wait({second}, timeout=0.3)
            assert not done
        await second
    newest_first = [item["id"] == str(second.result()) for item in await shown(system, recipient)]
    assert newest_first == [True, False]


async def test_a_stream_misses_nothing_that_is_stored_by_many_at_once(system: System) -> None:
    """A reader's numbers appear in rising order, so none slips in behind the reader's back."""
    recipient, how_many = system.new_id(), 20
    async with notifications(system) as use_cases, stream(system, recipient, 0) as lines:
        told = asyncio.gather(*(tell(use_cases, recipient) for _ in range(how_many)))
        seen = [json.loads((await next_event(lines))["data"])["id"] for _ in range(how_many)]
        assert sorted(seen) == sorted(str(one) for one in await told)
