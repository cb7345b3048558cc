"""Where a naive middleware loses or mixes up who is served: each way, and the tests that ours does not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

PITFALLS = {
    "an anonymous request after a signed-in one: pipelined, or after a big body": [
        "integrations/test_isolation.py::test_under_uvicorn_an_anonymous_request_never_inherits_the_one_before_it",
    ],
    "identify() in a sync dependency": [
        "integrations/test_fastapi.py::test_identify_in_a_sync_dependency_holds_for_the_handler",
    ],
    "with feature(...) inside a sync generator that is streamed": [
        "integrations/test_starlette.py::test_a_feature_open_across_the_steps_of_a_sync_body_is_lost_and_said_once",
        "unit/test_frames.py::test_a_decorated_generator_is_inside_at_each_step_and_outside_in_between",
    ],
    "a disconnect: the generator is finalised in another context": [
        "unit/test_frames.py::test_an_async_generator_finalised_in_another_context_changes_nothing_there",
        "integrations/test_isolation.py::test_no_call_of_two_thousand_interleaved_requests_is_attributed_to_another",
    ],
    "a sync generator abandoned, and collected during another's request": [
        "unit/test_frames.py::test_a_generator_abandoned_and_collected_under_another_feature_changes_nothing_there",
        "unit/test_wsgi.py::test_a_body_abandoned_in_between_its_steps_and_collected_elsewhere_changes_nothing_there",
    ],
    "WSGI bodies interleaved, in other threads, never iterated, never closed": [
        "unit/test_wsgi.py::test_interleaved_bodies_in_one_thread_keep_their_own_users",
        "unit/test_wsgi.py::test_steps_and_close_in_other_threads_keep_the_user",
        "unit/test_wsgi.py::test_a_body_that_is_never_iterated_or_never_closed_leaves_nothing_behind",
    ],
    "a decorator that wraps async functions and generators as if they were plain ones": [
        "unit/test_frames.py::test_a_decorated_coroutine_function_runs_inside_the_feature",
        "unit/test_frames.py::test_a_decorated_async_generator_is_inside_at_each_step_and_outside_in_between",
        "unit/test_frames.py::test_kind_signature_and_annotations_stay_as_they_were",
    ],
    "two features gathered, and one feature() shared by tasks": [
        "unit/test_frames.py::test_two_features_gathered_and_one_instance_shared_by_tasks_do_not_mix",
    ],
    "a lazy user, or a value with __eq__, in a ContextVar": [
        "unit/test_ambient_threads.py::test_a_frame_is_compared_by_identity",
        "integrations/test_django.py::test_a_request_without_calls_loads_no_user",
    ],
    "a worker that is started lazily inside a request": [
        "unit/test_ambient_threads.py::test_a_worker_thread_that_begins_inside_a_context_does_not_keep_it",
        "unit/test_emitter.py::test_the_thread_sees_no_context_of_the_first_caller",
    ],
    "routes that are prefixed, nested, mounted, on a copied scope, or not there": [
        "integrations/test_fastapi.py::test_included_nested_and_mounted_routers_keep_every_prefix",
        "integrations/test_starlette.py::test_mounted_routers_and_applications_keep_their_prefix_as_a_template",
        "integrations/test_starlette.py::test_a_middleware_that_copies_the_scope_hides_neither_route_nor_user",
        "integrations/test_starlette.py::test_unmatched_paths_have_no_feature_but_their_user",
    ],
    "the server's own file wrapper, which it knows by identity": [
        "unit/test_wsgi.py::test_the_servers_own_file_wrapper_is_returned_untouched",
        "integrations/test_django.py::test_files_are_left_to_the_server",
    ],
    "one Context entered by two greenlets": [
        "integrations/test_greenlets.py::test_carried_greenlets_that_overlap_keep_their_own_contexts",
        "integrations/test_bare_servers.py::test_overlapping_requests_of_a_real_server_keep_their_own_user_and_route",
    ],
    "class-based endpoints that lose their 405, callable instances that lose the feature": [
        (
            "integrations/test_starlette.py"
            "::test_class_based_endpoints_are_named_by_their_route_or_their_decoration_and_keep_their_405"
        ),
        "unit/test_frames.py::test_callable_objects_and_partials_keep_the_feature",
    ],
    "a plain function that returns a generator": [
        "unit/test_frames.py::test_a_plain_function_that_returns_a_generator_or_coroutine_keeps_the_feature",
    ],
    "cycles, and scopes that a long task pins": [
        "integrations/test_isolation.py::test_a_request_that_is_over_is_gone_without_the_garbage_collector",
        "integrations/test_isolation.py::test_a_long_task_keeps_user_and_route_but_not_the_scope",
        "integrations/test_isolation.py::test_two_thousand_interleaved_requests_retain_nothing",
    ],
    "hooks of jobs that do not reset": [
        "integrations/test_jobs.py::test_a_celery_task_shows_user_feature_and_request_of_where_it_was_sent",
        "integrations/test_jobs.py::test_an_arq_job_shows_user_feature_and_request_of_where_it_was_enqueued",
    ],
}


@pytest.mark.parametrize("pitfall", PITFALLS)
def test_every_way_to_lose_or_mix_up_who_is_served_has_its_tests(pitfall: str) -> None:
    """Under the names that stand here."""
    for named in PITFALLS[pitfall]:
        path, _, function = named.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in defined, named
