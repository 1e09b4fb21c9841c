"""The first tables."""

from __future__ import annotations

from pathlib import Path

from services.kit.sql import kit_sql, run_script

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the service's and the kit's tables."""
    run_script(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    run_script(kit_sql("outbox"))
    run_script(kit_sql("inbox"))
    run_script(kit_sql("idempotency"))
