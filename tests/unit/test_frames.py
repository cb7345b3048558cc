"""Frames: `feature` and `context` in every form, entered and left in every order."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from fluxgate_mw import ambient, context, current, diagnostics, feature
from fluxgate_mw.errors import ConfigurationError


def name() -> str | None:
    return current().feature


@feature("sync")
def plain(a: int, b: str = "x") -> str | None:
    """Plain."""
    return name()


@feature("coroutine")
async def coroutine(a: int) -> str | None:
    await anyio.lowlevel.checkpoint()
    return name()


@feature("generator")
def generator(n: int) -> Iterator[str | None]:
    for _ in range(n):
        yield name()


@feature("async generator")
async def async_generator(n: int) -> AsyncIterator[str | None]:
    for _ in range(n):
        yield name()


def test_a_decorated_function_runs_inside_the_feature_and_leaves_it() -> None:
    """Inside the function the feature is on, after it it is off."""
    assert plain(1) == "sync"
    assert name() is None


def test_an_empty_name_names_nothing() -> None:
    """As what a resolver gives: no page could show or select it. What else is set holds."""
    unnamed = feature("", team="search")(lambda: ambient.get().resolved())
    assert (unnamed().feature, unnamed().feature_source, unnamed().metadata) == (None, "none", {"team": "search"})
    with feature("outer"), feature(""), context(feature="", step="s"):
        assert name() == "outer"
        assert unnamed().feature_source == "context"


@pytest.mark.anyio
async def test_a_decorated_coroutine_function_runs_inside_the_feature() -> None:
    """Across an await too."""
    assert await coroutine(1) == "coroutine"
    assert name() is None


def test_a_decorated_generator_is_inside_at_each_step_and_outside_in_between() -> None:
    """The consumer never sees the generator's feature."""
    steps = generator(2)
    assert next(steps) == "generator"
    assert name() is None
    with feature("consumer"):
        assert next(steps) == "generator"
        assert name() == "consumer"
    assert name() is None


@pytest.mark.anyio
async def test_a_decorated_async_generator_is_inside_at_each_step_and_outside_in_between() -> None:
    """The consumer never sees the generator's feature."""
    async for seen in async_generator(3):
        assert seen == "async generator"
        assert name() is None


def test_kind_signature_and_annotations_stay_as_they_were() -> None:
    """What frameworks look at is unchanged."""
    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert not inspect.iscoroutinefunction(plain)
    assert str(inspect.signature(plain)) == "(a: 'int', b: 'str' = 'x') -> 'str | None'"
    assert inspect.get_annotations(plain, eval_str=True) == {"a": int, "b": str, "return": str | None}
    assert (plain.__name__, plain.__doc__, plain.__module__) == ("plain", "Plain.", __name__)


class Methods:
    """Every kind of method."""

    @feature("method")
    def method(self) -> str | None:
        return name()

    @feature("over static")
    @staticmethod
    def over_static() -> str | None:
        return name()

    @staticmethod
    @feature("under static")
    def under_static() -> str | None:
        return name()

    @feature("over class")
    @classmethod
    def over_class(cls) -> tuple[str | None, type]:
        return name(), cls

    @classmethod
    @feature("under class")
    def under_class(cls) -> tuple[str | None, type]:
        return name(), cls

    @feature("async method")
    async def async_method(self) -> str | None:
        return name()


@pytest.mark.anyio
async def test_methods_static_methods_and_class_methods_work_in_either_order() -> None:
    """As under or over `staticmethod` and `classmethod`."""
    methods = Methods()
    assert methods.method() == "method"
    assert (methods.over_static(), Methods.over_static()) == ("over static", "over static")
    assert (methods.under_static(), Methods.under_static()) == ("under static", "under static")
    assert (methods.over_class(), Methods.over_class()) == (("over class", Methods), ("over class", Methods))
    assert Methods.under_class() == ("under class", Methods)
    assert await methods.async_method() == "async method"


@feature("class")
class View:
    """A class-based view."""

    def get(self) -> str | None:
        return name()

    async def post(self) -> str | None:
        return name()

    @feature("innermost")
    def put(self) -> str | None:
        return name()

    @classmethod
    def make(cls) -> View:
        return cls()

    def _private(self) -> str | None:
        return name()

    class Nested:
        """Left alone."""


@pytest.mark.anyio
async def test_a_decorated_class_is_the_same_class_with_its_methods_inside() -> None:
    """The innermost decoration wins; private methods and attributes are left alone."""
    assert isinstance(View, type)
    view = View.make()
    assert view.get() == "class"
    assert await view.post() == "class"
    assert view.put() == "innermost"
    assert view._private() is None
    assert View.Nested.__doc__ == "Left alone."
    assert inspect.iscoroutinefunction(View.post)


class AsyncCallable:
    """A callable object whose call is a coroutine function."""

    async def __call__(self) -> str | None:
        return name()


class CallableObject:
    """A callable object."""

    def __call__(self) -> str | None:
        return name()


