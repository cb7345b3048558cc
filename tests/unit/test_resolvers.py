"""Resolvers that misbehave, and users of every shape: the call goes on, counted, said once per kind."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.authentication import SimpleUser, UnauthenticatedUser

from fluxgate_mw import FluxGateMiddleware, FluxGateWSGIMiddleware, User, current, diagnostics, identify
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.testing import capture_events
from fluxgate_mw.trust import TrustedProxies
from fluxgate_mw.users import as_user, signed_in
from tests.asking import ask, who


def raising(_carrier: object) -> object:
    raise RuntimeError("sk-secret")


def slow(_carrier: object) -> object:
    time.sleep(0.008)
    return "ada"


async def coroutine(_carrier: object) -> object:
    return "ada"


class Raises:
    """Every attribute raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("detached")


class RaisesMail:
    """Its id is good."""

    id = "ada"

    @property
    def email(self) -> str:
        raise RuntimeError("detached")


def asked_with(**options: Any) -> list[tuple[str | None, str | None]]:
    """Return user and feature of two calls of one request under a resolver."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask()
        ask()

    async def nothing(*_: Any) -> Any:
        return None

    with capture_events() as events:
        asyncio.run(
            FluxGateMiddleware(app, **options)(
                {"type": "http", "method": "GET", "path": "/", "headers": []}, nothing, nothing
            )
        )
    return [who(event) for event in events]


@pytest.mark.parametrize(
    ("resolver", "kind", "user"),
    [
        (raising, "resolver_raised", None),
        (slow, "resolver_slow", "ada"),
        (coroutine, "resolver_coroutine", None),
        (lambda _c: 3.5, "resolver_value", None),
        (lambda _c: object(), "resolver_value", None),
        (lambda _c: {"name": "no id"}, "resolver_value", None),
        (lambda _c: {"id": object()}, "resolver_value", None),
        (lambda _c: {"id": ["a"]}, "resolver_value", None),
        (lambda _c: "x" * 10_000, "resolver_value", None),
        (lambda _c: Raises(), "user_attribute", None),
        (lambda _c: RaisesMail(), "user_attribute", "ada"),
    ],
)
def test_a_user_resolver_that_misbehaves_costs_only_the_user(
    resolver: Callable[[Any], Any], kind: str, user: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted each time, logged once, and the log holds nothing of what was raised."""
    assert asked_with(resolve_user=resolver) == [(user, None)] * 2
    assert diagnostics.counts()[kind] >= 1
    said = [record for record in caplog.records if getattr(record, "fluxgate_kind", "") == kind]
    assert len(said) == 1
    assert "sk-secret" not in caplog.text


@pytest.mark.parametrize(
    ("resolver", "kind", "name"),
    [
        (raising, "resolver_raised", None),
        (slow, "resolver_slow", "ada"),
        (coroutine, "resolver_coroutine", None),
        (lambda _c: 5, "resolver_value", None),
        (lambda _c: "", None, None),
        (lambda _c: None, None, None),
    ],
)
def test_a_feature_resolver_that_misbehaves_costs_only_the_feature(
    resolver: Callable[[Any], Any], kind: str | None, name: str | None
) -> None:
    """The same rules."""
    assert asked_with(resolve_feature=resolver) == [(None, name)] * 2
    assert kind is None or diagnostics.counts()[kind] >= 1


def test_a_resolver_is_asked_again_until_it_knows_and_not_at_all_without_a_call() -> None:
    """Unknown is never kept; known is."""
    answers: list[object] = [None, "ada"]
    assert asked_with(resolve_user=lambda _scope: answers.pop(0)) == [(None, None), ("ada", None)]
    assert answers == []


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("ada", "ada"),
        (5, "5"),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (User("ada"), "ada"),
        ({"id": 5}, "5"),
        (SimpleNamespace(id="ada"), "ada"),
        (SimpleNamespace(id=0), "0"),
        ("", None),
        (None, None),
        (True, None),
        (b"ada", None),
        (1.5, None),
        ([], None),
        (SimpleNamespace(id=None), None),
        (SimpleNamespace(id=True), None),
        (SimpleNamespace(id=""), None),
        (SimpleNamespace, None),
        (User(""), None),
    ],
)
def test_what_is_a_user(value: object, key: str | None) -> None:
    """Text, numbers, UUIDs, and what has such an `id`; nothing else."""
    user = as_user(value)
    assert (user and user.id) == key


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "email", "monthly_revenue"]), inner),
    )
)
def test_no_value_makes_it_raise_or_guess(value: object) -> None:
    """Whatever an application has for a user."""
    user = as_user(value)
    assert user is None or (0 < len(user.id) <= 256)


def test_users_of_frameworks_and_their_placeholders_for_nobody() -> None:
    """`SimpleUser.identity` raises; an anonymous one is nobody."""
    assert signed_in(SimpleUser("ada")) == User("ada", name="ada")
    assert signed_in(UnauthenticatedUser()) is None
    assert signed_in(SimpleNamespace(is_authenticated=False, id=5)) is None
    assert signed_in(SimpleNamespace(username="x" * 1000)) is None


