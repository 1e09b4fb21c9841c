"""What the notification service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="notification",
    port=8086,
    purpose="What people are told: in the app, by e-mail, as a live stream.",
    calls=("user",),
    has_worker=True,
)

QUEUE = "notification"
STREAM_POLL_S = 0.5
"""How often a live stream looks for what is new."""
STREAM_MAX_S = 300
"""Life of one live stream; the browser opens the next one by itself."""
STREAM_BATCH_MAX = 50
MAIL_FROM = "PawStay <no-reply@pawstay.example>"
