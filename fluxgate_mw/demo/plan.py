"""What a demo is to be: its options checked, its folder made, and the environment of each app."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fluxgate_mw.demo.children import APPS
from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.serving import HOST, bound_socket
from fluxgate_mw.settings import PREFIX, Settings

__all__ = ["OWN_KEYS", "DemoOptions", "app_environments", "data_folder", "demo_settings", "listen"]

OWN_KEYS: Final = "fluxgate:demo:"
"""How the key of a stream begins that a demo made for itself."""

_PROXIES: Final = "no_proxy"
_BUILD_TYPES_LATE: Final = "DEFER_PYDANTIC_BUILD"
"""The client's own switch; on, its first streamed response holds an app up for one to two seconds."""


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for on the command line.

    Args:
        seconds: How long the visitors stay; None = until Ctrl-C.
        redis_url: Redis or Valkey to deliver through; None = the spool on disk.
        data_dir: Folder for everything that is kept; None = a fresh temporary one, which is left for you.
        live: Call the real service, with `OPENAI_API_KEY` of the environment.
        port: The dashboard's port; None = any free one.
    """

    seconds: float | None = None
    redis_url: str | None = None
    data_dir: Path | None = None
    live: bool = False
    port: int | None = None


def data_folder(options: DemoOptions) -> Path:
    """Return the demo's folder, made where it is missing.

    Raises:
        ConfigurationError: It cannot be made, or `--live` lacks its key.
    """
    if options.live and not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError("--live calls the real service: set OPENAI_API_KEY in the environment")
    if options.data_dir is None:
        return Path(tempfile.mkdtemp(prefix="fluxgate-demo-"))
    try:
        options.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--data-dir {options.data_dir}: {error.strerror}") from error
    return options.data_dir.absolute()


def listen(options: DemoOptions) -> socket.socket:
    """Return the dashboard's listening socket.

    Raises:
        ConfigurationError: The port is in use or not allowed.
    """
    try:
        return bound_socket(options.port or 0)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is a number up to 65535"
        raise ConfigurationError(f"--port {options.port}: {reason}; leave it out for any free port") from error


def demo_settings(options: DemoOptions, folder: Path) -> Settings:
    """Return the settings of the demo's own flusher; nothing of the environment but `FLUXGATE_STREAM_KEY` counts.

    The stream's key is made of the folder, so that a demo never reads what is not its own.

    Raises:
        ConfigurationError: The Redis address is not one.
    """
    own_key = f"{OWN_KEYS}{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    arguments = {
        "data_dir": folder,
        "store_url": f"sqlite:///{folder / 'fluxgate.sqlite3'}",
        "redis_url": options.redis_url,
        "stream_key": os.environ.get(f"{PREFIX}STREAM_KEY") or own_key,
        "claim_min_idle_s": 5.0,
    }
    return Settings.load(arguments, environ={})


def app_environments(settings: Settings, provider: str | None) -> Mapping[str, Mapping[str, str]]:
    """Return the environment of each app's process.

    Args:
        settings: The demo's own.
        provider: Address of the loopback provider, `http://127.0.0.1:PORT`; None = the real service.
    """
    hidden = (PREFIX,) if provider is None else (PREFIX, "OPENAI_")
    common = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    for name in (_PROXIES, _PROXIES.upper()):
        common[name] = ",".join(filter(None, (common.get(name), HOST)))
    common |= {
        f"{PREFIX}DATA_DIR": str(settings.data_dir),
        f"{PREFIX}STORE_URL": settings.effective_store_url,
        f"{PREFIX}STREAM_KEY": settings.stream_key,
        f"{PREFIX}REDIS_URL": settings.redis_url or "",
        f"{PREFIX}ENVIRONMENT": "demo",
        _BUILD_TYPES_LATE: "false",
    }
    if provider is not None:
        common |= {
            "OPENAI_BASE_URL": f"{provider}/v1",
            "OPENAI_API_KEY": "demo",
            f"{PREFIX}PROVIDER_HOSTS": f"{provider.removeprefix('http://')}=openai",
        }
    return {name: common | {f"{PREFIX}SERVICE": f"demo-{name}"} for name in APPS}
