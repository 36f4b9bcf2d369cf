"""Reading safetensors against the library's own reader: blocks, turned matrices, packed columns,
every stored type; and headers that do not fit.
"""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxloop.lm.io import safetensors_files, safetensors_header
from jaxloop.lm.io.json_fields import Refused
from jaxloop.lm.model.config import Param, Source

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("block", [1 << 23, 256, 64])
@pytest.mark.parametrize("inside", [5, 16, 24])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_tensors_are_read_turned_fused_and_converted(dtype, inside, block, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "BLOCK", block)
    rng, widths = np.random.default_rng(0), (16, 3, 8, 40)
    parts = [[f"{i}.part{k}.weight" for k in range(len(widths))] for i in range(2)]
    tensors = {
        name: rng.standard_normal((w, inside)).astype(dtype)
        for names in parts
        for name, w in zip(names, widths, strict=True)
    }
    tensors |= {
        "embed.weight": rng.standard_normal((7, inside)).astype(dtype),
        "scale.weight": rng.standard_normal(inside).astype(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    sources = tuple(Source(f"{{i}}.part{k}.weight", w) for k, w in enumerate(widths))
    table = [
        Param(("layers", "fused"), (inside, sum(widths)), sources, transposed=True),
        Param(("embed",), (7, inside), (Source("embed.weight", inside),)),
        Param(("scale",), (inside,), (Source("scale.weight", inside),)),
    ]
    known = load_file(tmp_path / "model.safetensors")
    for target in DTYPES:
        found = safetensors_files.read(safetensors_files.weights(tmp_path), table, 2, target)
        packed = np.stack(
            [np.concatenate([known[name].T for name in names], -1) for names in parts]
        )
        expected = {
            "layers": {"fused": packed},
            "embed": known["embed.weight"],
            "scale": known["scale.weight"],
        }
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), found, expected
        )
        assert all(
            leaf.ctypes.data % 64 == 0 and leaf.dtype == target for leaf in jax.tree.leaves(found)
        )
    np.testing.assert_array_equal(
        safetensors_files.tensor(safetensors_files.weights(tmp_path), "embed.weight"),
        known["embed.weight"],
    )


def written(path, entries, data=b"\0" * 16):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


FINE = dict(dtype="F32", shape=[4], data_offsets=[0, 16])


@pytest.mark.parametrize(
    "entries",
    [
        {"a": FINE | dict(data_offsets=[0, 12])},
        {"a": FINE | dict(data_offsets=[4, 20])},
        {"a": FINE | dict(shape=[5])},
        {"a": FINE | dict(shape=[-4])},
        {"a": FINE | dict(dtype="F33")},
        {"a": FINE, "b": FINE},
        {"a": 7},
        {"a": FINE | dict(data_offsets=[0])},
        b"[]",
        b"{",
        b'{"a": {}, "a": {}}',
        {},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file_is_refused(entries, tmp_path):
    written(tmp_path / "model.safetensors", entries)
    with pytest.raises(Refused, match="safetensors of .* cannot be read"):
        safetensors_header.header(tmp_path / "model.safetensors")


def test_a_header_that_fits_is_read(tmp_path):
    written(tmp_path / "model.safetensors", {"__metadata__": {"format": "pt"}, "a": FINE})
    (tensor,) = safetensors_header.header(tmp_path / "model.safetensors")
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.stop - tensor.start) == (
        "a",
        "F32",
        (4,),
        16,
    )


def test_equal_numbers_of_two_types_are_the_same(tmp_path):
    values = np.arange(600, dtype=np.float32)
    save_file(
        {"a": values, "b": values.astype(np.float16), "c": values + (values == 599)},
        tmp_path / "model.safetensors",
    )
    w = safetensors_files.weights(tmp_path)
    assert safetensors_files.same(w, w.where["a"], w.where["b"]) and not safetensors_files.same(
        w, w.where["a"], w.where["c"]
    )
