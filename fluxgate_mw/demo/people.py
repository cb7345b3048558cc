"""Who visits the two apps of the demo, and how an app knows them: a cookie that names the user."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fluxgate_mw import User

__all__ = ["COOKIE", "PEOPLE"]

COOKIE: Final = "demo_user"
PEOPLE: Final[Mapping[str, User]] = MappingProxyType(
    {
        user.id: user
        for user in (
            User(id="u-ann", email="ann@example.com", name="Ann Lindqvist", monthly_revenue=49.0),
            User(id="u-bo", email="bo@example.com", name="Bo Nakamura", monthly_revenue=19.0),
            User(id="u-chi", email="chi@example.com", name="Chiara Rossi", monthly_revenue=199.0),
            User(id="u-dev", email="dev@example.com", name="Dev Patel"),
            User(id="u-eva", email="eva@example.com", name="Eva Novák", monthly_revenue=49.0),
        )
    },
)
