"""Batches of an epoch."""

import numpy as np

from jaxloop.lm.training import batching


def test_batches_cover_every_example_once_per_epoch():
    lengths = np.random.default_rng(1).integers(5, 90, 50)
    plans = batching.plan_batches(
        lengths,
        np.random.default_rng(0),
        batch_size=8,
        steps=None,
        epochs=2,
        length_buckets=3,
        steps_per_call=2,
        limit=96,
    )
    rows = np.concatenate([d.rows.reshape(-1) for d in plans])
    assert sum(len(d.rows) for d in plans) == 14
    assert (np.bincount(rows[rows >= 0], minlength=50) == 2).all() and (rows == -1).sum() == 12
    assert (
        all(lengths[d.rows[d.rows >= 0]].max() <= d.seq_len for d in plans)
        and len({d.seq_len for d in plans}) > 1
    )
    short = batching.plan_batches(
        lengths,
        np.random.default_rng(0),
        batch_size=8,
        steps=9,
        epochs=1,
        length_buckets=3,
        steps_per_call=2,
        limit=96,
    )
    assert sum(len(d.rows) for d in short) == 9


def test_a_last_token_that_is_only_predicted_takes_no_place():
    lengths = np.array([129] * 8 + [113] * 8 + [1])

    def shapes(platform, predicted):
        batches = batching.evaluation_batches(lengths, 32, 256, platform, predicted=predicted)
        return [(len(batch.rows[0]), batch.seq_len) for batch in batches]

    assert shapes("cpu", True) == [(8, 113), (8, 129), (8, 129)]
    assert shapes("cpu", False) == [(8, 128), (8, 160), (8, 160)]
    assert shapes("gpu", True) == shapes("gpu", False)
    (single,) = batching.evaluation_batches(np.array([1, 1]), 32, 1, "cpu", predicted=True)
    assert single.seq_len >= 2
    (many,) = batching.evaluation_batches(np.full(32, 30), 32, 256, "cpu")
    assert (len(many.rows[0]), many.seq_len) == (32, 32)
