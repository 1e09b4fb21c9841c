"""The one list of steps of book, pay, cancel and expire, by the dotted name of the code that takes them.

In the order in which a story takes them, more or less. A step that a change of the code has moved is found missing by a
test; one that is not passed any more is a failure of its points.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.crash.vocabulary import (
    AFTER,
    KILLS,
    LOSSES,
    Fault,
    Step,
    calls,
    commits_branch,
    enters,
    no_coordinator,
    no_database,
    no_person,
    no_queue,
    no_reply,
    no_resource,
    no_statement,
    no_store,
    says,
    writes_commit,
)

CALL = "coordinator.client.contrib.http.TransactionalClient._once"
SAY = "coordinator.client.transport.Transport.converse"
SUBMIT = "coordinator.tc.batches.Batches.submit"
EXECUTE = "coordinator.client.connections.BranchConnection._execute_folded"
STATEMENT = "sqlalchemy.dialects.postgresql.asyncpg.AsyncAdapt_asyncpg_cursor._prepare_and_execute"
ALL_LOSSES = (*KILLS, *LOSSES)
COMMIT = (*KILLS, Fault.LOSE_REPLY)

_KEYS = (
    Step("key is taken", "services.kit.idempotency._open", {"order": "book cancel"}),
    Step("key is durable", "coordinator.client.branches.BranchRunner.run_local", {"order": "book pay"}, AFTER),
    Step("answer is kept", "services.kit.idempotency.Keyed.keep", {"order": "book pay cancel"}),
    Step(
        "answer is ready",
        "services.kit.idempotency.once",
        {"order": "book pay cancel"},
        (Fault.KILL_AFTER, Fault.LOSE_REPLY),
        lost=no_person,
    ),
    Step("key is freed", "services.kit.idempotency._free", {"order": "refused"}),
    Step("gate is taken", "services.kit.locks.Gate._take", {"order": "book"}),
    Step("gate is let go", "services.kit.locks.Gate._release", {"order": "book"}),
    Step("fence is asked", "services.order.clients.Capacity.fence", {"order": "book"}),
    Step(
        "fence is called", CALL, {"order": "book"}, LOSSES, where=lambda a: "/internal/fences/" in a[2], lost=no_reply
    ),
)

_PHASE_ONE = (
    Step("begin", "coordinator.client.transactions.Decider.begin", {"order": "book", "worker": "expire"}),
    Step(
        "BEGIN, enter and the first statement",
        STATEMENT,
        {
            "order": "book cancel",
            "capacity": "book expire",
            "pet": "book",
            "payment": "pay",
            "worker": "expire",
        },
        COMMIT,
        where=enters,
        lost=no_statement,
    ),
    Step("order is inserted", "services.order.repository.insert_order", {"order": "book"}),
    Step("order is changed", "services.order.repository.change", {"order": "pay cancel", "worker": "expire"}),
    Step("event is written", "services.order.repository.append_event", {"order": "pay", "worker": "expire"}),
    Step("outbox row is written", "services.kit.outbox.send", {"order": "pay cancel", "worker": "expire"}),
    Step("last outbox row is written", "services.kit.outbox.send", {"order": "book"}, nth=3),
    Step("index is inserted", "services.order.repository.insert_index", {"order": "book"}),
    Step("index is changed", "services.order.repository.change_index", {"order": "pay cancel", "worker": "expire"}),
    Step("hold is written", "services.capacity.repository.add_hold", {"capacity": "book"}),
    Step("nights are taken", "services.capacity.repository.take_nights", {"capacity": "book"}),
    Step("nights are moved", "services.capacity.repository.move_nights", {"capacity": "pay expire"}),
    Step("hold is changed", "services.capacity.repository.set_state", {"capacity": "cancel"}),
    Step("claim is written", "services.pet.repository.add_claim", {"pet": "book"}),
    Step("pet's nights are taken", "services.pet.repository.take_nights", {"pet": "book"}),
    Step("pet's nights are dropped", "services.pet.repository.drop_nights", {"pet": "cancel expire"}),
    Step("escrow is opened", "services.payment.repository.open_escrow", {"payment": "pay"}),
    Step("wallet is debited", "services.payment.repository.debit", {"payment": "pay"}),
    Step("escrow is drawn", "services.payment.repository.draw_escrow", {"payment": "cancel"}),
    Step("wallet is credited", "services.payment.repository.credit", {"payment": "cancel"}),
    Step("ledger is posted", "services.payment.repository.post", {"payment": "pay cancel"}),
    Step(
        "local commit",
        EXECUTE,
        {
            "order": "book pay cancel",
            "capacity": "book cancel expire",
            "pet": "book cancel",
            "payment": "pay cancel",
            "worker": "expire",
        },
        COMMIT,
        where=commits_branch,
        lost=no_database,
    ),
    Step(
        "local commit of the last branch",
        EXECUTE,
        {"order": "book cancel"},
        COMMIT,
        commits_branch,
        lost=no_database,
        nth=2,
    ),
    Step(
        "participant answers",
        "coordinator.client.context.Participant.answer",
        {"capacity": "book", "pet": "cancel", "payment": "pay"},
    ),
)


def _branch_calls() -> Iterator[Step]:
    for what, client, path, by in (
        ("hold", "Capacity.hold", "/internal/holds", {"order": "book"}),
        ("claim", "Pets.claim", "/internal/claims", {"order": "book"}),
        ("booking of nights", "Capacity.book", "/book", {"order": "pay"}),
        ("charge", "Payments.charge", "/internal/charges", {"order": "pay"}),
        ("refund", "Payments.refund", "/internal/refunds", {"order": "cancel"}),
        ("release of nights", "Capacity.release", "/release", {"order": "cancel", "worker": "expire"}),
        ("release of pets", "Pets.release", "/release", {"order": "cancel", "worker": "expire"}),
    ):
        yield Step(f"{what} is asked", f"services.order.clients.{client}", by)
        yield Step(f"{what} is called", CALL, by, LOSSES, calls(path), lost=no_reply)


_REGISTRATION = (
    Step(
        "registration is said",
        SAY,
        {"order": "book"},
        ALL_LOSSES,
        says("Begin", "Register"),
        lost=no_coordinator,
        early_hints=True,
    ),
    Step(
        "registration is said by a participant",
        SAY,
        {"capacity": "book", "payment": "pay"},
        ALL_LOSSES,
        says("Register"),
        lost=no_coordinator,
        early_hints=True,
    ),
    Step(
        "registration is noted", SUBMIT, {"coordinator": "book pay"}, KILLS, says("Begin", "Register"), early_hints=True
    ),
)

_EVERYBODY = "book pay cancel expire"
_DECISION = (
    Step(
        "commit is asked",
        "coordinator.client.transactions.Decider.commit",
        {"order": "book pay cancel", "worker": "expire"},
    ),
    Step(
        "commit is called",
        SAY,
        {"order": "book pay cancel", "worker": "expire"},
        ALL_LOSSES,
        says("Decide", commit=True),
        lost=no_coordinator,
    ),
    Step("decision arrives", SUBMIT, {"coordinator": _EVERYBODY}, KILLS, says("Decide", commit=True)),
    Step(
        "decision is written",
        "coordinator.tc.store.Store.commit_unheard",
        {"coordinator": _EVERYBODY},
        ALL_LOSSES,
        done=bool,
        lost=no_store,
        early_hints=False,
    ),
    Step(
        "decision is written after its hints",
        "coordinator.tc.store.Store.apply",
        {"coordinator": "book pay"},
        ALL_LOSSES,
        where=writes_commit,
        lost=no_store,
        early_hints=True,
    ),
    Step(
        "decision is answered",
        "coordinator.tc.replica.Replica.messages",
        {"coordinator": _EVERYBODY},
        AFTER,
        says("Decide", commit=True),
    ),
    Step(
        "decision is heard",
        "coordinator.client.transactions.Decider._committed",
        {"order": "book pay cancel", "worker": "expire"},
    ),
    Step("rollback is asked", "coordinator.client.transactions.Decider.rollback", {"order": "refused"}),
    Step(
        "rollback is called", SAY, {"order": "refused"}, ALL_LOSSES, says("Decide", commit=False), lost=no_coordinator
    ),
    Step("rollback arrives", SUBMIT, {"coordinator": "refused"}, KILLS, says("Decide", commit=False)),
    Step(
        "rollback is answered",
        "coordinator.tc.replica.Replica.messages",
        {"coordinator": "refused"},
        AFTER,
        says("Decide", commit=False),
    ),
)

_PHASE_TWO = (
    Step(
        "nudge is sent",
        "coordinator.tc.nudges.Nudger._post",
        {"coordinator": "pay refused"},
        ALL_LOSSES,
        lost=no_resource,
    ),
    Step(
        "nudge is taken",
        "coordinator.client.coordinator.Coordinator.nudged",
        {"capacity": "book refused", "pet": "cancel", "payment": "pay"},
    ),
    Step(
        "forget",
        "coordinator.resource.forget",
        {"order": "book cancel", "capacity": "book expire", "pet": "cancel", "payment": "pay", "worker": "expire"},
        COMMIT,
        lost=no_database,
    ),
    Step("undo", "coordinator.resource.undo", {"order": "refused", "capacity": "refused"}, COMMIT, lost=no_database),
    Step(
        "confirmation is said",
        SAY,
        {"order": "book", "capacity": "refused"},
        ALL_LOSSES,
        says("Confirm"),
        lost=no_coordinator,
    ),
    Step("confirmation arrives", SUBMIT, {"coordinator": "book refused"}, KILLS, says("Confirm")),
    Step(
        "confirmation is written",
        "coordinator.tc.store.Store.confirm_forgotten",
        {"coordinator": "cancel"},
        ALL_LOSSES,
        lost=no_store,
    ),
)

_MESSAGES = (
    Step("outbox is read", "services.kit.outbox.Relay._send_all", {"order": "book expire"}),
    Step(
        "message is published",
        "dramatiq.brokers.redis.RedisBroker.enqueue",
        {"order": "pay"},
        COMMIT,
        lost=no_queue,
    ),
    Step(
        "last message is published",
        "dramatiq.brokers.redis.RedisBroker.enqueue",
        {"order": "book"},
        COMMIT,
        nth=3,
        lost=no_queue,
    ),
    Step("outbox is marked", "services.kit.outbox.Relay.relay_once", {"order": "book cancel"}, AFTER, done=bool),
    Step(
        "message is taken",
        "dramatiq.brokers.redis._RedisConsumer.__next__",
        {"messenger": "book", "worker": "expire"},
        AFTER,
        done=bool,
    ),
    Step("notification is begun", "services.notification.use_cases.Notifications.notify", {"messenger": "book expire"}),
    Step("notification is stored", "services.notification.repository.add", {"messenger": "pay cancel"}),
    Step(
        "message is acknowledged",
        "dramatiq.brokers.redis._RedisConsumer.ack",
        {"messenger": "cancel", "worker": "expire"},
        COMMIT,
        lost=no_queue,
    ),
    Step("expiry is begun", "services.order.use_cases.expiry.Expiry.expire", {"worker": "expire", "order": "sweep"}),
    Step("message is noted as taken", "services.kit.outbox.taken_once", {"worker": "expire"}),
    Step(
        "overdue orders are looked for",
        "services.order.use_cases.expiry.Expiry.sweep",
        {"order": "sweep"},
        (Fault.KILL_BEFORE,),
    ),
    Step("commit of the sweeper is asked", "coordinator.client.transactions.Decider.commit", {"order": "sweep"}),
)

STEPS: tuple[Step, ...] = (*_KEYS, *_PHASE_ONE, *_branch_calls(), *_REGISTRATION, *_DECISION, *_PHASE_TWO, *_MESSAGES)
"""In the order in which a story takes them, more or less."""
