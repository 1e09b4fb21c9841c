"""The composition root of the review service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.review.config import PUBLISH_INTERVAL_S, SPEC
from services.review.controllers import ReviewController
from services.review.use_cases import Reviews


def create_app(settings: Settings) -> Litestar:
    """The application; nothing connects before it is started."""
    runtime = Runtime(SPEC, settings)
    reviews = Reviews(runtime)
    runtime.every(PUBLISH_INTERVAL_S, reviews.publish_due, "reviews.publish")
    return build_app(runtime, [ReviewController], {"reviews": Provide(lambda: reviews, sync_to_thread=False)})