def test_identify_outside_a_request_and_with_what_is_no_user_is_counted() -> None:
    """And nothing else happens."""
    identify("ada")
    assert current().user is None
    assert diagnostics.counts()["identify_outside_request"] == 1


@pytest.mark.parametrize("sources", [["cookie"], "scope"])
def test_a_user_source_that_does_not_exist_is_said_at_start(sources: Any) -> None:
    """With those that do."""
    with pytest.raises(ConfigurationError, match="user_sources"):
        FluxGateMiddleware(lambda *_: None, user_sources=sources)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"user_sources": "scope"}, "user_sources: expected a list, not the text 'scope'"),
        ({"resolve_user": "ada"}, "resolve_user: expected a callable, not a str"),
        ({"resolve_feature": 1}, "resolve_feature: expected a callable, not a int"),
        ({"trusted": ["10.0.0.0/8"]}, "trusted: expected a TrustedProxies, not a list"),
    ],
)
@pytest.mark.parametrize("middleware", [FluxGateMiddleware, FluxGateWSGIMiddleware])
def test_an_option_of_the_wrong_kind_fails_where_it_is_given(middleware, option, says):
    """And not at the first call, nor in the middle of us."""
    with pytest.raises(ConfigurationError, match=says):
        middleware(lambda *_: None, **option)


@pytest.mark.parametrize("networks", [[], "10.0.0.1", ["nonsense"]])
def test_a_proxy_that_is_not_named_is_said_at_start(networks: Any) -> None:
    """In one line."""
    with pytest.raises(ConfigurationError, match="networks"):
        TrustedProxies(networks)


PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8", "unix"], user_header="X-User", remote_user=True, request_id=True)


@pytest.mark.parametrize(
    ("carrier", "user"),
    [
        ({"client": ("10.1.2.3", 1), "headers": [(b"x-user", b"ada")]}, "ada"),
        ({"client": ("fd00::1", 1), "headers": [(b"X-User", b"ada")]}, "ada"),
        ({"client": ("::ffff:10.1.2.3", 1), "headers": [(b"x-user", b"ada")]}, "ada"),
        ({"client": ("::ffff:11.0.0.1", 1), "headers": [(b"x-user", b"ada")]}, None),
        ({"client": None, "headers": [(b"x-user", b"ada")]}, "ada"),
        ({"client": ("11.0.0.1", 1), "headers": [(b"x-user", b"ada")]}, None),
        ({"client": ("not an address", 1), "headers": [(b"x-user", b"ada")]}, None),
        ({"client": ("10.1.2.3", 1), "headers": [(b"x-user", b"ada"), (b"x-user", b"eve")]}, None),
        ({"client": ("10.1.2.3", 1), "headers": [(b"x-user", b"ada,eve")]}, None),
        ({"client": ("10.1.2.3", 1), "headers": [(b"x_user", b"eve")]}, None),
        ({"client": ("10.1.2.3", 1), "headers": []}, None),
        ({"REMOTE_ADDR": "10.1.2.3", "HTTP_X_USER": "ada"}, "ada"),
        ({"REMOTE_ADDR": "::ffff:10.1.2.3", "HTTP_X_USER": "ada"}, "ada"),
        ({"REMOTE_ADDR": "", "HTTP_X_USER": "ada"}, "ada"),
        ({"REMOTE_ADDR": "11.0.0.1", "HTTP_X_USER": "ada", "REMOTE_USER": "ada"}, None),
        ({"REMOTE_ADDR": "10.1.2.3", "HTTP_X_USER": "ada,eve"}, None),
        ({"REMOTE_ADDR": "10.1.2.3", "REMOTE_USER": "ada"}, "ada"),
        ({"REMOTE_ADDR": "10.1.2.3", "REMOTE_USER": "ada, eve"}, None),
    ],
)
def test_only_what_a_trusted_proxy_says_once_is_believed(carrier: Any, user: str | None) -> None:
    """Duplicates are rejected, and so is what comes from anywhere else."""
    known = PROXIES.user(carrier)
    assert (known and known.id) == user


def test_what_is_not_turned_on_is_not_believed_of_a_trusted_proxy_either() -> None:
    """Each by itself."""
    quiet = TrustedProxies(["10.0.0.1"])
    carrier: Any = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_USER": "a", "REMOTE_USER": "a", "HTTP_X_REQUEST_ID": "i"}
    assert (quiet.user(carrier), quiet.request_id(carrier)) == (None, None)


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ([(b"x-request-id", b"abc")], "abc"),
        ([(b"x-request-id", b"a b\n")], None),
        ([(b"x-request-id", b"x" * 200)], None),
        ([(b"x-request-id", b"a"), (b"x-request-id", b"b")], None),
        ([(b"traceparent", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01")], None),
        ([(b"traceparent", b"nonsense")], None),
    ],
)
def test_a_request_id_of_odd_shape_is_none(headers: Any, request_id: str | None) -> None:
    """Then one is made."""
    assert PROXIES.request_id({"client": ("10.0.0.1", 1), "headers": headers}) == request_id
