"""One compiled loop for every model with a formula: what to fit is a `Family`, what to train on
comes from `recursion.workflow`.

A whole study is one program: `lax.scan` over generations, vmapped over replicates and settings,
mapped over devices. The plan of a chain is the one that the driver of the language models gets from
the same key.

C chains = S settings x R replicates, K entities, T generations after generation 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.categorical import inverse_cdf
from jaxloop.core.keys import chain_key, phase_key
from jaxloop.core.likelihood import weighted_mean_loss
from jaxloop.core.map_chains import map_chains, whole
from jaxloop.recursion.workflow import (
    SYNTHETIC,
    Plan,
    Workflow,
    external_needed,
    gather,
    human_needed,
    plan,
    plan_rows,
    train_size,
)
from jaxloop.runtime.setup_jit import setup_jit


class Family(NamedTuple):
    """A model, as pure functions of arrays. Items are arrays [n, ...] of one dtype; params any
    pytree of fixed shapes.

    draw     (key, n) -> items of the real source
    fit      (key, items, weights [n]) -> params; rows of weight 0 are padding. With `continues` it takes a fourth argument, the params it
             starts from: the last fit where the workflow's `start` is "previous", else the base
             model
    sample   (key, params, n) -> items
    measure  (params, items) -> {name: array}; items are those the model wrote
    base     (key) -> params of the model before generation 0, where `weigh` or `continues` needs one
    weigh    (base, previous, items) -> weights [n], from the base model and the last fit (the base model at generation 0)
    outside  (key, n) -> items of the external source
    least    fewest items that can be fitted
    """

    draw: Callable
    fit: Callable
    sample: Callable
    measure: Callable
    base: Callable | None = None
    weigh: Callable | None = None
    outside: Callable | None = None
    continues: bool = False
    least: int = 1


def run(
    family: Family | Callable[[Any], Family],
    workflow: Workflow,
    *,
    generations: int,
    replicates: int = 1,
    seed: int = 0,
    settings=None,
    keys=None,
    micro_batch: int | None = None,
    mesh=None,
    x64: bool = True,
) -> dict[str, np.ndarray]:
    """Metrics {name: [R, T+1, ...]} of R chains of generations 0..T under a workflow; [R, T+1, K,
    ...] where it has K > 1 entities.

    settings: pytree of arrays [S, ...]; `family` is then a function of one setting, and the results
    are [S, R, T+1, ...]. keys [R] (or [S, R]): chain keys; by default those of replicate r of
    setting s are fold_in(fold_in(seed, r), s), without settings
      fold_in(seed, r), however many there are. micro_batch: chains that run together; mesh: devices
      that share them (`map_chains`).
    x64: 64-bit arithmetic, inside this call only.

    Raises ValueError for generations below 1, replicates below 1, fewer items than the family can
    be fitted to, and a workflow with external items for a family that has no source of them.
    """
    if (
        isinstance(generations, bool)
        or not isinstance(generations, (int, np.integer))
        or generations < 1
    ):
        raise ValueError(f"generations={generations!r}: must be an integer of at least 1")
    if replicates < 1:
        raise ValueError(f"replicates={replicates}: must be at least 1")
    count = 1 if settings is None else len(jax.tree.leaves(settings)[0])
    with jax.enable_x64(x64):
        settings = jax.tree.map(jnp.asarray, settings)
        if keys is None:
            keys = _keys(chain_key(seed), replicates, None if settings is None else count)
        keys = keys.reshape(-1)
        total = keys.shape[0]
        padded = whole(total, micro_batch=micro_batch, mesh=mesh)
        index = jnp.arange(padded, dtype=jnp.int32) % total
        per_setting = total // count
        chains = (jax.tree.map(lambda x: x[index // per_setting], settings), keys[index])
        out = _program(family, workflow, int(generations), micro_batch, mesh)(chains)
        out = {name: np.asarray(x)[:total] for name, x in out.items()}
    if workflow.entities == 1:
        out = {name: x[:, :, 0] for name, x in out.items()}
    return (
        out
        if settings is None
        else {name: x.reshape(count, per_setting, *x.shape[1:]) for name, x in out.items()}
    )


@setup_jit(static_argnums=(1, 2))
def _keys(root, replicates, settings):
    each = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(replicates, dtype=jnp.uint32))
    if settings is None:
        return each
    return jax.vmap(lambda s: jax.vmap(lambda key: jax.random.fold_in(key, s))(each))(
        jnp.arange(settings, dtype=jnp.uint32)
    )


def _program(family, workflow, generations, micro_batch, mesh):
    if isinstance(family, Family):
        return partial(_run_family, family, workflow, generations, micro_batch, mesh)
    return partial(_run_settings, family, workflow, generations, micro_batch, mesh)


# Compiled once per family object, workflow and number of chains; builders of families cache what
# they return.
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run_family(family, workflow, generations, micro_batch, mesh, chains):
    return map_chains(
        lambda chain: _chain(family, workflow, generations, chain[1]),
        chains,
        micro_batch=micro_batch,
        mesh=mesh,
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run_settings(make, workflow, generations, micro_batch, mesh, chains):
    return map_chains(
        lambda chain: _chain(make(chain[0]), workflow, generations, chain[1]),
        chains,
        micro_batch=micro_batch,
        mesh=mesh,
    )


def _chain(family: Family, workflow: Workflow, generations: int, key):
    _check_sizes(family, workflow, generations)
    entities = jnp.arange(workflow.entities, dtype=jnp.int32)
    whose = lambda phase, g: jax.vmap(partial(jax.random.fold_in, phase_key(key, g, phase)))(
        entities
    )
    human = jax.vmap(lambda k: family.draw(k, human_needed(workflow, generations + 1)))(
        whose("human", 0)
    )
    read, first, remember = (_in_order if reads_only_the_last(workflow) else _from_store)(
        family, workflow, generations, key, human, entities
    )
    looks_back = family.continues or family.weigh is not None
    base = jax.vmap(family.base)(whose("base", 0)) if looks_back else None

    def step(carry, g):
        memory, previous = carry
        items, weights = read(memory, g)
        if family.weigh is not None:
            weights = weights * jax.vmap(family.weigh)(base, previous, items).astype(weights.dtype)
        start = ((previous if workflow.start == "previous" else base),) if family.continues else ()
        params = jax.vmap(family.fit)(whose("fit", g), items, weights, *start)
        written = jax.vmap(lambda k, p: family.sample(k, p, workflow.synthetic))(
            whose("sample", g), params
        )
        metrics = jax.vmap(family.measure)(params, written)
        return (remember(memory, written, g), params if looks_back else None), metrics

    return jax.lax.scan(step, (first, base), jnp.arange(generations + 1, dtype=jnp.int32))[1]


def _check_sizes(family, workflow, generations):
    if workflow.external and family.outside is None:
        raise ValueError(
            f"workflow={workflow.name}: has external items, which this family has no source of"
        )
    sizes = {g: train_size(workflow, g) for g in range(generations + 1)}
    fewest = min(sizes, key=sizes.get)
    if sizes[fewest] < family.least:
        raise ValueError(
            f"workflow={workflow.name}: generation {fewest} trains on N={sizes[fewest]} items, "
            f"this family needs at least {family.least}"
        )


def reads_only_the_last(workflow: Workflow) -> bool:
    """Whether every plan after generation 0 is all that the generation before wrote, in order, so
    that nothing need be gathered.

    Read off the plans themselves: two generations of a workflow that draws nothing at random.
    """
    if (
        workflow.train is not None
        or workflow.preserved
        or workflow.mixing is not None
        or workflow.shared
        or workflow.exchange is not None
    ):
        return False
    rows = np.arange(workflow.initial)
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        plans = [
            plan(workflow, jax.random.key(0), g, generations=4, entity=workflow.entities - 1)
            for g in (0, 1, 3)
        ]
        for g, p in zip((0, 1, 3), plans, strict=True):
            whole_output = (
                p.valid.all()
                and p.index.shape == rows.shape
                and (np.asarray(p.index) == rows).all()
            )
            if not whole_output or (
                g and not ((p.source == SYNTHETIC).all() and (p.generation == g - 1).all())
            ):
                return False
            if (p.entity != workflow.entities - 1).any():
                return False
    return True


def _in_order(family, workflow, generations, key, human, entities):
    def read(items, g):
        return items, jnp.ones(items.shape[:2], jnp.result_type(float))

    return read, human[:, : workflow.initial], lambda items, written, g: written


def _from_store(family, workflow, generations, key, human, entities):
    """Items gathered by plan from the human stream and from a ring of the newest generations that a
    plan can still ask for.
    """
    outside = public = None
    streams = lambda draw, phase, n: jax.vmap(
        lambda k: draw(jax.random.fold_in(phase_key(key, 0, phase), k), n)
    )(entities)
    if workflow.external:
        outside = streams(family.outside, "external", external_needed(workflow, generations + 1))
    if workflow.exchange is not None and workflow.exchange.public:
        public = family.draw(phase_key(key, 0, "public"), workflow.exchange.public)
    kept = min(
        (workflow.window if workflow.exchange is None else workflow.exchange.past) or generations,
        generations,
    )
    store = jnp.zeros((kept, workflow.entities, workflow.synthetic, *human.shape[2:]), human.dtype)

    def read_one(store, g, entity):
        # The plan is 32-bit whatever the family: the language models get the same one.
        with jax.enable_x64(False):
            items = plan(workflow, key, g, generations=generations + 1, entity=entity)
        held = Plan(items.source, items.generation % kept, items.index, items.entity, items.valid)
        return gather(
            held, human=human, synthetic=store, external=outside, public=public
        ), items.valid.astype(jnp.result_type(float))

    def remember(store, written, g):
        return jax.lax.dynamic_update_index_in_dim(store, written.astype(store.dtype), g % kept, 0)

    return lambda store, g: jax.vmap(partial(read_one, store, g))(entities), store, remember


def weighted_mean(values, weights=None):
    """Weighted mean of values [n], by the kernel that weights the loss of language models."""
    # The kernel asks for at least float32 with a promotion that strict mode refuses for float64.
    with jax.numpy_dtype_promotion("standard"):
        return weighted_mean_loss(values, weights)


def choose(key, weights, count: int):
    """`count` indices (int32) drawn with probability weights / sum(weights), by the sampler of the
    language models.
    """
    u = jax.random.uniform(key, (count,), weights.dtype)
    return jax.vmap(lambda one: inverse_cdf(weights[None], one[None])[0])(u).astype(jnp.int32)


def rows(workflow: Workflow, generations: int) -> int:
    """Rows that `fit` sees in every generation of a run of generations 0..T, padding included."""
    return (
        workflow.initial if reads_only_the_last(workflow) else plan_rows(workflow, generations + 1)
    )