@pytest.mark.anyio
async def test_callable_objects_and_partials_keep_the_feature() -> None:
    """Async ones are seen as coroutine functions; partials of each kind work."""
    wrapped = feature("object")(AsyncCallable())
    assert inspect.iscoroutinefunction(wrapped)
    assert await wrapped() == "object"
    assert feature("object")(CallableObject())() == "object"
    assert await feature("partial")(functools.partial(Methods.async_method, Methods()))() == "async method"
    assert feature("partial")(functools.partial(lambda _x: name(), 1))() == "partial"


@pytest.mark.anyio
async def test_a_plain_function_that_returns_a_generator_or_coroutine_keeps_the_feature() -> None:
    """The steps and the await happen after the function has returned."""

    async def steps() -> AsyncIterator[str | None]:
        yield name()

    async def later() -> str | None:
        return name()

    assert list(feature("made")(lambda: (name() for _ in range(2)))()) == ["made", "made"]
    assert [x async for x in feature("made")(steps)()] == ["made"]
    assert [x async for x in feature("made")(lambda: steps())()] == ["made"]  # noqa: PLW0108
    assert await feature("made")(lambda: later())() == "made"  # noqa: PLW0108


def test_the_innermost_feature_wins_and_leaving_restores_the_outer_one() -> None:
    """With `with`, over any depth."""
    with feature("outer", step="one", team="a"):
        with feature("inner", step="two", team="b", extra=1):
            top = ambient.get()
            assert (top.feature, top.step, top.metadata) == ("inner", "two", {"team": "b", "extra": 1})
        top = ambient.get()
        assert (top.feature, top.step, top.metadata) == ("outer", "one", {"team": "a"})
    assert ambient.get() is ambient.NOTHING


@pytest.mark.anyio
async def test_two_features_gathered_and_one_instance_shared_by_tasks_do_not_mix() -> None:
    """Each task has its own, also where all enter the same object."""
    shared = feature("shared")

    async def inside(frame: feature) -> str | None:
        async with frame:
            await anyio.lowlevel.checkpoint()
            return name()

    assert await asyncio.gather(*(inside(frame) for frame in (feature("a"), shared, feature("b"), shared))) == [
        "a",
        "shared",
        "b",
        "shared",
    ]
    assert name() is None


def test_one_instance_entered_inside_itself_is_left_step_by_step() -> None:
    """Re-entrance."""
    frame = feature("again")
    with frame:
        with frame:
            assert name() == "again"
        assert name() == "again"
    assert name() is None


