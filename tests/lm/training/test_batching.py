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
    many = list(batching.evaluation_batches(np.full(30, 30), 32, 256, "cpu"))
    assert [(len(batch.rows[0]), batch.seq_len) for batch in many] == [(8, 32)] * 4
    assert (many[-1].rows[0, -2:] == -1).all()


def test_few_padded_lengths_are_the_same_for_all_texts():
    """Two lengths an epoch, of few in all, however long the texts of a generation are; with more
    lengths, those that fit best.
    """

    def shapes(length_buckets):
        seen = set()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            lengths = rng.integers(20, 60 + seed, 256)
            plans = batching.plan_batches(
                lengths,
                rng,
                batch_size=16,
                steps=20,
                epochs=1,
                length_buckets=length_buckets,
                steps_per_call=16,
                limit=96,
            )
            assert all(lengths[b.rows[b.rows >= 0]].max() <= b.seq_len for b in plans)
            seen |= {(plan.seq_len, plan.rows.shape[1]) for plan in plans}
        return seen

    assert shapes(2) == {(64, 16), (96, 16)}
    assert len(shapes(4)) > 2
