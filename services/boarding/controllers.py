"""The boarding service's HTTP."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, get, patch, post, put
from litestar.params import Parameter

from services.boarding import schemas
from services.boarding.config import SUGGESTION_DAYS_MAX, SUGGESTION_NIGHTS_MAX
from services.boarding.repository import Search
from services.boarding.use_cases import Listings, Quoting, Searching, wish_near
from services.kit.auth import Principal, Role, approved_user, has_role, internal, principal_of, public
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.kit.problems import bad_request

Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX)]
Nights = Annotated[int, Parameter(ge=1, le=SUGGESTION_NIGHTS_MAX)]
Days = Annotated[int, Parameter(ge=0, le=SUGGESTION_DAYS_MAX)]
Words = Annotated[str | None, Parameter(max_length=128, pattern=schemas.STORABLE)]
Cents = Annotated[int | None, Parameter(ge=0, le=100_000_000)]
PROVIDER = has_role(Role.PROVIDER)
READERS = ("order", "admin")


class BoardingController(Controller):
    """Listings, for people."""

    path = "/api/boarding"

    @get("/search", guards=[public])
    async def search(
        self,
        searching: Searching,
        q: Words = None,
        city: Words = None,
        check_in: date | None = None,
        check_out: date | None = None,
        pool: Annotated[str | None, Parameter(pattern=schemas.POOL)] = None,
        units: Annotated[int, Parameter(ge=1, le=20)] = 1,
        price_min: Cents = None,
        price_max: Cents = None,
        rating_min: Annotated[float | None, Parameter(ge=0, le=5)] = None,
        instant: bool | None = None,
        lat: Annotated[float | None, Parameter(ge=-90, le=90)] = None,
        lng: Annotated[float | None, Parameter(ge=-180, le=180)] = None,
        radius_km: Annotated[float | None, Parameter(ge=0, le=20_100)] = None,
        sort: schemas.Sort = "recommended",
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[schemas.Found]:
        """Finds listings by text, place, dates, kind of pet (`pool`, such as dog-M), price and rating."""
        if (check_in is None) != (check_out is None):
            raise bad_request("Say both 'check_in' and 'check_out', or neither.")
        dates = None if check_in is None or check_out is None else (check_in, check_out)
        if dates is not None and dates[0] >= dates[1]:
            raise bad_request("'check_out' must be after 'check_in'.")
        wish = Search(q, city, pool, price_min, price_max, rating_min, instant, None, radius_km, sort)
        return await searching.search(wish_near(wish, lat, lng), dates, units, cursor, limit)

    @post("/services", guards=[PROVIDER])
    async def publish(
        self, request: Request[Any, Any, Any], data: schemas.Publish, listings: Listings
    ) -> schemas.Published:
        """Publishes a draft; submit it afterwards."""
        return await listings.publish(principal_of(request).user_id, data)

    @get("/services", guards=[PROVIDER])
    async def mine(
        self,
        request: Request[Any, Any, Any],
        listings: Listings,
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[schemas.Found]:
        """The listings of whoever asks, in any state."""
        return await listings.mine(principal_of(request).user_id, cursor, limit)

    @get("/services/{listing_id:uuid}", guards=[public])
    async def one(self, request: Request[Any, Any, Any], listing_id: UUID, listings: Listings) -> schemas.Listing:
        """A listing."""
        asking = request.scope.get("user")
        return await listings.shown(listing_id, asking.user_id if isinstance(asking, Principal) else None)

    @patch("/services/{listing_id:uuid}", guards=[PROVIDER])
    async def change(
        self, request: Request[Any, Any, Any], listing_id: UUID, data: schemas.Change, listings: Listings
    ) -> schemas.Listing:
        """Changes a listing."""
        return await listings.change(principal_of(request).user_id, listing_id, data)

    @put("/services/{listing_id:uuid}/capacity", guards=[PROVIDER])
    async def capacity(
        self, request: Request[Any, Any, Any], listing_id: UUID, data: schemas.Capacity, listings: Listings
    ) -> schemas.Capacity:
        """Says how many places each kind of pet has; never fewer than are taken."""
        return await listings.set_capacity(principal_of(request).user_id, listing_id, dict(data.pools))

    @put("/services/{listing_id:uuid}/blocked-dates", guards=[PROVIDER])
    async def block(
        self, request: Request[Any, Any, Any], listing_id: UUID, data: schemas.Blocked, listings: Listings
    ) -> schemas.Message:
        """Says on which nights nobody is taken; bookings that are there stay."""
        await listings.block(principal_of(request).user_id, listing_id, data.nights)
        return schemas.Message("已更新")

    @post("/services/{listing_id:uuid}/submit", guards=[PROVIDER], status_code=200)
    async def submit(self, request: Request[Any, Any, Any], listing_id: UUID, listings: Listings) -> schemas.Published:
        """Hands a draft to moderation."""
        return await listings.submit(principal_of(request).user_id, listing_id)

    @post("/services/{listing_id:uuid}/quotes", guards=[approved_user], status_code=200)
    async def quote(
        self, request: Request[Any, Any, Any], listing_id: UUID, data: schemas.AskQuote, quoting: Quoting
    ) -> schemas.Quote:
        """A signed price with its lines, good for ten minutes."""
        return await quoting.quote(principal_of(request).user_id, listing_id, data)

    @get("/services/{listing_id:uuid}/suggestions", guards=[public])
    async def suggestions(
        self,
        listing_id: UUID,
        quoting: Quoting,
        check_in: date,
        nights: Nights,
        pool: Annotated[str, Parameter(pattern=schemas.POOL)],
        flexible_days: Days = 7,
    ) -> schemas.Suggestions:
        """Free stays near the wish: the nearest first, and the cheapest."""
        return await quoting.suggestions(listing_id, check_in, nights, pool, flexible_days)


class InternalListingController(Controller):
    """Listings, for other services."""

    path = "/internal/listings"
    include_in_schema = False

    @get("/{listing_id:uuid}", guards=[internal(READERS)])
    async def one(self, listing_id: UUID, listings: Listings) -> schemas.Internal:
        """A listing in any state."""
        return await listings.internal(listing_id)

    @get("/", guards=[internal(["admin"])])
    async def waiting(
        self,
        listings: Listings,
        audit_status: Annotated[int, Parameter(ge=-1, le=3)] = 0,
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[schemas.Found]:
        """Listings in one state of moderation."""
        return await listings.waiting(audit_status, cursor, limit)

    @post("/{listing_id:uuid}/approve", guards=[internal(["admin"])], status_code=200)
    async def approve(self, listing_id: UUID, data: schemas.Moderate, listings: Listings) -> schemas.Internal:
        """A branch: the listing can be found."""
        return await listings.moderate(listing_id, "approve", data.reason)

    @post("/{listing_id:uuid}/reject", guards=[internal(["admin"])], status_code=200)
    async def reject(self, listing_id: UUID, data: schemas.Moderate, listings: Listings) -> schemas.Internal:
        """A branch: the listing goes back to its provider."""
        return await listings.moderate(listing_id, "reject", data.reason)

    @post("/{listing_id:uuid}/take-down", guards=[internal(["admin"])], status_code=200)
    async def take_down(self, listing_id: UUID, data: schemas.Moderate, listings: Listings) -> schemas.Internal:
        """A branch: the listing is not found any more."""
        return await listings.moderate(listing_id, "take-down", data.reason)

    @post("/{listing_id:uuid}/restore", guards=[internal(["admin"])], status_code=200)
    async def restore(self, listing_id: UUID, data: schemas.Moderate, listings: Listings) -> schemas.Internal:
        """A branch: the listing is found again."""
        return await listings.moderate(listing_id, "restore", data.reason)
