"""Which server holds a stream now, and clients to it: one address, what Sentinels say, or the owner of a slot.

`redis://`, `rediss://` and `unix://` name one server. `redis+sentinel://host:26379,host:26379/service/0` asks the
Sentinels for the service's primary, `redis+cluster://host:7000,host:7001` any node for the owner of the key's slot;
`rediss+...` speaks TLS to all of them. User, password and query of the address are for the servers that hold data;
Sentinels that ask for a login are given `?sentinel_username=...&sentinel_password=...`. The query has the driver's own
options; those that say how replies are read are left out, for they are read as bytes here.

While a slot of a cluster is being moved, what has moved already is not asked for at its new place (no `ASKING`): such a
stream is unavailable until the move ends, the spool takes its events meanwhile, and the flusher waits.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, ResponseError

from fluxgate_mw.errors import ConfigurationError

__all__ = ["RedisClients", "check_options", "stream_keys"]

_CLUSTER_STREAMS: Final = 8
"""How many streams share a cluster's load; all processes of all versions must agree."""

_BLOCKING_TIMEOUT_S: Final = 10.0
_ELSEWHERE: Final = (AskError, ClusterDownError, ReadOnlyError)
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")
_OF_REPLIES: Final = ("decode_responses", "encoding", "encoding_errors", "protocol")
_UNNAMED: Final[dict[str, Any]] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)
"""Options that keep the driver from telling the server its name, which takes a round trip and imports modules late."""


def stream_keys(url: str, stream_key: str) -> Sequence[str]:
    """Return the keys of the streams at this address: one, or on a cluster several whose slots lie far apart.

    Each is a hash tag, so that a stream and its dead letters are in one slot.
    """
    if _kind(url) != "cluster":
        return (stream_key,)
    return tuple(f"{{{stream_key}:{number}}}" for number in range(_CLUSTER_STREAMS))


def check_options(url: str) -> None:
    """Return where the driver takes what stands behind the question mark of an address. Connects to nothing.

    Raises:
        ConfigurationError: It knows no such option, or cannot read its value; the value is not repeated.
    """
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    for name, value in parse_qsl(urlsplit(url).query):
        if kind == "sentinel" and name in _SENTINEL_LOGIN:
            continue
        try:
            client = _client(f"{scheme}:///?{urlencode({name: value})}", _BLOCKING_TIMEOUT_S)
            client.connection_pool.make_connection()
        except (AttributeError, TypeError, ValueError, RedisError):
            raise ConfigurationError(
                f"redis_url: redis-py knows no option {name[:40]!r} of an address, or cannot use its value; mend it or "
                "leave it out"
            ) from None


class RedisClients:
    """Two clients, for commands and for reads that block, of the server that holds a key.

    Args:
        url: In one of the forms above.
        key: The stream's key: what a cluster is asked for.
        timeout_s: For a connection and for a reply, except a blocking read's.

    Guarantees: no command is sent twice, and none is sent to another server on its own.

    Concurrency: one event loop.
    """

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self._url, self._key, self._timeout_s = url, key, timeout_s
        self._kind = _kind(url)
        self._seeds = deque(urlsplit(url).netloc.rpartition("@")[2].split(","))
        self._is_located = not self._kind
        self.command: Any = None
        self.blocking: Any = None
        if self._is_located:
            self._open(url)

    def _open(self, url: str) -> None:
        self.command, self.blocking = _client(url, self._timeout_s), _client(url, _BLOCKING_TIMEOUT_S)

    async def locate(self) -> bool:
        """Have both clients at the right server; return whether they are new.

        Raises:
            RedisError, OSError: Nobody says where it is; whoever was asked last is asked last the next time.
        """
        if self._is_located:
            return False
        where = await self._ask_seeds()
        await self.aclose()
        self._open(self._url_of(where, data=True))
        self._is_located = True
        return True

    def doubt(self, error: Exception) -> None:
        """Ask again before the next command, where the error may mean that the key is elsewhere by now."""
        if self._kind and (isinstance(error, _ELSEWHERE) or not isinstance(error, ResponseError)):
            self._is_located = False

    async def _ask_seeds(self) -> str:
        failure: Exception = OSError("no server to ask")
        for _ in range(len(self._seeds)):
            seed = self._seeds[0]
            self._seeds.rotate(-1)
            try:
                where = await self._ask(seed)
            except (RedisError, OSError) as error:
                failure = error
            else:
                self._seeds.rotate(1)
                return where
        raise failure

    async def _ask(self, seed: str) -> str:
        client = _client(self._url_of(seed, data=self._kind == "cluster"), self._timeout_s)
        try:
            if self._kind == "cluster":
                return _owner(await client.execute_command("CLUSTER", "SLOTS"), key_slot(self._key.encode()), seed)
            service = urlsplit(self._url).path.strip("/").partition("/")[0]
            found = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            if found is None:
                raise ResponseError(f"the sentinel knows no service {service}")
            return _address(found[0], found[1], seed)
        finally:
            await client.aclose()

    def _url_of(self, address: str, *, data: bool) -> str:
        """Return the address of one server, with its own credentials, and the database where it holds data."""
        parts = urlsplit(self._url)
        login, query = _split_query(parts.query)
        credentials = parts.netloc.rpartition("@")[0] if data else login
        database = parts.path.strip("/").partition("/")[2] if self._kind == "sentinel" else ""
        netloc = f"{credentials}@{address}" if credentials else address
        return urlunsplit((parts.scheme.partition("+")[0], netloc, f"/{database}" if data else "", query, ""))

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        for client in (self.command, self.blocking):
            if client is not None:
                await client.aclose()


def _kind(url: str) -> str:
    return urlsplit(url).scheme.partition("+")[2]


def _split_query(query: str) -> tuple[str, str]:
    """Return the Sentinels' login as an address has it, and the options that are left."""
    options = parse_qsl(query, keep_blank_values=True)
    login = {name: quote(value, safe="") for name, value in options if name in _SENTINEL_LOGIN}
    rest = urlencode([option for option in options if option[0] not in _SENTINEL_LOGIN], safe="/")
    user, password = (login.get(name, "") for name in _SENTINEL_LOGIN)
    return (f"{user}:{password}" if login else ""), rest


def _owner(slots: Any, slot: int, seed: str) -> str:
    """Return who owns a slot. Source: valkey.io CLUSTER SLOTS, read 2026-11: nil and "" mean the node that replies."""
    for first, last, (host, port, *_), *_ in slots:
        if first <= slot <= last:
            return _address(host, port, seed)
    raise ClusterDownError(f"CLUSTERDOWN slot {slot} is not served")


def _address(host: bytes | None, port: Any, seed: str) -> str:
    name = host.decode() if host and host != b"?" else seed.rpartition(":")[0]
    return f"[{name}]:{int(port)}" if ":" in name and name[0] != "[" else f"{name}:{int(port)}"


def _client(url: str, timeout_s: float) -> Any:
    """Return a client that sends each command once and gives replies as the protocol has them (RESP2).

    The driver's own conversions differ between its versions; without them any version gives the same.
    """
    address, _, query = url.partition("?")
    options = "&".join(option for option in query.split("&") if option.partition("=")[0] not in _OF_REPLIES)
    client = Redis.from_url(
        f"{address}?{options}",
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 2.0),
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
        **_UNNAMED,
    )
    client.response_callbacks.clear()
    return client
