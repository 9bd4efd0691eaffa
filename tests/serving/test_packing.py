from __future__ import annotations

import random
from typing import Any

from pretune.data.batch import Feature, FeatureSet
from pretune.serving.held_model import Lane, PackedWork
from pretune.serving.jobs import Ask
from pretune.serving.packing import next_batch

BUDGET = 100


def lane(**more: Any) -> Lane:
    return Lane("m", "predict", lambda features: [None] * len(features), BUDGET, **more)


def work(lane: Lane, lengths: list[int], records: list[int] | None = None) -> PackedWork:
    rows = records or range(len(lengths))
    features = FeatureSet.of(
        Feature([1] * length, record=record) for length, record in zip(lengths, rows, strict=True)
    )
    ask = Ask(0, "m", "predict", None, {}, 0.0)
    return PackedWork(ask, 0.0, 1, lane=lane, features=features, finish=list)


def run(works: list[PackedWork]) -> list[tuple[int, int]]:
    """Run the next batch: how many features, and how many tokens, of each work."""
    taken = {id(share.work): share for share in next_batch(works)}
    sizes = []
    for own in works:
        share = taken.get(id(own))
        count, tokens = (share.stop - share.start, share.tokens) if share else (0, 0)
        own.items += [None] * count
        own.attained += tokens
        sizes.append((count, tokens))
    return sizes


def test_a_batch_is_as_many_tokens_as_have_room() -> None:
    own = work(lane(), [30, 30, 30, 30, 90, 5])
    assert [run([own])[0][0] for _ in range(3)] == [3, 1, 2]


def test_short_requests_share_a_batch() -> None:
    one = lane()
    assert run([work(one, [10]), work(one, [20, 5]), work(one, [7])]) == [(1, 10), (2, 25), (1, 7)]


def test_one_that_is_longer_than_a_batch_is_run_all_the_same() -> None:
    assert run([work(lane(), [300])]) == [(1, 300)]


def test_a_short_request_is_in_the_next_batch_whatever_long_ones_wait() -> None:
    one = lane()
    long, other, short = work(one, [10] * 50), work(one, [10] * 50), work(one, [10])
    run([long, other])
    assert run([long, other, short])[2] == (1, 10)


def test_a_long_request_goes_on_however_many_short_ones_come() -> None:
    one = lane()
    long = work(one, [10] * 50)
    run([long])
    assert run([long, *(work(one, [20]) for _ in range(20))])[0] == (2, 20)


def test_what_others_leave_is_for_the_oldest() -> None:
    one = lane()
    assert run([work(one, [10] * 50), work(one, [10])]) == [(9, 90), (1, 10)]


def test_rows_are_limited_where_each_takes_many_passes() -> None:
    one = lane(rows=4)
    assert run([work(one, [1] * 9), work(one, [1] * 9)]) == [(1, 1), (3, 3)]


def test_records_stay_together_where_the_model_keeps_a_state() -> None:
    whole = lane(whole_records=True)
    own = work(whole, [40, 40, 40, 40, 20, 90], [0, 0, 1, 1, 1, 2])
    assert [run([own])[0][0] for _ in range(3)] == [2, 3, 1]
    assert run([work(whole, [40] * 5, [0] * 5)]) == [(5, 200)]
    # Whole records of another request only where they have room.
    first, second = work(whole, [20]), work(whole, [60, 30, 10], [0, 0, 1])
    assert run([first, second]) == [(1, 20), (0, 0)]
    assert run([second]) == [(3, 100)]


def test_every_feature_is_run_once_and_no_batch_is_too_large() -> None:
    chance = random.Random(0)
    for _ in range(200):
        one = lane(rows=chance.choice([None, 3, 50]), whole_records=False)
        waiting = [
            work(one, [chance.randint(1, 60) for _ in range(chance.randint(1, 9))])
            for _ in range(chance.randint(1, 8))
        ]
        batches = 0
        while waiting:
            sizes = run(waiting)
            assert 0 < sum(tokens for _, tokens in sizes) <= BUDGET
            waiting = [own for own in waiting if len(own.items) < len(own.features)]
            batches += 1
            assert batches < 200
