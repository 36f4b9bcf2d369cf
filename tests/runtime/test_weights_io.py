"""Weights on disk: exact, equal bytes for equal weights, sharded or not, refused where they are not
arrays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxloop.runtime import atomic_io, weights_io


def tree():
    draw = np.random.default_rng(0)
    return {
        "q": {
            "a": draw.normal(size=(2, 3)).astype(np.float32),
            "b": jnp.arange(4, dtype=jnp.bfloat16),
        },
        "layers": [np.asarray(5, np.int32), (np.zeros((0, 2)), None)],
        "q/a": np.asarray([True, False]),
        "f8": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
        "rank": 16,
        "scale": 0.5,
        "name": "adapter",
        "turned": np.arange(6.0).reshape(2, 3).T,
        "empty": {},
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if isinstance(y, np.ndarray | jax.Array):
            assert x.dtype == y.dtype and x.shape == y.shape
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x == y


def test_a_tree_comes_back_exactly(tmp_path):
    assert weights_io.save_tree(tmp_path, "adapters/chain=a", tree()) == [
        "adapters/chain=a.safetensors"
    ]
    same(weights_io.load_tree(tmp_path, "adapters/chain=a"), tree())
    same(weights_io.load_tree(tmp_path, "adapters/chain=a")["turned"], tree()["turned"])


def test_equal_weights_are_equal_bytes(tmp_path):
    files_of = [weights_io.save_tree(tmp_path, f"a{i}", tree())[0] for i in range(8)]
    assert len({(tmp_path / f).read_bytes() for f in files_of}) == 1


def test_safetensors_alone_reads_the_arrays(tmp_path):
    weights_io.save_tree(tmp_path, "a", tree())
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["layers/0"], 5)


def test_sharded_weights_go_through_orbax_and_come_back_exactly(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("x",))
    spread = jax.device_put(
        np.arange(32, dtype=np.float32).reshape(8, 4), NamedSharding(mesh, PartitionSpec("x"))
    )
    made = {"w": spread, "b": [np.arange(3), jnp.ones(2, jnp.bfloat16)], "n": 3}
    written = weights_io.save_tree(tmp_path, "adapters/full", made)
    assert len(written) > 2 and all((tmp_path / name).is_file() for name in written)
    on_disk = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert on_disk == set(written)
    same(
        weights_io.load_tree(tmp_path, "adapters/full"),
        jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, made),
    )


class Pair(NamedTuple):
    a: int


@pytest.mark.parametrize("bad", [{1: np.ones(1)}, {"f": len}, {"p": Pair(1)}, {"s": {1, 2}}])
def test_what_is_not_a_tree_of_arrays_is_refused(tmp_path, bad):
    with pytest.raises(TypeError, match="weights"):
        weights_io.save_tree(tmp_path, "a", bad)


def test_damaged_weights_are_named_and_missing_ones_are_missing(tmp_path):
    weights_io.save_tree(tmp_path, "a", tree())
    whole = (tmp_path / "a.safetensors").read_bytes()
    for content in (b"", whole[:30], whole[:-3], b"\x80\x04pickle"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="a.safetensors: cannot be read as weights"):
            weights_io.load_tree(tmp_path, "a")
    with pytest.raises(FileNotFoundError):
        weights_io.load_tree(tmp_path, "b")


def test_weights_that_do_not_fit_are_refused_with_numbers(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(atomic_io.DiskFull, match="a.safetensors needs 40"):
            weights_io.save_tree(tmp_path, "a", {"w": np.ones(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
