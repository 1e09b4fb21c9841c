"""Which exceptions roll back: the most specific class decides, and what nobody named rolls back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.client.rules import EVERY_EXCEPTION, RollbackRules


class Refused(Exception):
    """A business answer."""


class Fraud(Refused):
    """A special one."""


class FraudSeen(Fraud, KeyError):
    """One with two parents."""


@pytest.mark.parametrize(
    "error", [Refused(), asyncio.CancelledError(), KeyboardInterrupt(), ExceptionGroup("", [Refused()])]
)
def test_every_exception_rolls_back_when_nothing_is_said(error: BaseException) -> None:
    """A cancellation and the end of the program too."""
    assert EVERY_EXCEPTION.rolls_back(error)


@pytest.mark.parametrize(
    ("rollback_for", "no_rollback_for", "error", "expected"),
    [
        ((), (Refused,), Refused(), False),
        ((), (Refused,), Fraud(), False),
        ((), (Refused,), ValueError(), True),
        ((Fraud,), (Refused,), Fraud(), True),
        ((Fraud,), (Refused,), FraudSeen(), True),
        ((Fraud,), (Refused,), Refused(), False),
        ((Refused,), (Fraud,), FraudSeen(), False),
        ((Exception,), (LookupError,), KeyError(), False),
        ((), (Exception,), asyncio.CancelledError(), True),
        ((), (BaseException,), asyncio.CancelledError(), False),
        ((ValueError,), (), KeyError(), True),
    ],
)
def test_the_most_specific_class_decides(
    rollback_for: Any, no_rollback_for: Any, error: BaseException, expected: bool
) -> None:
    """Whatever list it stands in, and in whatever order."""
    assert RollbackRules(rollback_for, no_rollback_for).rolls_back(error) is expected


def test_rules_that_mean_nothing_are_refused() -> None:
    """A class in both lists, and what is no class of exceptions."""
    with pytest.raises(ValueError, match="Refused"):
        RollbackRules([Refused], [Refused])
    for wrong in (int, "Refused", Refused()):
        with pytest.raises(TypeError, match="no class of exceptions"):
            RollbackRules([], [wrong])  # type: ignore[list-item]
