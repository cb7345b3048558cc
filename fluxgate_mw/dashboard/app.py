"""The ASGI app of the dashboard: its routes, and what each page asks of the store."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from fluxgate_mw.dashboard import chart, export, filters, rows
from fluxgate_mw.dashboard import format as fmt
from fluxgate_mw.dashboard.access import Access, Authorize, Guard, HostCheck, SecurityHeaders
from fluxgate_mw.dashboard.filters import DIMENSIONS, QueryError, View
from fluxgate_mw.dashboard.render import STATIC_FOLDER, Renderer
from fluxgate_mw.errors import BackendError
from fluxgate_mw.event import UsageEvent
from fluxgate_mw.query import CostReport, CostRow, EventCursor, EventFilter, EventQuery
from fluxgate_mw.types import Store

__all__ = ["make_dashboard"]

_PAGE_TIMEOUT_S: Final = 20.0
_HEALTH_TIMEOUT_S: Final = 2.0
_MOST_ROWS: Final = 200
_FACET_VALUES: Final = 8
_LATEST: Final = 8
_NEIGHBOURS: Final = timedelta(minutes=15)
_MOST_NEIGHBOURS: Final = 200
_LAG, _STALE_S = "lag, s", 30.0
_YEAR_S: Final = 365 * 24 * 3600
_PLAIN: Final = {"Not Found": "There is no such page.", "Method Not Allowed": "This page can only be read."}


Trust = Callable[[], Mapping[str, object] | Awaitable[Mapping[str, object]]]
"""What the delivery says of events that the store does not hold."""


def _now() -> datetime:
    return datetime.now(UTC)


def make_dashboard(
    store: Store,
    *,
    authorize: Authorize | None = None,
    public: bool = False,
    token: str | None = None,
    allowed_hosts: Sequence[str] | None = None,
    trust: Trust | None = None,
    title: str = "fluxgate",
    clock: Callable[[], datetime] = _now,
) -> Starlette:
    """Return the dashboard as an ASGI app, to serve at `/` or to mount under a prefix of another app.

    Args:
        store: Where the events are; it is only read, and not closed.
        authorize: Called with each request for a page; what it returns (or awaits to) lets the request in or not.
        public: Nobody is asked; the Host header must then be a loopback name unless `allowed_hosts` says otherwise.
        token: Secret that lets a request in: as a bearer, or as `?token=`, which sets a cookie.
        allowed_hosts: Names that the Host header may have (`*`, `*.example.com`); None = see `public`, else all.
        trust: Returns or awaits to figures of the delivery for the trust strip (`dropped`, `queued`, ...); None = only
            the store's own.
        title: Name shown in the top bar.
        clock: What the time is, aware UTC.

    Raises:
        ConfigurationError: None of `authorize`, `public` and `token` is given, or they contradict each other.

    Concurrency: event loop only.
    """
    access = Access(authorize=authorize, token=token, public=public, hosts=allowed_hosts)
    pages = _Pages(store, Renderer(title), trust or dict, clock)
    guarded = [
        Route("/", pages.overview, name="overview"),
        Route("/requests", pages.requests, name="requests"),
        Route("/requests.json", pages.requests_json),
        Route("/requests/{event_id}", pages.event, name="event"),
        Route("/costs", pages.costs, name="costs"),
        Route("/costs.json", pages.costs_json),
    ]
    checked = [
        Route("/healthz", pages.healthz),
        Mount("/static", _Assets(directory=STATIC_FOLDER)),
        Mount("/", routes=guarded, middleware=[Middleware(Guard, access=access)]),
    ]
    return Starlette(
        routes=[Mount("/", routes=checked, middleware=[Middleware(HostCheck, access=access)])],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={
            HTTPException: pages.http_error,
            QueryError: pages.query_error,
            BackendError: pages.store_error,
            TimeoutError: pages.late_error,
        },
    )


class _Assets(StaticFiles):
    """Static files; an address that carries the version may be kept for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kept = f"max-age={_YEAR_S}, immutable" if scope["query_string"].startswith(b"v=") else "max-age=300"
        response.headers["Cache-Control"] = f"public, {kept}"
        return response


