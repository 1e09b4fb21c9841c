"""Which exceptions roll a global transaction back. The words are Spring's and Seata's, the default is not: all do."""

from __future__ import annotations

from collections.abc import Iterable

Kinds = Iterable[type[BaseException]]
"""Classes of exceptions; subclasses count too."""


class RollbackRules:
    """Decides by the class of an exception: of the named classes that fit, the most specific one (by MRO) decides.

    What no class fits rolls back, a cancellation included. Raises TypeError for what is no class of exceptions,
    ValueError for a class in both lists.
    """

    def __init__(self, rollback_for: Kinds = (), no_rollback_for: Kinds = ()) -> None:
        self._rolls_back: dict[type, bool] = {}
        for kinds, rolls_back in ((rollback_for, True), (no_rollback_for, False)):
            for kind in kinds:
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise TypeError(f"{kind!r} is no class of exceptions")
                if self._rolls_back.setdefault(kind, rolls_back) is not rolls_back:
                    raise ValueError(f"{kind.__name__} cannot both roll back and not")

    def rolls_back(self, error: BaseException) -> bool:
        """Whether a block that `error` leaves is rolled back."""
        return next((self._rolls_back[kind] for kind in type(error).__mro__ if kind in self._rolls_back), True)


EVERY_EXCEPTION = RollbackRules()
"""The default."""
