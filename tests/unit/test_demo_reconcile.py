"""The comparison of the provider's ledger with the store: it must see every kind of difference."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.demo.ledger import Ledger, LedgerRow, Witness, read_ledger, witness, witness_in
from fluxgate_mw.demo.reconcile import Losses, StoredCall, reconcile

NOTHING_LOST = Losses()


def row(response_id="r1", **fields) -> LedgerRow:
    usual = {
        "path": "/responses",
        "stream": False,
        "http_status": 200,
        "user": "u-ann",
        "feature": "summarizer",
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    return LedgerRow(response_id=response_id, **(usual | fields))


def call(response_id="r1", **fields) -> StoredCall:
    usual = {
        "api_path": "/responses",
        "stream": False,
        "http_status": 200,
        "user_id": "u-ann",
        "feature": "summarizer",
        "input_tokens": 3,
        "output_tokens": 4,
        "usage_source": "provider",
        "retries": 0,
        "cost_nanos": 5,
    }
    return StoredCall(response_id=response_id, **(usual | fields))


def refused(status=429, **fields) -> LedgerRow:
    return row(None, http_status=status, prompt_tokens=None, completion_tokens=None, **fields)


def failure(status=429, **fields) -> StoredCall:
    return call(None, http_status=status, input_tokens=None, output_tokens=None, usage_source="none", **fields)


EMBEDDED = row(None, path="/embeddings", completion_tokens=None)
EMBEDDING = call(None, api_path="/embeddings", output_tokens=None)
CUT = row("r2", prompt_tokens=None, completion_tokens=None)
ESTIMATED = call("r2", usage_source="estimated", input_tokens=9, output_tokens=1)


@pytest.mark.parametrize(
    ("rows", "events"),
    [
        ([], []),
        ([row()], [call()]),
        ([EMBEDDED, EMBEDDED], [EMBEDDING, EMBEDDING]),
        ([CUT, row()], [call(), ESTIMATED]),
        ([refused(), row()], [call(retries=1)]),
        ([refused()] * 3, [failure(retries=2)]),
        ([refused(500), refused(429)], [failure(429, retries=1)]),
    ],
)
def test_equal_sides_balance(rows, events):
    """Answers, embeddings, cut streams, retries and errors are matched, in any order."""
    accounts = reconcile(rows, events, NOTHING_LOST, len(events))
    assert accounts.problems == []
    assert accounts.calls == len(events)


@pytest.mark.parametrize(
    ("rows", "events", "said"),
    [
        ([row()], [], "r1 .* is not stored"),
        ([], [call()], "r1 is stored, but was never answered"),
        ([row()], [call(), call()], "2 times in the store"),
        ([row()], [call(user_id="u-bo")], "user was 'u-ann', stored 'u-bo'"),
        ([row()], [call(feature=None)], "feature was 'summarizer', stored None"),
        ([row()], [call(api_path="/chat")], "path was"),
        ([row()], [call(stream=True)], "stream was"),
        ([row()], [call(http_status=None)], "status was"),
        ([row()], [call(input_tokens=4)], "input tokens was 3, stored 4"),
        ([row()], [call(output_tokens=None)], "output tokens was 4, stored None"),
        ([CUT], [call("r2")], "carried no usage"),
        ([EMBEDDED, EMBEDDED], [EMBEDDING], "1 answered without an id"),
        ([EMBEDDED], [EMBEDDING, EMBEDDING], "never answered"),
        ([refused(), row()], [call()], "1 refused tries are not stored"),
        ([refused()], [failure(retries=1)], "never refused"),
        ([refused()], [failure(user_id=None)], "refused tries are not stored"),
    ],
)
def test_every_difference_is_a_problem(rows, events, said):
    """Each way in which the sides can differ is said in words, and the accounts do not hold."""
    accounts = reconcile(rows, events, NOTHING_LOST, len(events))
    assert not accounts.holds
    with pytest.raises(AssertionError, match=said):
        raise AssertionError("\n".join(accounts.problems))


def test_a_counted_loss_explains_a_missing_event_but_no_wrong_one():
    """What was counted as dropped may be missing; more than that, or a difference in what is stored, may not."""
    dropped = Losses(dropped=1)
    assert reconcile([row()], [], dropped, 1).holds
    assert reconcile([refused()] * 3, [], dropped, 1).holds
    assert not reconcile([row(), row("r2"), row("r3"), row("r4")], [], dropped, 1).holds
    assert not reconcile([row(), row("r2")], [call("r2", user_id=None)], dropped, 2).holds


def test_what_was_emitted_must_be_accounted_for():
    """More events emitted than stored and counted break the law, and so does an app that says nothing."""
    assert not reconcile([row()], [call()], NOTHING_LOST, 2).holds
    assert not reconcile([row()], [call()], NOTHING_LOST, None).holds


def test_without_a_ledger_only_the_apps_own_figures_count():
    """The real service keeps no ledger: what was emitted is what was called."""
    accounts = reconcile(None, [call()], NOTHING_LOST, 1)
    assert (accounts.holds, accounts.calls) == (True, 1)
    assert not reconcile(None, [call()], NOTHING_LOST, 2).holds


ids = st.lists(st.uuids().map(str), unique=True, max_size=12)


@given(ids=ids, retries=st.lists(st.integers(0, 2), min_size=12, max_size=12), seed=st.integers())
def test_the_order_of_either_side_does_not_matter(ids, retries, seed):
    """Shuffled sides of the same calls balance, and taking any one event away does not."""
    random = Random(seed)
    rows = [row(i) for i in ids] + [refused() for i, _ in enumerate(ids) for _ in range(retries[i])]
    events = [call(i, retries=retries[place]) for place, i in enumerate(ids)]
    random.shuffle(rows)
    random.shuffle(events)
    assert reconcile(rows, events, NOTHING_LOST, len(events)).holds
    if events:
        assert not reconcile(rows, events[1:], NOTHING_LOST, len(events)).holds


@pytest.mark.parametrize("user", [None, "u-ann", "ü@example.com"])
@pytest.mark.parametrize(
    "feature", [None, "summarizer", "POST /translate/{lang}", "POST /tickets/<int:ticket>/headline"]
)
def test_a_witness_is_read_back_from_any_depth_of_a_body(user, feature):
    """What an app writes into a prompt is what the ledger reads; the last witness of a history counts."""
    said = f"{witness(user, feature)} and so on [behave cut]"
    body = {"messages": [{"content": witness("old", "old")}, {"content": [{"type": "text", "text": said}]}]}
    assert witness_in(msgspec.json.decode(msgspec.json.encode(body))) == Witness(user, feature)
    assert witness_in({"messages": "nothing"}) == Witness()


def test_a_ledger_is_appended_to_and_read_from_where_a_run_began(tmp_path):
    """A second run in the same folder keeps the first one's rows, and knows its own."""
    path = tmp_path / "ledger.jsonl"
    assert read_ledger(path) == []
    for name in ("a", "b"):
        ledger = Ledger(path)
        ledger.write(row(name))
        ledger.close()
    assert [r.response_id for r in read_ledger(path)] == ["a", "b"]
    assert [r.response_id for r in read_ledger(path, offset_bytes=ledger.start_bytes)] == ["b"]
    keys = ["response_id", "path", "stream", "http_status", "user", "feature", "prompt_tokens", "completion_tokens"]
    assert list(msgspec.json.decode(path.read_bytes().splitlines()[0])) == keys
