"""The user service's HTTP."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, get, patch, post, put
from litestar.params import Parameter

from services.kit.auth import any_user, internal, principal_of, public
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.kit.problems import not_found
from services.kit.roles import Role
from services.user import schemas
from services.user.use_cases import Users

Asking = Request[Any, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX)]
READERS = ("order", "notification", "admin")


class UserController(Controller):
    """Accounts, for people."""

    path = "/api/users"

    @post("/", guards=[public])
    async def register(self, data: schemas.Register, users: Users) -> schemas.Registered:
        """Registers an account; it waits for an administrator's approval before it may book or publish."""
        return await users.register(data)

    @post("/login", guards=[public], status_code=200)
    async def log_in(self, data: schemas.LogIn, users: Users) -> schemas.Session:
        """Logs in by username, e-mail or phone."""
        return await users.log_in(data)

    @post("/token/refresh", guards=[public], status_code=200)
    async def refresh(self, data: schemas.Refresh, users: Users) -> schemas.Session:
        """New tokens for a refresh token, which is used up by it."""
        return await users.refresh(data)

    @post("/logout", guards=[any_user], status_code=200)
    async def log_out(self, request: Asking, users: Users) -> schemas.Message:
        """Ends all sessions of whoever asks."""
        await users.log_out(principal_of(request).user_id)
        return schemas.Message("已退出登录")

    @get("/me", guards=[any_user])
    async def me(self, request: Asking, users: Users) -> schemas.User:
        """The account of whoever asks."""
        return await users.user(principal_of(request).user_id)

    @patch("/me", guards=[any_user])
    async def change_me(self, request: Asking, data: schemas.ChangeProfile, users: Users) -> schemas.User:
        """Changes name, address or bio."""
        return await users.change_profile(principal_of(request).user_id, data)

    @put("/me/password", guards=[any_user])
    async def change_password(self, request: Asking, data: schemas.ChangePassword, users: Users) -> schemas.Message:
        """Changes the password and ends every session."""
        await users.change_password(principal_of(request).user_id, data)
        return schemas.Message("密码已修改，请重新登录")

    @post("/me/provider-application", guards=[any_user], status_code=202)
    async def apply(self, request: Asking, data: schemas.Apply, users: Users) -> schemas.Message:
        """Asks for the provider's role."""
        await users.apply_as_provider(principal_of(request).user_id, data.text)
        return schemas.Message("申请已提交，请等待审核")

    @get("/{user_id:uuid}", guards=[any_user])
    async def one(self, request: Asking, user_id: UUID, users: Users) -> schemas.User:
        """An account, for its owner and for administrators."""
        asking = principal_of(request)
        if asking.user_id != user_id and asking.role is not Role.ADMIN:
            raise not_found("user", user_id)
        return await users.user(user_id)

    @patch("/{user_id:uuid}", guards=[any_user])
    async def change_one(
        self, request: Asking, user_id: UUID, data: schemas.ChangeProfile, users: Users
    ) -> schemas.User:
        """The seed's way to change one's own account."""
        if principal_of(request).user_id != user_id:
            raise not_found("user", user_id)
        return await users.change_profile(user_id, data)

    @get("/{user_id:uuid}/public-profile", guards=[public])
    async def profile(self, user_id: UUID, users: Users) -> schemas.Profile:
        """What everybody may see of somebody."""
        return await users.profile(user_id)


class InternalUserController(Controller):
    """Accounts, for other services."""

    path = "/internal/users"
    include_in_schema = False

    @get("/{user_id:uuid}", guards=[internal(READERS)])
    async def one(self, user_id: UUID, users: Users) -> schemas.User:
        """An account with its addresses."""
        return await users.user(user_id)

    @get("/", guards=[internal(["admin"])])
    async def waiting(
        self, users: Users, applied: bool = False, cursor: str | None = None, limit: Limit = LIMIT_DEFAULT
    ) -> Page[schemas.User]:
        """Who waits for an administrator."""
        return await users.waiting(applied=applied, cursor=cursor, limit=limit)

    @post("/{user_id:uuid}/approve", guards=[internal(["admin"])], status_code=200)
    async def approve(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: the account becomes active."""
        return await users.decide(user_id, "approve")

    @post("/{user_id:uuid}/approve-provider", guards=[internal(["admin"])], status_code=200)
    async def approve_provider(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: the account gets the provider's role."""
        return await users.decide(user_id, "approve-provider")

    @post("/{user_id:uuid}/reject", guards=[internal(["admin"])], status_code=200)
    async def reject(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: the account is not let in."""
        return await users.decide(user_id, "reject")

    @post("/{user_id:uuid}/reject-provider", guards=[internal(["admin"])], status_code=200)
    async def reject_provider(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: the account does not get the provider's role."""
        return await users.decide(user_id, "reject-provider")

    @post("/{user_id:uuid}/suspend", guards=[internal(["admin"])], status_code=200)
    async def suspend(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: the account may do nothing any more; its sessions end."""
        return await users.decide(user_id, "suspend")

    @post("/{user_id:uuid}/restore", guards=[internal(["admin"])], status_code=200)
    async def restore(self, user_id: UUID, data: schemas.Decide, users: Users) -> schemas.Decided:
        """A branch: a suspended account is active again."""
        return await users.decide(user_id, "restore")
