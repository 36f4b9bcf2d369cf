"""LoRA adapters as a pytree with a leading chain axis; fusing them for compute. Files:
`peft_files.py`.

Dimensions: C chains, L layers, D input width, O output width, R rank.
An adapter is {target: {"a": [C, L, D, R], "b": [C, L, R, O]}} and adds `(alpha / R) (x a) b` to its
projection.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.model.config import Spec, site_widths, sites
from jaxloop.runtime.setup_jit import setup_jit


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters. `targets`: "all-linear" (every projection of the block) or names, ours (q,
    k, v, o, gate, up, down, qkv) or Hugging Face's (q_proj, c_attn, fc1, ...). `dropout` acts on
    the adapter's input, in training only.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] | str = "all-linear"
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_names(spec: Spec, lora: Lora) -> tuple[str, ...]:
    """Our names of the targeted projections.

    Raises ValueError for a name that the architecture does not have."""
    parts = [part for group in sites(spec).values() for part in group]
    if lora.targets == "all-linear":
        return tuple(p.name for p in parts)
    wanted = (lora.targets,) if isinstance(lora.targets, str) else tuple(lora.targets)
    known = {alias: p.name for p in parts for alias in (p.name, p.module, p.module.split(".")[-1])}
    # GPT-2 calls both writers c_proj; peft matches both, and so do we.
    several = {"c_proj": ("o", "down")} if spec.architecture == "gpt2" else {}
    bad = [name for name in wanted if name not in known and name not in several]
    if bad:
        raise ValueError(
            f"lora.targets: {bad[0]!r} is not a projection of {spec.architecture}; allowed are "
            f"'all-linear' or some of {sorted(known)}"
        )
    chosen = {n for name in wanted for n in several.get(name, (known.get(name),))}
    return tuple(p.name for p in parts if p.name in chosen)


@setup_jit(static_argnums=(1, 2))
def init(keys: jax.Array, spec: Spec, lora: Lora) -> dict:
    """Fresh adapters for the chains of `keys` [C]: a uniform in +-1/sqrt(D) (peft's Kaiming rule),
    b zero; float32.
    """
    names = target_names(spec, lora)
    tree = {}
    for site, parts in sites(spec).items():
        inside, _ = site_widths(spec)[site]
        for part in parts:
            if part.name not in names:
                continue
            number = sum(ord(c) << (8 * i) for i, c in enumerate(part.name[:3]))

            def draw(
                key, number=number, shape=(spec.layers, inside, lora.rank), limit=inside**-0.5
            ):
                return jax.random.uniform(
                    jax.random.fold_in(key, number), shape, minval=-limit, maxval=limit
                )

            tree[part.name] = {
                "a": jax.vmap(draw)(keys),
                "b": jnp.zeros((keys.shape[0], spec.layers, lora.rank, part.width)),
            }
    return tree


class Summed(NamedTuple):
    """A site's adapter which `transformer.linear` may add to the base's weights, where that is less
    work: in float32, as bfloat16 would lose it.

    `a` [C, L, n R, D] is transposed: its gradient is then a product with few rows, which takes a
    half to a quarter of the time of one with few columns. `b` has one [C, L, R, O], or None, for
    each part.
    """

    a: jax.Array
    b: tuple


class Parts(NamedTuple):
    """A site's adapter as `lean.linear` takes it, float32: `a` [C, L, D, n R] of all its targets,
    and `b` with one [C, L, n R, O] for each part, whose rows of other targets are zero (None where
    a part is not targeted). No product then needs a slice of x A.
    """

    a: jax.Array
    b: tuple


def fuse(
    spec: Spec,
    adapters: dict,
    lora: Lora,
    dtype,
    *,
    block_diagonal: bool = False,
    summed: bool = False,
    parts: bool = False,
) -> dict:
    """Adapters grouped by fused projection: {site: {"a": [C, L, D, n R], "b": ..., }} with the
    scale folded into b.

    One product with `a` serves all targets of a site. `b` is a tuple with one entry per part (None
    where it is not targeted), or, with `block_diagonal`, one matrix [C, L, n R, O], which costs a
    few more multiplications and far fewer kernels: for decoding. With `summed` and in float32,
    {site: `Summed`}: for training. With `parts`, {site: `Parts`}: for training in bfloat16 on an
    accelerator.
    """
    fused = {}
    for site, group in sites(spec).items():
        present = [p for p in group if p.name in adapters]
        if not present:
            continue
        if parts:
            fused[site] = _parts(adapters, group, present, lora)
            continue
        a = jnp.concatenate([adapters[p.name]["a"] for p in present], -1).astype(dtype)
        b = tuple(
            (adapters[p.name]["b"] * lora.scale).astype(dtype) if p.name in adapters else None
            for p in group
        )
        if summed and dtype == jnp.float32:
            fused[site] = Summed(a.swapaxes(-1, -2), b)
            continue
        if block_diagonal:
            rows = []
            start = np.cumsum([0] + [p.width for p in group])
            for p, w, left in zip(group, b, start[:-1], strict=True):
                if w is not None:
                    rows.append(
                        jnp.pad(
                            w,
                            ((0, 0), (0, 0), (0, 0), (int(left), int(start[-1] - left - p.width))),
                        )
                    )
            b = jnp.concatenate(rows, -2)
        fused[site] = {"a": a, "b": b}
    return fused


def _parts(adapters, group, present, lora) -> Parts:
    b, rows = [], [p.name for p in present]
    for p in group:
        if p.name not in adapters:
            b.append(None)
            continue
        at, after = rows.index(p.name) * lora.rank, (len(rows) - 1 - rows.index(p.name)) * lora.rank
        b.append(jnp.pad(adapters[p.name]["b"] * lora.scale, ((0, 0), (0, 0), (at, after), (0, 0))))
    return Parts(jnp.concatenate([adapters[p.name]["a"] for p in present], -1), tuple(b))


def split(adapters: dict, chain: int) -> dict:
    """The adapter of one chain, without the chain axis."""
    return jax.tree.map(lambda leaf: leaf[chain], adapters)


def stack(adapters: list[dict]) -> dict:
    """Adapters of several chains with a leading chain axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
