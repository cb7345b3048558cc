"""Every path that the installed client posts to is known here: as a call, as seen but not covered, or as free."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import openai

from fluxgate_mw.openai.hosts import operation_of, uncovered_kind

ADMINISTRATION = ("/organization/", "/projects/", "/vaults", "/webhook_endpoints")
FREE = {
    "/assistants",
    "/assistants/{}",
    "/agents",
    "/agents/{}",
    "/agents/environments",
    "/agents/environments/templates",
    "/agents/environments/templates/{}",
    "/agents/environments/{}/files",
    "/audio/voice_consents",
    "/audio/voice_consents/{}",
    "/audio/voices",
    "/batches/{}/cancel",
    "/chat/completions/{}",
    "/chatkit/sessions/{}/cancel",
    "/containers/{}/files",
    "/content_provenance_checks",
    "/conversations",
    "/conversations/{}",
    "/conversations/{}/items",
    "/evals",
    "/evals/{}",
    "/evals/{}/runs/{}",
    "/evals/{}/runs/{}/cancel",
    "/files",
    "/fine_tuning/alpha/graders/validate",
    "/fine_tuning/checkpoints/{}/permissions",
    "/fine_tuning/jobs/{}/cancel",
    "/fine_tuning/jobs/{}/pause",
    "/fine_tuning/jobs/{}/resume",
    "/responses/input_tokens",
    "/responses/{}/cancel",
    "/skills",
    "/skills/{}",
    "/skills/{}/versions",
    "/threads",
    "/threads/{}",
    "/threads/{}/messages",
    "/threads/{}/messages/{}",
    "/threads/{}/runs/{}",
    "/threads/{}/runs/{}/cancel",
    "/threads/{}/runs/{}/submit_tool_outputs",
    "/uploads",
    "/uploads/{}/cancel",
    "/uploads/{}/complete",
    "/uploads/{}/parts",
    "/vector_stores",
    "/vector_stores/{}",
    "/vector_stores/{}/file_batches",
    "/vector_stores/{}/file_batches/{}/cancel",
    "/vector_stores/{}/files",
    "/vector_stores/{}/files/{}",
    "/vector_stores/{}/search",
    "/videos/characters",
}
"""What a POST to is neither recorded nor counted: no model answers, or what it starts is billed elsewhere."""


def _posted() -> Iterator[tuple[str, str | None]]:
    """Yield where the client's source posts, and to which path, with `{}` for an id; None where it cannot be read."""
    package = Path(openai.__file__).parent
    for file in [*package.glob("resources/**/*.py"), *package.glob("lib/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                method = named.get("method")
                if node.func.attr == "_post" or (isinstance(method, ast.Constant) and method.value == "post"):
                    yield f"{file.name}:{node.lineno}", _spelled(node.args[0] if node.args else named.get("path"))


def _spelled(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "path_template":
        node = node.args[0]
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\w+\}", "{}", node.value).partition("?")[0]
    return None


def _kinds(path: str) -> list[str]:
    asked = path.replace("{}", "id_1")
    known = {
        "call": operation_of(asked) is not None,
        "not covered": uncovered_kind(asked) is not None,
        "free": path in FREE or path.startswith(ADMINISTRATION),
    }
    return [kind for kind, holds in known.items() if holds]


def test_every_path_that_the_client_posts_to_is_of_exactly_one_kind():
    """An endpoint that a new release brings fails here until somebody says what it is."""
    posted = list(_posted())
    assert [place for place, path in posted if path is None] == []
    paths = {path for _place, path in posted if path is not None}
    assert {"/chat/completions", "/responses", "/embeddings", "/vector_stores/{}/search"} <= paths
    assert {path: _kinds(path) for path in sorted(paths) if len(_kinds(path)) != 1} == {}


def test_what_is_free_is_nothing_else():
    """No path is kept as free that is recorded or counted, whatever the release."""
    assert {path: _kinds(path) for path in FREE if _kinds(path) != ["free"]} == {}
