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
