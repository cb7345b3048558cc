"""Templates to replies: the one module that knows Jinja. Everything is escaped; nothing is marked as safe."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fluxgate_mw.dashboard import format as fmt

__all__ = ["STATIC_FOLDER", "Renderer"]

_PACKAGE: Final = Path(str(files("fluxgate_mw.dashboard")))
STATIC_FOLDER: Final = _PACKAGE / "static"


class Renderer:
    """Makes pages of templates, with links that hold wherever the app is mounted.

    Args:
        title: Name of the product or service, shown in the top bar.

    Concurrency: any thread.
    """

    def __init__(self, title: str) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_PACKAGE / "templates", encoding="utf-8"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,  # no look at the disk while the host's event loop waits
        )
        self._environment.globals.update(
            title=title,
            fmt=fmt,
            asset_version=_version_of_assets(),
        )
        self._environment.filters["segment"] = _segment
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return the reply made of a template. Text that has no UTF-8 form is shown with question marks."""
        theme = request.cookies.get("fluxgate_theme")
        text = self._environment.get_template(template).render(
            root=request.scope.get("root_path", "").rstrip("/"),
            theme=theme if theme in ("light", "dark") else None,
            here=URL(scope=request.scope).path,
            **values,
        )
        return HTMLResponse(text.encode("utf-8", "replace"), status_code=status)


def _segment(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _version_of_assets() -> str:
    digest = hashlib.sha256()
    for path in sorted(STATIC_FOLDER.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
