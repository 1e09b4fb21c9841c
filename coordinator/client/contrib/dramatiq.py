"""Dramatiq: messages that take part in the global transaction in which they were sent.

A message belongs to its transaction only when the sender learns of the branches that the worker made, before it
decides: the actor returns `made_branches()` with its result, and the sender, who waits for the result inside the
transaction, calls `absorb_branches` on it. A message that is not waited for does its work too late: its branches
were not named by the decision, so they are orphans and are undone. Messages that shall leave only after the commit
do not belong here but in an outbox.

Dramatiq delivers at least once. A message that comes twice derives the same branch ids and meets its own branch
rows: with `result_type` given to run_branch it gets its first answer, else BranchRepeated.

The worker's event loop must have entered the coordinator (dramatiq's AsyncIO middleware runs the actors there).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any
from uuid import UUID

from dramatiq import Broker, MessageProxy
from dramatiq.message import Message
from dramatiq.middleware import Middleware

from coordinator.client.context import Participant, bind, current, format_branches, required
from coordinator.protocol.ids import BranchId, Xid

OPTION = "global_transaction"
"""The message option that carries xid, call id and deadline (milliseconds since 1970)."""


class TransactionMiddleware(Middleware):
    """Adds the running global transaction to messages that are sent, and makes it current where they are processed.

    Async actors see it too: dramatiq starts their coroutine in a copy of the worker thread's context.
    """

    def __init__(self) -> None:
        self._bound = local()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Gives the message its call id. A retried message keeps the one it has."""
        scope = current()
        if scope is None or OPTION in message.options:
            return
        with scope.calling() as call:
            message.options[OPTION] = {"xid": str(scope.xid), "call": str(call), "deadline_ms": scope.deadline_ms}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Makes the message's transaction current in this worker thread."""
        carried = message.options.get(OPTION)
        if carried is None:
            return
        xid, call = Xid(UUID(carried["xid"])), BranchId(UUID(carried["call"]))
        participant = Participant(xid, call, int(carried["deadline_ms"]))
        unbind = bind(participant)

        def end() -> None:
            participant.answer()
            unbind()

        self._bound.end = end

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Puts back what was current before."""
        end: Callable[[], None] | None = getattr(self._bound, "end", None)
        if end is not None:
            self._bound.end = None
            end()

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """As after_process_message."""
        self.after_process_message(broker, message)


def made_branches() -> str:
    """What this message has made so far, for the sender's `absorb_branches`. Empty outside a transaction."""
    scope = current()
    return "" if scope is None else format_branches(scope.branches)


def absorb_branches(made: str) -> None:
    """Makes the branches of a worker's answer branches of the current transaction.

    Raises ValueError when `made` is not from `made_branches`, NoGlobalTransaction when none is running.
    """
    required().absorb(made)
