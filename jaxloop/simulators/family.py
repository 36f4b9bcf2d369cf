"""One compiled loop for every model with a formula: an `ArrayFamily` says what is fitted, a
`recursion.workflow.Workflow` what it trains on.

A whole study is one program: `lax.scan` over generations, vmapped over replicates and settings,
mapped over devices. A chain's index plan is the one that language models get from the same key.

C chains = S settings x R replicates, K entities, T generations after generation 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.core.categorical import inverse_cdf
from jaxloop.core.checks import check_whole
from jaxloop.core.keys import chain_key, phase_key
from jaxloop.core.likelihood import weighted_mean_loss
from jaxloop.core.map_chains import map_chains, padded_count
from jaxloop.recursion.plan import gather, index_plan, plan_rows
from jaxloop.recursion.workflow import (
    SYNTHETIC,
    Workflow,
    external_needed,
    human_needed,
    train_size,
)
from jaxloop.runtime.setup_jit import setup_jit

# A number that may be traced.
Scalar = float | jax.Array
# Params of a model: any pytree of fixed shapes.
Params = Any
Metrics = dict[str, jax.Array]


class ArrayFamily(NamedTuple):
    """A model, as pure functions of arrays. Items are arrays [n, ...] of one dtype.

    It is not a `recursion.family.Family`: it has no texts, and all generations are one program.

    draw       (key, n) -> items of the real source
    fit        (key, items, weights [n]) -> params; rows of weight 0 are padding. With `continues`
               it takes a fourth argument, the params that it starts from: the last fit where the
               workflow's `start` is "previous", else the base model
    sample     (key, params, n) -> items
    measure    (params, items) -> {name: array}; items are those that the model generated
    base       (key) -> params of the model before generation 0, where `weigh` or `continues` needs
               one
    weigh      (base, previous, items) -> weights [n], from the base model and the last fit (the
               base model at generation 0)
    outside    (key, n) -> items of the external source
    continues  whether `fit` takes params to start from
    least      fewest items that can be fitted
    """

    draw: Callable[[jax.Array, int], jax.Array]
    fit: Callable[..., Params]
    sample: Callable[[jax.Array, Params, int], jax.Array]
    measure: Callable[[Params, jax.Array], Metrics]
    base: Callable[[jax.Array], Params] | None = None
    weigh: Callable[[Params, Params, jax.Array], jax.Array] | None = None
    outside: Callable[[jax.Array, int], jax.Array] | None = None
    continues: bool = False
    least: int = 1


MakeFamily = Callable[[Any], ArrayFamily]


def run(
    family: ArrayFamily | MakeFamily,
    workflow: Workflow,
    *,
    generations: int,
    replicates: int = 1,
    seed: int = 0,
    settings: Any = None,
    keys: jax.Array | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    x64: bool = True,
) -> dict[str, np.ndarray]:
    """Metrics {name: [R, T+1, ...]} of R chains of generations 0..T under a workflow; [R, T+1, K,
    ...] where it has K > 1 entities.

    Args:
        family: the model; with `settings`, a function of one setting that returns it.
        workflow: what it trains on.
        generations: T.
        replicates: R.
        seed: of the default keys.
        settings: pytree of arrays [S, ...]; the results are then [S, R, T+1, ...].
        keys: [R] (or [S, R]) chain keys; default: fold_in(fold_in(seed, r), s) for replicate r of
            setting s, fold_in(seed, r) without settings, whatever R is.
        batch_size: chains that run together.
        mesh: devices that share the chains (`map_chains`).
        x64: 64-bit arithmetic, inside this call only.

    Raises:
        ValueError: `generations`, `replicates` or `batch_size` is below 1, there are fewer items
            than the family can be fitted to, or the workflow has external items and the family no
            source of them.
    """
    generations = check_whole("generations", generations)
    replicates = check_whole("replicates", replicates)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    count = 1 if settings is None else len(jax.tree.leaves(settings)[0])
    with jax.enable_x64(x64):
        settings = jax.tree.map(jnp.asarray, settings)
        if keys is None:
            keys = _keys(chain_key(seed), replicates, None if settings is None else count)
        keys = keys.reshape(-1)
        total = keys.shape[0]
        padded = padded_count(total, batch_size=batch_size, mesh=mesh)
        index = jnp.arange(padded, dtype=jnp.int32) % total
        per_setting = total // count
        chains = (jax.tree.map(lambda x: x[index // per_setting], settings), keys[index])
        out = _program(family, workflow, generations, batch_size, mesh)(chains)
        results = {name: np.asarray(x)[:total] for name, x in out.items()}
    if workflow.entities == 1:
        results = {name: x[:, :, 0] for name, x in results.items()}
    if settings is None:
        return results
    return {name: x.reshape(count, per_setting, *x.shape[1:]) for name, x in results.items()}


@setup_jit(static_argnums=(1, 2))
def _keys(root: jax.Array, replicates: int, settings: int | None) -> jax.Array:
    """Keys [R], or [S, R] of `settings` S."""
    each = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(replicates, dtype=jnp.uint32))
    if settings is None:
        return each
    of_replicates = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    of_settings = jax.vmap(of_replicates, in_axes=(None, 0))
    return of_settings(each, jnp.arange(settings, dtype=jnp.uint32))


def _program(
    family: ArrayFamily | MakeFamily,
    workflow: Workflow,
    generations: int,
    batch_size: int | None,
    mesh: Mesh | None,
) -> Callable[[Any], Metrics]:
    if isinstance(family, ArrayFamily):
        return partial(_run_family, family, workflow, generations, batch_size, mesh)
    return partial(_run_settings, family, workflow, generations, batch_size, mesh)


# Compiled once per family object, workflow and number of chains; builders of families cache what
# they return.
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run_family(
    family: ArrayFamily,
    workflow: Workflow,
    generations: int,
    batch_size: int | None,
    mesh: Mesh | None,
    chains: Any,
) -> Metrics:
    return map_chains(
        lambda chain: _chain(family, workflow, generations, chain[1]),
        chains,
        batch_size=batch_size,
        mesh=mesh,
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run_settings(
    make: MakeFamily,
    workflow: Workflow,
    generations: int,
    batch_size: int | None,
    mesh: Mesh | None,
    chains: Any,
) -> Metrics:
    return map_chains(
        lambda chain: _chain(make(chain[0]), workflow, generations, chain[1]),
        chains,
        batch_size=batch_size,
        mesh=mesh,
    )


class _Memory(NamedTuple):
    """What a chain remembers of earlier generations, as pure functions.

    first     state before generation 0
    read      (state, generation) -> (items [K, n, ...], weights [K, n]) to train on
    remember  (state, generated [K, m, ...], generation) -> state
    """

    first: jax.Array
    read: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    remember: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _chain(family: ArrayFamily, workflow: Workflow, generations: int, key: jax.Array) -> Metrics:
    """Metrics [T+1, K, ...] of one chain."""
    check_sizes(family, workflow, generations)
    entities = jnp.arange(workflow.entities, dtype=jnp.int32)

    def entity_keys(phase: str, generation: int | jax.Array) -> jax.Array:
        return jax.vmap(partial(jax.random.fold_in, phase_key(key, generation, phase)))(entities)

    human_count = human_needed(workflow, generations + 1)
    human = jax.vmap(lambda k: family.draw(k, human_count))(entity_keys("human", 0))
    if reads_only_the_last(workflow):
        memory = _in_order(workflow, human)
    else:
        memory = _from_store(family, workflow, generations, key, human, entities)
    looks_back = family.continues or family.weigh is not None
    base = None
    if looks_back and family.base is not None:
        base = jax.vmap(family.base)(entity_keys("base", 0))

    def step(
        carry: tuple[jax.Array, Params], generation: jax.Array
    ) -> tuple[tuple[jax.Array, Params], Metrics]:
        state, previous = carry
        items, weights = memory.read(state, generation)
        if family.weigh is not None:
            weights = weights * jax.vmap(family.weigh)(base, previous, items).astype(weights.dtype)
        start = ((previous if workflow.start == "previous" else base),) if family.continues else ()
        params = jax.vmap(family.fit)(entity_keys("fit", generation), items, weights, *start)
        generated = jax.vmap(lambda k, p: family.sample(k, p, workflow.synthetic))(
            entity_keys("sample", generation), params
        )
        metrics = jax.vmap(family.measure)(params, generated)
        state = memory.remember(state, generated, generation)
        return (state, params if looks_back else None), metrics

    steps = jnp.arange(generations + 1, dtype=jnp.int32)
    return jax.lax.scan(step, (memory.first, base), steps)[1]


def check_sizes(family: ArrayFamily, workflow: Workflow, generations: int) -> None:
    """Raise ValueError where a generation has fewer items than the family can be fitted to, or
    external ones that it has no source of.
    """
    if workflow.external and family.outside is None:
        raise ValueError(
            f"workflow={workflow.name}: has external items, which this family has no source of"
        )
    sizes = [train_size(workflow, g) for g in range(generations + 1)]
    fewest = min(range(len(sizes)), key=sizes.__getitem__)
    if sizes[fewest] < family.least:
        raise ValueError(
            f"workflow={workflow.name}: generation {fewest} trains on N={sizes[fewest]} items, "
            f"this family needs at least {family.least}"
        )


def reads_only_the_last(workflow: Workflow) -> bool:
    """Return whether every plan after generation 0 is all that the generation before generated, in
    order, so that nothing need be gathered.

    Read off the plans themselves: three generations of a workflow that draws nothing at random.
    """
    if (
        workflow.train is not None
        or workflow.preserved
        or workflow.mixing is not None
        or workflow.shared
        or workflow.exchange is not None
    ):
        return False
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        return all(_is_last_in_order(workflow, generation) for generation in (0, 1, 3))


def _is_last_in_order(workflow: Workflow, generation: int) -> bool:
    entity = workflow.entities - 1
    plan = index_plan(workflow, jax.random.key(0), generation, generations=4, entity=entity)
    rows = np.arange(workflow.initial)
    if not plan.valid.all() or plan.position.shape != rows.shape:
        return False
    if (np.asarray(plan.position) != rows).any() or (plan.entity != entity).any():
        return False
    if generation == 0:
        return True
    return bool((plan.source == SYNTHETIC).all() and (plan.generation == generation - 1).all())


def _in_order(workflow: Workflow, human: jax.Array) -> _Memory:
    """For `reads_only_the_last`: the state is what the last generation generated."""

    def read(items: jax.Array, generation: jax.Array) -> tuple[jax.Array, jax.Array]:
        return items, jnp.ones(items.shape[:2], jnp.result_type(float))

    def remember(items: jax.Array, generated: jax.Array, generation: jax.Array) -> jax.Array:
        return generated

    return _Memory(human[:, : workflow.initial], read, remember)


def _from_store(
    family: ArrayFamily,
    workflow: Workflow,
    generations: int,
    key: jax.Array,
    human: jax.Array,
    entities: jax.Array,
) -> _Memory:
    """Items are gathered by plan from the human stream and from a ring [generations, K, m, ...] of
    the newest generations that a plan can still ask for, which is the state.
    """
    outside = public = None
    if workflow.external and family.outside is not None:
        draw_outside, count = family.outside, external_needed(workflow, generations + 1)
        keys = jax.vmap(partial(jax.random.fold_in, phase_key(key, 0, "external")))(entities)
        outside = jax.vmap(lambda k: draw_outside(k, count))(keys)
    if workflow.exchange is not None and workflow.exchange.public:
        public = family.draw(phase_key(key, 0, "public"), workflow.exchange.public)
    reach = workflow.window if workflow.exchange is None else workflow.exchange.past
    kept = min(reach or generations, generations)
    first = jnp.zeros((kept, workflow.entities, workflow.synthetic, *human.shape[2:]), human.dtype)

    def read_one(
        store: jax.Array, generation: jax.Array, entity: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # The plan is 32-bit whatever the family: the language models get the same one.
        with jax.enable_x64(False):
            plan = index_plan(workflow, key, generation, generations=generations + 1, entity=entity)
        in_ring = plan._replace(generation=plan.generation % kept)
        items = gather(in_ring, human=human, synthetic=store, external=outside, public=public)
        return items, jnp.asarray(plan.valid, jnp.result_type(float))

    def read(store: jax.Array, generation: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(partial(read_one, store, generation))(entities)

    def remember(store: jax.Array, generated: jax.Array, generation: jax.Array) -> jax.Array:
        generated = generated.astype(store.dtype)
        return jax.lax.dynamic_update_index_in_dim(store, generated, generation % kept, 0)

    return _Memory(first, read, remember)


def weighted_mean(values: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean of values [n], by the kernel that weights the loss of language models."""
    # The kernel asks for at least float32 with a promotion that strict mode refuses for float64.
    with jax.numpy_dtype_promotion("standard"):
        return weighted_mean_loss(values, weights)


def choose(key: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """`count` indices (int32) drawn with probability weights / sum(weights), by the sampler of the
    language models.
    """
    u = jax.random.uniform(key, (count,), weights.dtype)
    return jax.vmap(lambda one: inverse_cdf(weights[None], one[None])[0])(u).astype(jnp.int32)


def rows(workflow: Workflow, generations: int) -> int:
    """Return rows that `fit` sees in every generation of a run of generations 0..T, padding
    included.
    """
    return (
        workflow.initial if reads_only_the_last(workflow) else plan_rows(workflow, generations + 1)
    )
