"""Cursors cannot be forged, settings say what is wrong with them, problems say what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from sqlalchemy.exc import OperationalError

from coordinator.protocol.errors import LockConflict, OutcomeUnknown, TransactionRolledBack, UnmanagedTable
from coordinator.protocol.tokens import SigningKey
from services.kit.paging import Cursors, page_of
from services.kit.problems import Problem, problem_for
from services.kit.runtime import Runtime
from services.kit.settings import Settings, SettingsError
from services.pet.config import SPEC

CURSORS = Cursors(b"secret")
WHERE = (datetime(2026, 11, 23, tzinfo=UTC), UUID(int=7))


def test_a_cursor_comes_back_as_the_position_it_was_made_from() -> None:
    """Instants and ids survive the round trip."""
    assert CURSORS.decode(CURSORS.encode(WHERE), tuple[datetime, UUID]) == WHERE
    assert CURSORS.decode(None, tuple[datetime, UUID]) is None


@pytest.mark.parametrize(
    "cursor", ["", "x", "AAAA", Cursors(b"other").encode(WHERE), CURSORS.encode(WHERE)[:-3] + "zzz"]
)
def test_a_cursor_that_is_not_ours_is_refused(cursor: str) -> None:
    """Noise, a cut cursor and one signed with another key are a 400 that says to start again."""
    with pytest.raises(Problem, match="bad-cursor"):
        CURSORS.decode(cursor, tuple[datetime, UUID])


def test_only_a_page_with_more_behind_it_has_a_cursor() -> None:
    """The extra row is not shown; it only tells that there is a next page."""
    assert page_of([1, 2, 3], 2, CURSORS, lambda row: (row,)).items == [1, 2]
    assert page_of([1, 2, 3], 2, CURSORS, lambda row: (row,)).next_cursor == CURSORS.encode((2,))
    assert page_of([1, 2], 2, CURSORS, lambda row: (row,)).next_cursor is None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The least that a service must be told, with its keys."""
    key = SigningKey.generate("pet/1")
    (tmp_path / "key.jwk").write_text(key.private_jwk())
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.public_jwk()]}))
    return {
        "PAWSTAY_SERVICE": "pet",
        "PAWSTAY_PORT": "8084",
        "PAWSTAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "PAWSTAY_KEY_FILE": str(tmp_path / "key.jwk"),
        "PAWSTAY_KEYS_FILE": str(tmp_path / "keys.json"),
    }


def test_settings_are_read_from_the_environment(environment: dict[str, str]) -> None:
    """Lists and maps are JSON, switches are on and off."""
    settings = Settings.from_env(
        {
            **environment,
            "PAWSTAY_LOG_LEVEL": "debug",
            "PAWSTAY_REDLOCK": "off",
            "PAWSTAY_LOCK_REDIS_URLS": '["redis://a", "redis://b"]',
            "PAWSTAY_SERVICE_URLS": '{"pet": "http://pet:8082/"}',
            "HOME": "/root",
        }
    )
    assert (settings.port, settings.redlock, settings.log_level) == (8084, False, "DEBUG")
    assert str(settings.key_file) == environment["PAWSTAY_KEY_FILE"]
    assert settings.lock_redis_urls == ["redis://a", "redis://b"]
    assert settings.url_of("pet") == "http://pet:8082"
    with pytest.raises(SettingsError, match="payment"):
        settings.url_of("payment")


def test_wrong_settings_name_the_variable() -> None:
    """Each wrong or missing variable has a line of its own."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"PAWSTAY_SERVICE": "order", "PAWSTAY_PORT": "many"})
    assert "PAWSTAY_PORT" in str(caught.value)
    assert "PAWSTAY_KEY_FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PAWSTAY_PORT", "0"),
        ("PAWSTAY_PORT", "65536"),
        ("PAWSTAY_POOL_SIZE", "0"),
        ("PAWSTAY_PAY_WINDOW_S", "-1"),
        ("PAWSTAY_PAY_WINDOW_S", "2147484"),
        ("PAWSTAY_EARLY_CHECK_IN_DAYS", "-1"),
        ("PAWSTAY_LOG_LEVEL", "LOUD"),
        ("PAWSTAY_DATABASE_URL", "nonsense"),
        ("PAWSTAY_REDIS_URL", "127.0.0.1:6379"),
        ("PAWSTAY_SERVICE_URLS", "[1]"),
        ("PAWSTAY_SHARD_URLS", "{"),
        ("PAWSTAY_KEY_FILE", "/nowhere/key.jwk"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_one_line(
    environment: dict[str, str], variable: str, value: str
) -> None:
    """What would only fail later, or in a traceback, is named before anything starts."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({**environment, variable: value})
    assert str(caught.value).startswith(f"{variable}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["PAWSTAY_KEY_FILE", "PAWSTAY_KEYS_FILE"])
@pytest.mark.parametrize("content", ["", "{}", '{"keys": [{}]}', '{"kty": "oct", "k": "AA", "kid": "pet/1"}'])
def test_a_file_without_usable_keys_is_named(environment: dict[str, str], variable: str, content: str) -> None:
    """Whatever is wrong with it, the start says which file it was."""
    Path(environment[variable]).write_text(content)
    with pytest.raises(SettingsError, match=variable):
        Runtime(SPEC, Settings.from_env(environment))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (LockConflict("busy", UUID(int=1)), 409, "lock-busy"),
        (TransactionRolledBack("no", "timed_out"), 503, "tx-rolled-back"),
        (OutcomeUnknown("?"), 503, "tx-outcome-unknown"),
        (OperationalError("SELECT 1", {}, OSError("refused")), 503, "database-unavailable"),
        (ConnectionRefusedError(), 503, "dependency-unavailable"),
    ],
)
def test_operating_errors_become_problems(error: Exception, status: int, code: str) -> None:
    """What may happen in operation has a status and a code."""
    problem = problem_for(error)
    assert problem is not None
    assert (problem.status, problem.code) == (status, code)


@pytest.mark.parametrize("nested", ["[" * 5000, '{"a":' * 5000])
def test_a_body_that_is_nested_too_deeply_is_the_callers_to_change(nested: str) -> None:
    """What the decoder of bodies raises for it is a 400; a recursion of our own stays a bug."""
    with pytest.raises(RecursionError) as caught:
        msgspec.json.decode(nested)
    problem = problem_for(caught.value)
    assert problem is not None
    assert (problem.status, problem.code) == (400, "invalid-request")
    assert problem_for(RecursionError("maximum recursion depth exceeded")) is None


@pytest.mark.parametrize("bug", [ValueError("x"), UnmanagedTable("log"), ZeroDivisionError()])
def test_bugs_are_no_problems(bug: Exception) -> None:
    """What must not happen is not dressed up as an answer."""
    assert problem_for(bug) is None