def test_frames_left_in_the_wrong_order_never_uncover_a_foreign_one() -> None:
    """Leaving one that is not on top changes nothing."""
    outer, inner = feature("outer"), feature("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert name() == "inner"
    inner.__exit__(None, None, None)
    assert name() == "outer"
    outer.__exit__(None, None, None)
    assert name() is None


def test_a_context_inside_a_decorated_generator_is_there_again_at_each_step() -> None:
    """What a step leaves on top is there at its next one, and nowhere else."""

    @feature("steps")
    def steps() -> Iterator[str | None]:
        yield name()
        with feature("inner"):
            yield name()
            yield name()
        yield name()

    running = steps()
    seen = []
    for value in running:
        seen.append(value)
        assert name() is None
    assert seen == ["steps", "inner", "inner", "steps"]


@pytest.mark.anyio
async def test_a_context_across_yield_of_an_undecorated_async_generator_is_left_again() -> None:
    """Entered in one step and left in another of the same context: nothing stays bound."""

    async def steps() -> AsyncIterator[str | None]:
        with feature("inner"):
            yield name()
            yield name()

    assert [seen async for seen in steps()] == ["inner", "inner"]
    assert name() is None


def test_send_throw_close_and_the_return_value_pass_through_a_decorated_generator() -> None:
    """As `yield from` would."""
    seen: list[object] = []

    @feature("talk")
    def talk() -> Iterator[object]:
        try:
            seen.append((yield name()))
            yield name()
        except KeyError as error:
            seen.append((type(error), name()))
            yield "caught"
        finally:
            seen.append(("closed", name()))
        return "value"

    running = talk()
    assert next(running) == "talk"
    assert running.send("sent") == "talk"
    assert running.throw(KeyError("x")) == "caught"
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "value"
    closing = talk()
    next(closing)
    closing.close()
    assert seen == ["sent", (KeyError, "talk"), ("closed", "talk"), ("closed", "talk")]
    assert name() is None


@pytest.mark.anyio
async def test_asend_athrow_and_aclose_pass_through_a_decorated_async_generator() -> None:
    """As without us."""
    seen: list[object] = []

    @feature("talk")
    async def talk() -> AsyncIterator[object]:
        try:
            seen.append((yield name()))
            yield name()
        except KeyError:
            seen.append(name())
            yield "caught"
        finally:
            await anyio.lowlevel.checkpoint()
            seen.append(("closed", name()))

    running = talk()
    assert await anext(running) == "talk"
    assert await running.asend("sent") == "talk"
    assert await running.athrow(KeyError("x")) == "caught"
    await running.aclose()
    assert seen == ["sent", "talk", ("closed", "talk")]
    assert name() is None


def test_a_generator_abandoned_and_collected_under_another_feature_changes_nothing_there() -> None:
    """Collected during another's request: its own cleanup sees its own feature, the other keeps its own."""
    seen: list[str | None] = []

    @feature("abandoned")
    def steps() -> Iterator[None]:
        try:
            yield
        finally:
            seen.append(name())

    running = steps()
    next(running)
    with feature("other"):
        del running
        gc.collect()
        assert name() == "other"
    assert seen == ["abandoned"]


@pytest.mark.anyio
async def test_an_async_generator_finalised_in_another_context_changes_nothing_there() -> None:
    """`open-telemetry/opentelemetry-python#2606`: no token is ever reset elsewhere, nothing is raised.

    openlit/openlit#1369, open-telemetry/opentelemetry-python-contrib#3937.
    """

    @feature("elsewhere")
    async def steps() -> AsyncIterator[str | None]:
        with feature("inside"):
            yield name()

    running = steps()
    assert await asyncio.create_task(anext(running)) == "inside"  # type: ignore[arg-type]
    with feature("here"):
        await asyncio.create_task(running.aclose(), context=contextvars.Context())  # type: ignore[attr-defined]
        assert name() == "here"
    assert name() is None


def test_what_a_decorated_function_raises_passes_and_the_feature_is_left() -> None:
    """The same object, nothing around it."""
    boom = ValueError("boom")

    @feature("raises")
    def raises() -> None:
        raise boom

    with pytest.raises(ValueError, match="boom") as raised:
        raises()
    assert raised.value is boom
    assert name() is None


def test_context_merges_metadata_restores_and_ignores_what_is_no_user() -> None:
    """Fields that are not given are the outer ones."""
    with context(user="u1", session_id="s", metadata={"a": 1, "b": 1}):
        with context(metadata={"b": 2}, conversation_id="c", user=object()):
            now = current()
            assert (now.user and now.user.id, now.session_id, now.conversation_id) == ("u1", "s", "c")
            assert ambient.get().metadata == {"a": 1, "b": 2}
        assert current().conversation_id is None
    assert current().user is None


@pytest.mark.parametrize("odd", [5, "text", [1, 2], object()])
def test_metadata_that_is_no_mapping_is_noted_and_ignored(odd: Any) -> None:
    """The block runs, with the metadata of the outer one."""
    with context(metadata={"a": 1}), context(metadata=odd, step="s"):
        assert (ambient.get().metadata, ambient.get().step) == ({"a": 1}, "s")
    assert diagnostics.counts() == {"context_no_metadata": 1}


@pytest.mark.anyio
async def test_context_decorates_functions_as_feature_does() -> None:
    """Sync, async and generators."""

    @context(user="u2", feature="f")
    async def handler() -> tuple[str | None, str | None]:
        now = current()
        return now.user and now.user.id, now.feature

    assert await handler() == ("u2", "f")
    assert list(context(step="s")(generator)(1)) == ["generator"]


def test_the_source_says_whether_the_feature_came_from_a_decorator_or_a_block() -> None:
    """`decorator` or `context`."""
    assert feature("d")(lambda: ambient.get().feature_source)() == "decorator"
    with feature("c"):
        assert ambient.get().feature_source == "context"


def test_a_frame_that_was_lost_between_two_steps_is_said_once() -> None:
    """A sync generator whose steps run in contexts of their own, as a thread pool gives them: decorating mends it."""

    def undecorated() -> Iterator[str | None]:
        with feature("lost"):
            yield name()
            yield name()

    @feature("kept")
    def decorated() -> Iterator[str | None]:
        yield name()
        yield name()

    def streamed(steps: Iterator[str | None]) -> list[str | None]:
        seen = []
        while (step := contextvars.copy_context().run(next, steps, "end")) != "end":
            seen.append(step)
        return seen

    assert streamed(decorated()) == ["kept", "kept"]
    assert diagnostics.counts() == {}
    assert streamed(undecorated()) == ["lost", None]
    assert diagnostics.counts() == {"frame_lost": 1}


def test_leaving_in_the_wrong_order_or_on_abandonment_is_no_lost_frame() -> None:
    """Only a block that went on without its frame is."""
    outer, inner = feature("outer"), feature("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)

    def steps() -> Iterator[None]:
        with feature("abandoned"):
            yield

    running = steps()
    contextvars.copy_context().run(next, running)
    running.close()  # type: ignore[attr-defined]
    assert diagnostics.counts() == {}


def test_a_decorator_without_a_name_says_how_to_write_it():
    """The classic slip fails where the function is defined."""
    with pytest.raises(ConfigurationError, match=r"write @feature\(\"name\"\)"):

        @feature
        def summarize() -> None: ...


def test_a_name_that_cannot_be_compared_does_not_raise_in_the_host() -> None:
    """What is no text is not asked whether it is empty: its answer may be an error, as an array's is."""

    class Incomparable:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value is ambiguous")

    given: Any = Incomparable()
    with context(feature=given), feature(given):
        assert current().feature is given
