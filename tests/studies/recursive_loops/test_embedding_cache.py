"""The embedding cache: computed once, gone on with after a stop, checked when read."""

import threading

import numpy as np
import pytest

from jaxloop.studies.recursive_loops.data.embedding_cache import cached_embeddings

TEXTS = [f"text number {i}" for i in range(25)] + ["lone \ud800", ""]


def embed(texts):
    return np.array([[len(t), t.count("1"), hash(t) % 7] for t in texts], np.float64)


class Encoder:
    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def __call__(self, texts):
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(texts))
        return embed(texts)


def test_computed_once_and_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(TEXTS, Encoder(2), tmp_path, name="e", batch=10)
    rest = Encoder()
    found = cached_embeddings(TEXTS, rest, tmp_path, name="e", batch=10)
    assert rest.calls == [7]
    np.testing.assert_array_equal(found, embed(TEXTS).astype(np.float32))
    assert isinstance(found, np.memmap) and not found.flags.writeable
    never = Encoder(0)
    np.testing.assert_array_equal(
        cached_embeddings(TEXTS, never, tmp_path, name="e", batch=4), found
    )


def test_stopped_before_the_first_batch_or_between_data_and_state(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(TEXTS, Encoder(0), tmp_path, name="e", batch=10)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(TEXTS, Encoder(1), tmp_path, name="e", batch=10)
    (data,) = tmp_path.glob("*.f32")
    with open(data, "ab") as stream:
        stream.write(b"half a batch that was never recorded")
    found = cached_embeddings(TEXTS, Encoder(), tmp_path, name="e", batch=10)
    np.testing.assert_array_equal(found, embed(TEXTS).astype(np.float32))
    assert data.stat().st_size == found.nbytes


@pytest.mark.parametrize("harm", ["flip", "cut", "state"])
def test_a_damaged_cache_is_computed_anew(tmp_path, harm):
    expected = np.array(cached_embeddings(TEXTS, embed, tmp_path, name="e"))
    (data,) = tmp_path.glob("*.f32")
    (state,) = tmp_path.glob("*.json")
    content = bytearray(data.read_bytes())
    if harm == "flip":
        content[33] ^= 1
    data.write_bytes(content[:-5] if harm == "cut" else content)
    if harm == "state":
        state.write_text("{")
    again = Encoder()
    np.testing.assert_array_equal(cached_embeddings(TEXTS, again, tmp_path, name="e"), expected)
    assert again.calls == [27]


def test_other_texts_or_another_encoder_are_another_file(tmp_path):
    cached_embeddings(TEXTS, embed, tmp_path, name="e")
    cached_embeddings(TEXTS, embed, tmp_path, name="f")
    cached_embeddings(TEXTS[::-1], embed, tmp_path, name="e")
    assert len(list(tmp_path.glob("*.f32"))) == 3


def test_an_encoder_that_misbehaves_is_named(tmp_path):
    with pytest.raises(ValueError, match="there are no texts"):
        cached_embeddings([], embed, tmp_path, name="e")
    with pytest.raises(ValueError, match=r"'e' gave the shape \(26, 3\) for 27 texts"):
        cached_embeddings(TEXTS, lambda t: embed(t)[1:], tmp_path, name="e")
    with pytest.raises(ValueError, match=r"gave the shape \(27,\)"):
        cached_embeddings(TEXTS, lambda t: embed(t)[:, 0], tmp_path, name="e")
    with pytest.raises(ValueError, match="not finite for the texts from 0 on"):
        cached_embeddings(TEXTS, lambda t: embed(t) * np.nan, tmp_path, name="e")
    widths = iter([3, 2])
    with pytest.raises(ValueError, match=r"must give \(7, 3\)"):
        cached_embeddings(
            TEXTS, lambda t: embed(t)[:, : next(widths)], tmp_path, name="e", batch=20
        )


def test_a_second_run_waits_instead_of_reading_a_file_that_the_first_cuts_off(tmp_path):
    sizes, calls, results = [], [], {}

    def second():
        results["second"] = cached_embeddings(TEXTS, embed, tmp_path, name="e", batch=5)

    thread = threading.Thread(target=second)

    def first(texts):
        calls.append(len(texts))
        if len(calls) == 3:
            thread.start()
            thread.join(0.5)
        if "second" in results:  # what it goes on with is mapped from the file
            sizes.append(next(tmp_path.glob("*.f32")).stat().st_size)
        return embed(texts)

    results["first"] = cached_embeddings(TEXTS, first, tmp_path, name="e", batch=5)
    thread.join(20)
    whole = embed(TEXTS).astype(np.float32)
    assert [size for size in sizes if size != whole.nbytes] == []
    for name in ("first", "second"):
        np.testing.assert_array_equal(results[name], whole)
