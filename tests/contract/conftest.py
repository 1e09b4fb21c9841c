"""The contract's implementations live in the bank of the client's tests."""

from __future__ import annotations

from tests.integration.coordinator.client.conftest import bank, tc

__all__ = ["bank", "tc"]
