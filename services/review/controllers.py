"""The review service's HTTP."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, get, post, put
from litestar.params import Parameter

from services.kit.auth import approved_user, principal_of, public
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.kit.problems import bad_request
from services.review import schemas
from services.review.use_cases import Reviews

Asking = Request[Any, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX)]


class ReviewController(Controller):
    """Reviews."""

    path = "/api/reviews"

    @post("/", guards=[approved_user])
    async def write(self, request: Asking, data: schemas.Write, reviews: Reviews) -> schemas.Review:
        """Reviews a completed stay, as its owner or its provider."""
        return await reviews.write(principal_of(request).user_id, data)

    @get("/", guards=[public])
    async def page(
        self,
        reviews: Reviews,
        service_id: UUID | None = None,
        user_id: UUID | None = None,
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[schemas.Review]:
        """Shown reviews of a listing (`service_id`) or of a person (`user_id`), newest first."""
        if (service_id is None) == (user_id is None):
            raise bad_request("Say either 'service_id' or 'user_id'.")
        return await reviews.page(listing_id=service_id, user_id=user_id, cursor=cursor, limit=limit)

    @get("/summary", guards=[public])
    async def summary(self, reviews: Reviews, service_id: UUID) -> schemas.Summary:
        """How a listing is rated, and by which formula."""
        return await reviews.summary(service_id)

    @put("/{review_id:uuid}/reply", guards=[approved_user])
    async def reply(self, request: Asking, review_id: UUID, data: schemas.ReplyTo, reviews: Reviews) -> schemas.Review:
        """The one reply of whoever was reviewed."""
        return await reviews.reply(principal_of(request).user_id, review_id, data.text)

    @post("/{review_id:uuid}/report", guards=[approved_user], status_code=202)
    async def report(
        self, request: Asking, review_id: UUID, data: schemas.ReportOf, reviews: Reviews
    ) -> schemas.Message:
        """Tells administrators that a review breaks the rules."""
        await reviews.report(principal_of(request).user_id, review_id, data.reason)
        return schemas.Message("举报已收到")
