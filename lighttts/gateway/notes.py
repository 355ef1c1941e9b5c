"""What the parts of the gateway add to the log line of a request."""

from __future__ import annotations

from typing import cast

from starlette.types import Scope

_KEY = "lighttts.notes"


def notes_of(scope: Scope) -> dict[str, object]:
    """The notes of a request: by name what its log line will say. Never texts or secrets."""
    return cast(dict[str, object], scope.setdefault(_KEY, {}))
