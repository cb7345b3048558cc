"""Every setting, once: its name, its default, where its value came from, and what is allowed.

An argument beats the environment, which beats the default; an empty text means not set, in either. The keyword of
a setting is its field's name; its environment variable is `FLUXGATE_` and the name in capitals.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from fluxgate_mw.errors import ConfigurationError

__all__ = ["NO_HTTP_API", "PREFIX", "FlusherPlace", "Settings", "mask_url", "user_data_dir"]

PREFIX: Final = "FLUXGATE_"
NO_HTTP_API: Final = "FLUXGATE_API_KEY is set, but this version does not send events to an HTTP API yet"
FlusherPlace = Literal["none", "background"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_NO_ADDRESS: Final = (
    "expected [user:password@]host[:port] after the ://, with a port from 0 to 65535; "
    "in a password, write / as %2F, ? as %3F, # as %23 and @ as %40"
)
_HOST: Final = re.compile(r"(\[[^\s/@\[\]]+\]|[^\s/@\[\]:]+)(:\d+)?|[\da-f.]*:[\da-f.:]*:[\da-f.:]*")
"""A name or an IPv4 address, an IPv6 address in brackets, either with its port; or an IPv6 address alone."""
_NO_BRACKETS: Final = str.maketrans("", "", "[]")


def user_data_dir() -> Path:
    """Return the folder for this user's data, by the platform's convention; it need not exist.

    Raises:
        ConfigurationError: It would be in the home folder of a user who has none, as in a container that runs as any.

    Source: XDG Base Directory Specification 0.8; Apple's and Microsoft's application data folders.
    """
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "fluxgate"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "fluxgate"
    return Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "fluxgate"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigurationError("data_dir: this user has no home folder; set FLUXGATE_DATA_DIR to a folder") from None


def mask_url(url: str) -> str:
    """Return the URL with its user name's password and its query hidden, for logs and pages.

    >>> mask_url("redis://ann:secret@cache:6379/0?password=x")
    'redis://ann:***@cache:6379/0?***'
    """
    parts = urlsplit(url)
    query = "?***" if parts.query else ""
    if not parts.netloc:
        return f"{parts.scheme}://{parts.path}{query}"
    if "@" in parts.path + parts.fragment:  # a password that holds the / or # that should end the host
        return f"{parts.scheme}://***"
    credentials, at, host = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    netloc = f"{user}:***@{host}" if at else host
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError("expected one of 1, true, yes, on, 0, false, no, off")


def _number(kind: Callable[[Any], Any], low: float, high: float) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        expected = f"expected a {'whole number' if kind is int else 'number'} from {low} to {high}"
        try:
            number = kind(str(value).replace("_", ""))
        except ValueError:
            raise ValueError(expected) from None
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(expected)
        return number

    return convert


def _one_of(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return str(value)

    return convert


def _url(*schemes: str, announced: Sequence[str] = ()) -> Callable[[Any], str]:
    """Return what takes an address of these schemes; whoever uses an announced one refuses it in its own words."""

    def convert(value: Any) -> str:
        text = str(value)
        if not text.startswith(tuple(f"{scheme}://" for scheme in (*schemes, *announced))):
            raise ValueError(f"expected an address that starts with {', '.join(f'{s}://' for s in schemes)}")
        try:
            for host in urlsplit(text).netloc.rpartition("@")[2].split(","):
                urlsplit(f"//{host}").port  # noqa: B018  (the property raises for a port that is none)
        except ValueError:
            raise ValueError(_NO_ADDRESS) from None  # without what it says: that may be a part of the password
        return text

    return convert


def _redis_url(value: Any) -> str:
    forms = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
    text = _url(*forms)(value)
    parts = urlsplit(text)
    if parts.netloc and "@" in parts.path + parts.fragment + parts.query.partition("=")[0]:
        raise ValueError(_NO_ADDRESS)
    hosts, path = parts.netloc.rpartition("@")[2], parts.path.strip("/")
    if parts.scheme == "unix":
        if hosts or not path:
            raise ValueError("expected unix:///path/of/the.sock, with the whole path behind three slashes")
        return text
    _check_redis_hosts(parts.scheme, hosts)
    database = path
    if parts.scheme.endswith("+sentinel"):
        service, _, database = path.partition("/")
        if not service:
            raise ValueError(f"expected {parts.scheme}://host:26379/service: the service's name is missing")
    if parts.scheme.endswith("+cluster") and database not in ("", "0"):
        raise ValueError(f"expected {parts.scheme}://host:7000 without a path: a cluster has no database but 0")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError("expected the number of a database at the end of the path, as in redis://host:6379/0")
    return text


def _check_redis_hosts(scheme: str, hosts: str) -> None:
    """Raise where a form that names several servers lacks the name of one, or one server is given several."""
    named = [_HOST.fullmatch(host.lower()) is not None for host in hosts.split(",")]
    if "+" in scheme and not all(named):
        raise ValueError(f"expected {scheme}://host:port, several separated by commas: the name of a host is missing")
    if "+" not in scheme and len(named) > 1:
        raise ValueError(f"expected one host; several are {scheme}+sentinel://host,host/service or {scheme}+cluster://")


def _path(value: Any) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"expected a path; {str(value).partition('/')[0]} is nobody's home folder here") from None


def _hosts(value: Any) -> Mapping[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else _pairs(str(value))
    hosts = {str(host).strip().lower(): str(provider).strip() for host, provider in pairs}
    if not all(_HOST.fullmatch(host) and provider for host, provider in hosts.items()):
        raise ValueError("expected host[:port]=provider, several separated by commas")
    return MappingProxyType({host.translate(_NO_BRACKETS): provider for host, provider in hosts.items()})


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        host, _, provider = part.partition("=")
        yield host, provider


def _setting(default: Any, convert: Callable[[Any], Any] = str, *, secret: bool = False) -> Any:
    metadata = {"convert": convert, "secret": secret}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The settings of one `FluxGate`. Frozen; `repr` masks secrets.

    Durations end in `_s` (seconds), sizes in `_bytes`. None means: not set, use what the description says.

    Example:
        >>> Settings.load({"service": "shop"}, environ={"FLUXGATE_DURABLE": "yes"}).durable
        True
    """

    enabled: bool = _setting(True, _boolean)
    """Off: nothing is patched, recorded or delivered."""
    instrument: bool = _setting(True, _boolean)
    """Patch the OpenAI client for the whole process."""
    redis_url: str | None = _setting(None, _redis_url, secret=True)
    """Redis or Valkey of the stream, also `redis+sentinel://hosts/service` and `redis+cluster://hosts`; unset: the
    spool on disk is the buffer."""
    stream_key: str = _setting("fluxgate:events")
    """Key of the Redis stream."""
    consumer_group: str = _setting("fluxgate")
    """Consumer group of the flushers."""
    store_url: str | None = _setting(None, _url("sqlite", announced=("postgresql", "clickhouse")), secret=True)
    """Where events are stored; unset: `fluxgate.sqlite3` in the data folder."""
    data_dir: Path = field(default_factory=user_data_dir, metadata={"convert": _path, "secret": False})
    """Folder of the spool and the SQLite file; unset: this user's data folder."""
    spool_dir: Path | None = _setting(None, _path)
    """Folder of the spool; unset: `spool` in the data folder."""
    spool_max_bytes: int = _setting(1_073_741_824, _number(int, 65_536, 2**50))
    """Cap of the spool; past it new events are dropped and counted."""
    queue_max_events: int = _setting(100_000, _number(int, 1, 10_000_000))
    """Most events that wait in memory; past it new events are dropped and counted."""
    queue_max_bytes: int = _setting(67_108_864, _number(int, 1024, 2**40))
    """Most bytes of events that wait in memory; past it new events are dropped and counted."""
    emit_interval_s: float = _setting(0.02, _number(float, 0.001, 60))
    """How often the queue is drained: what a kill -9 can cost at most."""
    shutdown_timeout_s: float = _setting(5.0, _number(float, 0, 3600))
    """How long a shutdown waits for queued events to be accepted."""
    service: str | None = _setting(None)
    """Name of this service, on every event."""
    environment: str | None = _setting(None)
    """`production`, `staging`, ..., on every event."""
    api_key: str | None = _setting(None, secret=True)
    """Key of a FluxGate-compatible HTTP API; this version does not send there yet and says so."""
    endpoint: str = _setting("https://fluxgate.app/api/events", _url("http", "https"))
    """Address of that HTTP API; not used by this version yet."""
    capture_content: bool = _setting(False, _boolean)
    """Keep prompts and answers with the events; whoever may see the dashboard sees them there."""
    content_max_bytes: int = _setting(16_384, _number(int, 64, 1_048_576))
    """Most bytes of a prompt, and of an answer, that are kept; what is longer is cut."""
    price_file: Path | None = _setting(None, _path)
    """Your own price list, TOML or JSON, with dates of validity; it beats the published prices."""
    log_level: str = _setting("INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    """Least level that the `fluxgate` command logs."""
    durable: bool = _setting(False, _boolean)
    """Write each event to the spool before `emit` returns: a kill -9 loses nothing."""
    flusher: FlusherPlace | None = _setting(None, _one_of(*get_args(FlusherPlace)))
    """`background`: this process also flushes to the store; `none`: it never does; unset: only where the dashboard is
    mounted."""
    claim_min_idle_s: float = _setting(30.0, _number(float, 0.1, 86_400))
    """After how long another flusher's unacknowledged entries are taken over; above the longest flush."""
    dashboard_token: str | None = _setting(None, secret=True)
    """Token that the dashboard asks for; needed to serve on another address than 127.0.0.1."""
    provider_hosts: Mapping[str, str] = _setting(MappingProxyType({}), _hosts)
    """`host[:port]=provider,...`: treat these hosts as that provider."""

    @classmethod
    def load(cls, arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings made from arguments over the environment over the defaults.

        Args:
            arguments: By keyword; a value of None, and an empty text, means not given.
            environ: Variables to read; None = this process's own.

        Raises:
            ConfigurationError: A value is not allowed, or an argument has no such name.
        """
        given = {key: value for key, value in (arguments or {}).items() if value is not None}
        variables = os.environ if environ is None else environ
        converters = {f.name: f.metadata["convert"] for f in fields(cls)}
        if unknown := next((key for key in given if key not in converters), None):
            raise ConfigurationError(f"{unknown}: no such setting{_nearest(unknown, list(converters))}")
        _warn_of_unknown(variables, {PREFIX + name.upper() for name in converters})
        values: dict[str, Any] = {}
        for name, convert in converters.items():
            key = PREFIX + name.upper()
            if name in given and not _is_empty(given[name]):
                values[name] = _converted(convert, given[name], name, "argument")
            elif text := variables.get(key, "").strip():
                values[name] = _converted(convert, text, key, "environment")
        return cls(**values)

    @property
    def spool_path(self) -> Path:
        """The spool's folder."""
        return self.spool_dir or self.data_dir / "spool"

    @property
    def effective_store_url(self) -> str:
        """The store's address; with none set, the SQLite file of the data folder."""
        return self.store_url or f"sqlite:///{self.data_dir.absolute() / 'fluxgate.sqlite3'}"

    def __repr__(self) -> str:
        shown = (f"{f.name}={_shown(getattr(self, f.name), secret=f.metadata['secret'])}" for f in fields(self))
        return f"Settings({', '.join(shown)})"


def _is_empty(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _converted(convert: Callable[[Any], _T], value: Any, key: str, source: str) -> _T:
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key} (from the {source}): {error}") from None


def _shown(value: Any, *, secret: bool) -> str:
    if value is None or not secret:
        return repr(value)
    return repr(mask_url(value)) if "://" in value else "'***'"


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _warn_of_unknown(variables: Mapping[str, str], known: set[str]) -> None:
    for name in variables:
        if name.startswith(PREFIX) and name not in known and not name.startswith(f"{PREFIX}TEST_"):
            _log.warning("%s is no setting of fluxgate-mw%s", name, _nearest(name, sorted(known)))
