"""The WSGI middleware beneath every framework: bodies of every kind, read in every way."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest

from fluxgate_mw import FluxGateWSGIMiddleware, ambient, context, current
from fluxgate_mw.testing import capture_events
from fluxgate_mw.trust import TrustedProxies
from tests.asking import ask, who


def environ(user: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a request's environ; `user` is who its proxy says is signed in."""
    made: dict[str, Any] = {"REMOTE_ADDR": "127.0.0.1", **more}
    if user is not None:
        made["HTTP_X_USER"] = user
    setup_testing_defaults(made)
    return made


def ignore(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
    """A server's `start_response`."""
    return lambda _chunk: None


TRUSTED = TrustedProxies(["127.0.0.1"], user_header="X-User")


def served(app: Any, **options: Any) -> FluxGateWSGIMiddleware:
    """Return `app` behind ours, which knows its users by a trusted header."""
    return FluxGateWSGIMiddleware(app, trusted=TRUSTED, **options)


def streaming(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Make a call at each step and at the close."""
    start_response("200 OK", [])
    try:
        for _ in range(3):
            ask()
            yield b"x"
    finally:
        ask()


def test_the_method_is_known_where_no_route_is() -> None:
    """Also at a step of the body; a word of the client's own is none."""
    for method, known in (("DELETE", "DELETE"), ("BREW-1234", "OTHER")):
        with capture_events() as events:
            body = served(streaming)(environ(REQUEST_METHOD=method), ignore)
            list(body)
            body.close()  # type: ignore[attr-defined]
        assert [(event.route, event.http_method) for event in events] == [(None, known)] * 4


@pytest.mark.survival("bare WSGI", "sync handler")
def test_lists_and_tuples_are_returned_untouched() -> None:
    """Nothing is left to run; the calls were made while the application was called."""
    for body in ([b"x"], (b"x",)):

        def app(environ: Any, start_response: Any, body: Iterable[bytes] = body) -> Iterable[bytes]:
            start_response("200 OK", [])
            ask()
            return body

        with capture_events() as events:
            assert served(app)(environ("ada"), ignore) is body
        assert [who(event) for event in events] == [("ada", None)]
        assert ambient.get() is ambient.NOTHING


def test_the_servers_own_file_wrapper_is_returned_untouched(tmp_path: Any) -> None:
    """Servers look at its class to send the file themselves."""
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open("rb") as file:
        wrapped = FileWrapper(file)

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return wrapped

        assert served(app)(environ(**{"wsgi.file_wrapper": FileWrapper}), ignore) is wrapped


@pytest.mark.survival("bare WSGI", "streamed body, sync")
def test_interleaved_bodies_in_one_thread_keep_their_own_users() -> None:
    """As gevent and some test clients read them."""
    app = served(streaming)
    with capture_events() as events:
        bodies: list[Any] = [app(environ(user), ignore) for user in ("ada", "bob", None)]
        iterators = [iter(body) for body in bodies]
        for _ in range(3):
            for iterator in iterators:
                next(iterator)
                assert ambient.get() is ambient.NOTHING
        for body in reversed(bodies):
            body.close()
    assert [event.user and event.user.id for event in events] == ["ada", "bob", None] * 3 + [None, "bob", "ada"]


@pytest.mark.survival("bare WSGI", "close() in another thread")
def test_steps_and_close_in_other_threads_keep_the_user() -> None:
    """And leave nothing bound in any of them."""
    left: list[object] = []

    def elsewhere(step: Callable[[], object]) -> None:
        def run() -> None:
            step()
            left.append(ambient.get())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    with capture_events() as events:
        body = served(streaming)(environ("ada"), ignore)
        elsewhere(lambda: next(iter(body)))
        elsewhere(lambda: next(iter(body)))
        elsewhere(body.close)  # type: ignore[attr-defined]
    assert [event.user and event.user.id for event in events] == ["ada"] * 3
    assert left == [ambient.NOTHING] * 3


def test_a_body_that_is_never_iterated_or_never_closed_leaves_nothing_behind() -> None:
    """Its request goes with it."""
    contexts: list[weakref.ref[Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        contexts.append(weakref.ref(environ["fluxgate"]))
        return streaming(environ, start_response)

    with capture_events():
        served(app)(environ("ada"), ignore)
        next(iter(served(app)(environ("ada"), ignore)))
    gc.collect()
    assert [context() for context in contexts] == [None, None]
    assert ambient.get() is ambient.NOTHING


def test_a_context_inside_a_streamed_body_is_there_again_at_its_next_step() -> None:
    """And gone in between."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        with context(feature="inner"):
            yield str(current().feature).encode()
            yield str(current().feature).encode()
        yield str(current().feature).encode()

    body = served(app)(environ("ada"), ignore)
    seen = []
    for chunk in body:
        assert current().feature is None
        seen.append(chunk)
    assert seen == [b"inner", b"inner", b"None"]


def test_an_application_that_raises_ends_its_request() -> None:
    """The same exception, nothing left bound."""
    boom = ValueError("boom")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise boom

    given = environ("ada")
    with pytest.raises(ValueError, match="boom") as raised:
        served(app)(given, ignore)
    assert raised.value is boom
    assert "fluxgate" not in given
    assert ambient.get() is ambient.NOTHING


def test_write_and_exc_info_reach_the_server() -> None:
    """The callable that `start_response` returns is the server's own."""
    got: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = "none given", /) -> Callable[[bytes], object]:
        got.append((status, exc_info))
        return got.append

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"written")
        error = ValueError()
        start_response("500 NO", [], (ValueError, error, None))
        return []

    assert served(app)(environ(), start_response) == []
    assert got[:2] == [("200 OK", "none given"), b"written"]
    assert got[2][1][0] is ValueError


def test_the_middleware_twice_makes_one_request() -> None:
    """The inner one steps aside."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        ask()
        return [str(current().calls).encode()]

    with capture_events() as events:
        assert served(served(app))(environ("ada"), ignore) == [b"1"]
    assert who(events[0])[0] == "ada"


def test_the_cost_is_told_in_a_header_and_in_a_last_comment_of_an_event_stream() -> None:
    """Off by default; a stream whose last line is open is left alone."""
    sent: list[list[tuple[str, str]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        sent.append(headers)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        ask()
        start_response("200 OK", [("Content-Type", environ["TYPE"])])
        return iter([b"data: 1\n\n", environ["LAST"]])

    def read(content_type: str, last: bytes, **options: Any) -> bytes:
        with capture_events():
            return b"".join(served(app, **options)(environ(TYPE=content_type, LAST=last), start_response))

    plain = read("text/plain", b"end", cost_header=True)
    stream = read("text/event-stream; charset=utf-8", b"data: 2\n\n", cost_header=True)
    opened = read("text/event-stream", b"data: 3", cost_header=True)
    off = read("text/event-stream", b"data: 2\n\n")
    assert (plain, opened, off) == (b"data: 1\n\nend", b"data: 1\n\ndata: 3", b"data: 1\n\ndata: 2\n\n")
    assert stream.startswith(b'data: 1\n\ndata: 2\n\n: llm;desc="1 call $0.0002";dur=')
    assert stream.endswith(b"\n")
    assert dict(sent[0])["Server-Timing"].startswith('llm;desc="1 call $0.0002";dur=')
    assert "Server-Timing" not in dict(sent[3])


@pytest.mark.parametrize("directly", [False, True])
def test_an_iterator_that_knows_only_its_next_step_is_read_to_its_end(directly: bool) -> None:  # noqa: FBT001
    """By `for`, and by `next` of the body itself; its error passes, and nothing stays bound."""

    class Steps:
        def __init__(self, *chunks: bytes) -> None:
            self._chunks = list(chunks)

        def __next__(self) -> bytes:
            ask()
            if not self._chunks:
                raise StopIteration
            if self._chunks[0] == b"error":
                raise KeyError
            return self._chunks.pop(0)

    class Odd:
        def __init__(self, *chunks: bytes) -> None:
            self._chunks = chunks

        def __iter__(self) -> Any:
            return Steps(*self._chunks)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Odd(b"a", b"b", *environ.get("more", ()))

    def read(body: Any) -> list[bytes]:
        if not directly:
            return list(body)
        return [next(body), next(body), *iter(lambda: next(body, b""), b"")]

    with capture_events() as events:
        assert read(served(app)(environ("ada"), ignore)) == [b"a", b"b"]
        assert [who(event) for event in events] == [("ada", None)] * 3
        with pytest.raises(KeyError):
            read(served(app)(environ("ada", more=(b"error",)), ignore))
    assert ambient.get() is ambient.NOTHING


def test_a_body_abandoned_in_between_its_steps_and_collected_elsewhere_changes_nothing_there() -> None:
    """During another's request, as a server leaves one whose client has gone."""
    with capture_events():
        body = served(streaming)(environ("ada"), ignore)
        iterator = iter(body)
        next(iterator)
        with context(feature="other"):
            del iterator, body
            gc.collect()
            assert current().feature == "other"
    assert ambient.get() is ambient.NOTHING