class _Pages:
    """The handlers. Each asks the store, under one time limit, and shows the answer."""

    def __init__(
        self,
        store: Store,
        renderer: Renderer,
        trust: Trust,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._renderer = renderer
        self._trust = trust
        self._clock = clock

    async def overview(self, request: Request) -> Response:
        """Show the figures of the range, what may be missing from them, the dearest features, the latest calls."""
        view = _view(request)
        where = view.where(self._clock())
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            report = await self._store.costs("feature", where)
            attributed = await self._attributed(report, where)
            latest = await self._store.events(EventQuery(where=where, limit=_LATEST))
            fresh = not latest.events and await self._is_new()
        return await self._show(
            request,
            "overview",
            view=view,
            section="overview",
            figures=_figures(report.total),
            trust=_trust_items(report.total, attributed, await self._delivery_figures()),
            lines=rows.cost_lines(report, _FACET_VALUES),
            requests=rows.request_lines(latest.events),
            fresh=fresh,
        )

    async def requests(self, request: Request) -> Response:
        """Show the Requests Explorer: one row per call, newest first."""
        view = _view(request)
        now = self._clock()
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            page = await self._store.events(view.page(now))
            facets = [] if _is_live(request) else await self._facets(view, now)
            fresh = not page.events and await self._is_new()
        return await self._show(
            request,
            "requests",
            view=view,
            section="requests",
            requests=rows.request_lines(page.events),
            facets=facets,
            older=view.link(after=page.older) if page.older else None,
            newer=view.link(before=page.newer) if page.newer else None,
            fresh=fresh,
        )

    async def event(self, request: Request) -> Response:
        """Show everything known of one call, beside the other calls of its web request."""
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            event = await self._store.event(request.path_params["event_id"])
            if event is None:
                raise HTTPException(404, "There is no call with this id. It may have been deleted.")
            siblings = await self._siblings(event)
        return await self._show(
            request,
            "event",
            view=View(),
            section="requests",
            line=rows.request_lines([event])[0],
            siblings=rows.request_lines(siblings),
            tokens=rows.tokens_of(event),
            context=rows.context_of(event),
            contents=rows.contents_of(event),
        )

    async def costs(self, request: Request) -> Response:
        """Show the Cost Breakdown: spend over time by feature, user or model, and the table of all of them."""
        view = _view(request)
        now = self._clock()
        where = view.where(now)
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            report = await self._store.costs(view.by, where)
            fresh = not report.total.calls and await self._is_new()
        last = min(where.until - timedelta(microseconds=1), now) if where.until else now
        days = chart.days_of(report, where.since.date() if where.since else None, last.date())
        picture, lines = await anyio.to_thread.run_sync(_drawn, report, days, now.date())
        return await self._show(
            request,
            "costs",
            view=view,
            section="costs",
            dimensions=DIMENSIONS,
            figures=_figures(report.total),
            chart=picture,
            total=rows.Amount.of_sum(
                report.total.cost_nanos,
                calls=report.total.calls,
                unpriced=report.total.unpriced,
            ),
            report=report,
            days=days,
            lines=lines,
            more=len(report.rows) - len(lines),
            fresh=fresh,
        )

    async def requests_json(self, request: Request) -> Response:
        """Return one page of calls as JSON."""
        view = _view(request)
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            page = await self._store.events(view.page(self._clock()))
        return await anyio.to_thread.run_sync(export.requests, page, view)

    async def costs_json(self, request: Request) -> Response:
        """Return the cost report as JSON."""
        view = _view(request)
        where = view.where(self._clock())
        with anyio.fail_after(_PAGE_TIMEOUT_S):
            report = await self._store.costs(view.by, where)
        return await anyio.to_thread.run_sync(export.costs, report, where.since, where.until)

    async def healthz(self, _: Request) -> Response:
        """Say whether the store answers; open to all, so it says nothing else."""
        try:
            with anyio.fail_after(_HEALTH_TIMEOUT_S):
                await self._store.events(EventQuery(limit=1))
        except (BackendError, TimeoutError):
            return JSONResponse({"status": "store unavailable"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def http_error(self, request: Request, error: Exception) -> Response:
        """Show an error of the request: not found, not allowed, not ours."""
        assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
        message = _PLAIN.get(error.detail, error.detail)
        return self._fail(request, error.status_code, message, error.headers)

    async def query_error(self, request: Request, error: Exception) -> Response:
        """Show what in the address cannot be understood."""
        return self._fail(request, 400, str(error))

    async def store_error(self, request: Request, error: Exception) -> Response:
        """Say that the store cannot be asked now."""
        assert isinstance(error, BackendError)  # noqa: S101  (registered for it)
        return self._fail(request, 503, f"The {error.backend} store cannot be asked now.", {"Retry-After": "5"})

    async def late_error(self, request: Request, _: Exception) -> Response:
        """Say that the answer takes too long."""
        return self._fail(request, 503, "Taking long: choose a shorter time range, or retry.", {"Retry-After": "5"})

    def _fail(
        self,
        request: Request,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        if request.url.path.endswith(".json"):
            response = export.error(status, message)
        else:
            response = self._renderer.page(request, "error.html", status=status, code=status, message=message)
        response.headers.update(headers or {})
        return response

    async def _show(self, request: Request, name: str, **values: Any) -> Response:
        """Return the page, made in a worker thread: the event loop may be the host application's."""
        template = f"{name}_live.html" if _is_live(request) else f"{name}.html"
        return await anyio.to_thread.run_sync(partial(self._renderer.page, request, template, **values))

    async def _delivery_figures(self) -> Mapping[str, object]:
        figures = self._trust()
        return await figures if inspect.isawaitable(figures) else figures

    async def _is_new(self) -> bool:
        return not (await self._store.events(EventQuery(limit=1))).events

    async def _attributed(self, report: CostReport, where: EventFilter) -> int:
        """Return how many calls have both a feature and a user."""
        users = await self._store.costs("user", where)
        without = sum(row.calls for rows_ in (report.rows, users.rows) for row in rows_ if row.key is None)
        if all(not chosen or None in chosen for chosen in (where.features, where.users)):  # counted twice
            neither = await self._store.costs("feature", _narrowed(where, features=(None,), users=(None,)))
            without -= neither.total.calls
        return report.total.calls - without

    async def _facets(self, view: View, now: datetime) -> list[tuple[str, list[tuple[CostRow, str, bool]]]]:
        """Return the values to choose from, those chosen among them, each field counted with the other filters held."""
        facets: list[tuple[str, list[tuple[CostRow, str, bool]]]] = []
        for field in filters.FACETS:
            name = filters.FIELDS[field]
            chosen = getattr(view, name)
            counted = await self._store.costs(field, _narrowed(view.where(now), **{name: ()}))
            report = rows.with_values(counted, chosen)
            labels = rows.labels_of(report)
            ranked = sorted(report.rows, key=lambda row: (row.key not in chosen, -row.calls))
            kept = ranked[: max(_FACET_VALUES, len(chosen))]
            facets.append((field, [(row, labels[row.key], row.key in chosen) for row in kept]))
        return facets

    async def _siblings(self, event: UsageEvent) -> list[UsageEvent]:
        """Return the calls of the same web request in order of time, this one among them.

        Looked for among the same user's calls nearest in time: the store's filter has no web request.
        """
        if event.request_id is None:
            return [event]
        since, until = event.occurred_at - _NEIGHBOURS, event.occurred_at + _NEIGHBOURS
        near = EventFilter(since=since, until=until, users=(event.user.id if event.user else None,))
        here = EventCursor(event.occurred_at, event.event_id)
        older = await self._store.events(EventQuery(where=near, after=here, limit=_MOST_NEIGHBOURS))
        newer = await self._store.events(EventQuery(where=near, before=here, limit=_MOST_NEIGHBOURS))
        found = (*older.events, *newer.events)
        same = {other.event_id: other for other in found if other.request_id == event.request_id}
        return sorted((same | {event.event_id: event}).values(), key=lambda call: (call.occurred_at, call.event_id))


def _drawn(report: CostReport, days: Sequence[date], today: date) -> tuple[chart.Chart, list[rows.CostLine]]:
    picture = chart.stacked(report, rows.labels_of(report), days, today)
    return picture, rows.cost_lines(report, _MOST_ROWS, days, picture.days_per_bar)


def _view(request: Request) -> View:
    return filters.parse(request.scope["query_string"].decode("latin-1"))


def _is_live(request: Request) -> bool:
    return request.headers.get("fluxgate-live") == "1"


def _narrowed(where: EventFilter, **changes: Any) -> EventFilter:
    return EventFilter(**{name: getattr(where, name) for name in where.__struct_fields__} | changes)


def _figures(total: CostRow) -> list[tuple[str, rows.Amount]]:
    """Return the figures at the head of a page as name and value."""
    spend = rows.Amount.of_sum(total.cost_nanos, calls=total.calls, unpriced=total.unpriced)
    mean = rows.Amount.per_call(total.cost_nanos, calls=total.calls - total.unpriced)
    failed = rows.Amount(fmt.share(total.errors, total.calls), f"{fmt.count(total.errors)} calls", None)
    calls = rows.Amount(fmt.count(total.calls), fmt.count(total.calls), None)
    read, written = fmt.tokens(total.input_tokens), fmt.tokens(total.output_tokens)
    exact = f"{fmt.count(total.input_tokens)} in, {fmt.count(total.output_tokens)} out"
    return [
        ("spend", spend),
        ("per request", mean),
        ("requests", calls),
        ("tokens in → out", rows.Amount(f"{read} → {written}", exact, None)),
        ("failed", failed),
    ]


def _trust_items(total: CostRow, attributed: int, extra: Mapping[str, object]) -> list[tuple[str, str, bool]]:
    """Return what the figures rest on as name, value and whether it needs a look."""
    items = [
        ("attributed to a feature and a user", fmt.share(attributed, total.calls), attributed < total.calls),
        ("priced", fmt.share(total.calls - total.unpriced, total.calls), total.unpriced > 0),
    ]
    return items + [_trust_item(name, value) for name, value in _flat(extra)]


def _flat(figures: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in figures.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        flat += _flat(value, f"{label}: ") if isinstance(value, Mapping) else [(label, value)]
    return flat


def _trust_item(name: str, value: object) -> tuple[str, str, bool]:
    whole = isinstance(value, int) and not isinstance(value, bool)
    text = fmt.count(value) if whole and isinstance(value, int) else str(value)
    late = name == _LAG and isinstance(value, float) and value > _STALE_S
    return name, text, late or (bool(value) and name.startswith(("drop", "dead", "lost", "quarantin", "not covered")))
