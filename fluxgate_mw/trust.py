"""What a proxy in front of the application may say about a request, and only where it is named and turned on.

Anyone can send a header. Nothing here is read unless the peer's address is in the networks that the application
lists, and a header that comes twice, or joined with a comma, is taken for none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.event import User
from fluxgate_mw.types import Carrier
from fluxgate_mw.users import as_user

__all__ = ["TrustedProxies"]

_REQUEST_ID: Final = re.compile(r"[\w.:@/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


class TrustedProxies:
    """The proxies in front, and what is believed of what they send.

    Args:
        networks: Their addresses (`10.0.0.5`, `10.0.0.0/8`), as the server reports the peer; `::ffff:10.0.0.5`, as one
            that listens on `::` does, is the same. `unix` for a server that listens on a Unix socket. Where the server
            itself replaces the peer by what `X-Forwarded-For` says (uvicorn does for proxies on 127.0.0.1, unless told
            `--no-proxy-headers`), nobody is trusted.
        user_header: The header that holds the signed-in user's id (`X-Forwarded-User`), which the proxy must set or
            remove on every request; None = none.
        remote_user: Believe WSGI's `REMOTE_USER`.
        request_id: Take `request_id` from `X-Request-ID`, else from the trace id of `traceparent`.

    Raises:
        ConfigurationError: A network is none, or there is none.

    Source: https://www.w3.org/TR/trace-context/#traceparent-header (version, trace id, parent id, flags).

    Example:
        >>> trusted = TrustedProxies(["127.0.0.1"], user_header="X-Forwarded-User", request_id=True)
    """

    def __init__(
        self,
        networks: Sequence[str],
        *,
        user_header: str | None = None,
        remote_user: bool = False,
        request_id: bool = False,
    ) -> None:
        if isinstance(networks, str) or not networks:
            raise ConfigurationError("networks: expected a list of at least one proxy's address or network, or 'unix'")
        self._unix = "unix" in networks
        try:
            self._networks = [ipaddress.ip_network(network) for network in networks if network != "unix"]
        except ValueError as error:
            raise ConfigurationError(f"networks: {error}") from None
        self._user_header = user_header
        self._remote_user = remote_user
        self._request_id = request_id

    def user(self, carrier: Carrier) -> User | None:
        """Return the user that a trusted proxy named, or None."""
        if not self._from_proxy(carrier):
            return None
        named = None if self._user_header is None else _header(carrier, self._user_header)
        if named is None and self._remote_user:
            named = _single(carrier.get("REMOTE_USER"))
        return as_user(named)

    def request_id(self, carrier: Carrier) -> str | None:
        """Return the id that a trusted proxy gave the request, or None."""
        if not self._request_id or not self._from_proxy(carrier):
            return None
        given = _header(carrier, "x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        trace = _TRACEPARENT.fullmatch(_header(carrier, "traceparent") or "")
        return None if trace is None else trace[1]

    def _from_proxy(self, carrier: Carrier) -> bool:
        client = carrier.get("client")
        peer = client[0] if client else carrier.get("REMOTE_ADDR")
        if not peer:
            return self._unix
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        known = (address, getattr(address, "ipv4_mapped", None))
        return any(each in network for each in known if each is not None for network in self._networks)


def _header(carrier: Carrier, name: str) -> str | None:
    """Return the value of a header that is there exactly once."""
    if "headers" not in carrier:
        return _single(carrier.get(f"HTTP_{name.upper().replace('-', '_')}"))
    wanted = name.lower().encode("latin-1")
    values = [value for key, value in carrier["headers"] if key.lower() == wanted]
    return _single(values[0].decode("latin-1")) if len(values) == 1 else None


def _single(value: object) -> str | None:
    """Return the value; None for none, and for one that joins several."""
    return value.strip() or None if isinstance(value, str) and "," not in value else None
