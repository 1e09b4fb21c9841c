"""The client of the coordinator: the side that begins and decides (TM) and the side that owns databases (RM).

Start with `Coordinator`. How to use it: docs/how-to/use-the-coordinator.md.
"""

from __future__ import annotations

from coordinator.client.branches import Branch
from coordinator.client.connections import BranchConnection, branch_connect_args
from coordinator.client.context import Participant, Scope, current
from coordinator.client.coordinator import Coordinator
from coordinator.client.errors import CallFailed, CallNotSent, CallOutcomeUnknown
from coordinator.client.reads import committed, lock
from coordinator.client.resources import Resource
from coordinator.client.steps import Step, StepCall
from coordinator.client.transactions import GlobalTransaction, Propagation, Transaction
from coordinator.protocol.errors import (
    BranchAborted,
    BranchRefused,
    BranchRepeated,
    CallerRefused,
    CoordinatorError,
    CoordinatorUnavailable,
    DeadlinePassed,
    Deadlock,
    LockConflict,
    NoGlobalTransaction,
    OutcomeUnknown,
    TransactionRolledBack,
    UnmanagedTable,
)
from coordinator.protocol.ids import BranchId, ResourceName, Xid
from coordinator.protocol.messages import BranchRef
from coordinator.protocol.tokens import SigningKey, TokenMaker, TokenVerifier, read_key_set

__all__ = [
    "Branch",
    "BranchAborted",
    "BranchConnection",
    "BranchId",
    "BranchRef",
    "BranchRefused",
    "BranchRepeated",
    "CallFailed",
    "CallNotSent",
    "CallOutcomeUnknown",
    "CallerRefused",
    "Coordinator",
    "CoordinatorError",
    "CoordinatorUnavailable",
    "DeadlinePassed",
    "Deadlock",
    "GlobalTransaction",
    "LockConflict",
    "NoGlobalTransaction",
    "OutcomeUnknown",
    "Participant",
    "Propagation",
    "Resource",
    "ResourceName",
    "Scope",
    "SigningKey",
    "Step",
    "StepCall",
    "TokenMaker",
    "TokenVerifier",
    "Transaction",
    "TransactionRolledBack",
    "UnmanagedTable",
    "Xid",
    "branch_connect_args",
    "committed",
    "current",
    "lock",
    "read_key_set",
]
