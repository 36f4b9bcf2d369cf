"""The training set of one model in one generation as index arrays (an index plan).

They say which item of which source each row is. `workflow.Workflow` says what training sets are;
here they are drawn.

Everything is a pure function of the chain's key, so the simulators (which call `index_plan` inside
a `lax.scan`, vmapped over chains) and the language models (which call it from the host, because
texts must be tokenised again) train on the same items. On the host NumPy computes it, with the same
bits: a program would have to be compiled for every workflow and number of generations.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core import host_draws
from jaxloop.core.keys import phase_key, random_bits
from jaxloop.recursion.workflow import (
    EXTERNAL,
    HUMAN,
    PUBLIC,
    SYNTHETIC,
    Exchange,
    Workflow,
    exchange_weights,
)
from jaxloop.runtime.setup_jit import setup_jit

# Folded into a set's key for the draws that are not of a batch: the preserved items, and the ages
# of synthetic items in an exchange. Changing them changes every draw.
_PRESERVED, _AGES = 0xFFFFFFFF, 0xA6E


Array: TypeAlias = jax.Array | np.ndarray


class IndexPlan(NamedTuple):
    """One training set as arrays [rows], int32 except `valid` (bool).

    Rows that are not valid are padding and hold zeros. The arrays are NumPy's outside of programs;
    after `on_host` they hold valid rows only.

    source      HUMAN, SYNTHETIC, EXTERNAL or PUBLIC
    generation  the generation whose model generated the item (synthetic), or the one that brought
                it into the chain (all others)
    position    row of that generation's output (synthetic), or position in the stream of the source
    entity      whose model generated it, or whose stream it is in
    valid       whether the row is an item
    """

    source: Array
    generation: Array
    position: Array
    entity: Array
    valid: Array


def human_rows(
    key: jax.Array, available: int, needed: int, *, entity: int = 0, entities: int = 1
) -> np.ndarray:
    """Return the row numbers [needed] (int64) of a chain's human stream.

    They are a uniform sample of range(available) without replacement, in random order.

    A longer stream of the same key begins with the shorter one, so more generations can be asked
    for later. Entities that read one data set get disjoint streams.

    Raises:
        ValueError: there are too few items; the message says how many are needed.
    """
    total = needed * entities
    if available < total:
        raise ValueError(f"dataset has {available:,} human items: this chain needs {total:,}")
    bits = np.asarray(random_bits(phase_key(key, 0, "human"), available)).astype(np.uint64)
    ranked = (bits << np.uint64(32)) | np.arange(available, dtype=np.uint64)
    if total < available:
        ranked = np.partition(ranked, total - 1)[:total]
    return (np.sort(ranked) & np.uint64(0xFFFFFFFF)).astype(np.int64)[entity::entities]


def plan_rows(workflow: Workflow, generations: int) -> int:
    """Static number of rows, padding included, of every plan in a run of `generations`."""
    if workflow.exchange is not None:
        return workflow.drawn_rows
    pool = workflow.new_items * _pooled_batches(workflow, generations)
    if workflow.real != "never":
        pool += workflow.initial * workflow.pool_entities
    drawn = pool if workflow.train is None else min(workflow.train, pool)
    return max(workflow.initial, workflow.preserved + drawn)


def index_plan(
    workflow: Workflow,
    key: jax.Array,
    generation: int | jax.Array,
    *,
    generations: int | None = None,
    entity: int | jax.Array = 0,
) -> IndexPlan:
    """Return the training set of one entity in one generation, `plan_rows(workflow, generations)`
    rows.

    Args:
        workflow: the rule; static under jit.
        key: the chain's key.
        generation: may be traced.
        generations: number of generations of the run. It bounds the pool; valid rows do not depend
            on it. Default: up to and with `generation`.
        entity: may be traced.

    Raises:
        ValueError: `generations` is left out although `generation` is traced.
    """
    if generations is None:
        if isinstance(generation, jax.core.Tracer):
            raise ValueError(
                "generations: must be given when generation is traced, it bounds the pool"
            )
        generations = int(generation) + 1
    data = None
    if not any(isinstance(number, jax.core.Tracer) for number in (generation, entity)):
        data = host_draws.key_data(key)
    if data is None:
        traced = jnp.asarray(generation, jnp.int32), jnp.asarray(entity, jnp.int32)
        return _plan_program(workflow, generations, key, *traced)
    numbers = np.asarray(generation, np.int32), np.asarray(entity, np.int32)
    return _index_plan(np, workflow, generations, data, *numbers)


def on_host(plan: IndexPlan) -> IndexPlan:
    """Return the valid rows of a plan, as NumPy arrays."""
    valid = np.asarray(plan.valid)
    return IndexPlan(*(np.asarray(column)[valid] for column in plan))


def gather(
    plan: IndexPlan,
    *,
    human: jax.Array,
    synthetic: jax.Array,
    external: jax.Array | None = None,
    public: jax.Array | None = None,
) -> jax.Array:
    """Return rows of a plan as arrays [rows, ...], for families whose items are arrays.

    Padding rows hold item 0 of the human stream.

    Args:
        human: [K, stream, ...].
        synthetic: [generations, K, synthetic, ...].
        external: [K, stream, ...].
        public: [items, ...].
    """
    rows = human[plan.entity, plan.position % human.shape[1]]

    def replace_rows(source: int, items: jax.Array) -> jax.Array:
        is_source = jnp.asarray(plan.source == source)
        return jnp.where(is_source.reshape(-1, *(1,) * (rows.ndim - 1)), items, rows)

    if synthetic.shape[2]:
        position = plan.position % synthetic.shape[2]
        rows = replace_rows(SYNTHETIC, synthetic[plan.generation, plan.entity, position])
    if external is not None:
        position = plan.position % external.shape[1]
        rows = replace_rows(EXTERNAL, external[plan.entity, position])
    if public is not None:
        rows = replace_rows(PUBLIC, public[plan.position % public.shape[0]])
    return rows


# ---- pools
# `xp` is NumPy on the host and jax.numpy inside a program.

_Numbers: TypeAlias = Any  # an array of that library


def _index_plan(
    xp: Any,
    workflow: Workflow,
    generations: int,
    key: _Numbers,
    generation: _Numbers,
    entity: _Numbers,
) -> IndexPlan:
    set_key = _fold_in(xp, _phase_key(xp, key, generation, "plan"), entity)
    if workflow.exchange is not None:
        return _exchange_plan(xp, workflow, workflow.exchange, set_key, generation, entity)
    rows = plan_rows(workflow, generations)
    first = _real_set(xp, workflow, entity)
    later = _later_plan(xp, workflow, generations, key, set_key, generation, entity)
    return jax.tree.map(
        lambda a, b: xp.where(generation == 0, a, b),
        _pad(xp, first, rows),
        _pad(xp, later, rows),
    )


_plan_program = setup_jit(partial(_index_plan, jnp), static_argnums=(0, 1))


def _later_plan(
    xp: Any,
    workflow: Workflow,
    generations: int,
    key: _Numbers,
    set_key: _Numbers,
    generation: _Numbers,
    entity: _Numbers,
) -> IndexPlan:
    """The training set of a generation after generation 0."""
    pool, bits = _pool(xp, workflow, generations, key, set_key, generation, entity)
    if workflow.train is not None and pool.valid.shape[0]:
        pool = _draw(xp, pool, bits, min(workflow.train, pool.valid.shape[0]))
    if workflow.preserved:
        bits = _bits(xp, set_key, _PRESERVED, workflow.initial)
        pool = _join(xp, _draw(xp, _real_set(xp, workflow, entity), bits, workflow.preserved), pool)
    return pool


def _pooled_batches(workflow: Workflow, generations: int) -> int:
    """Most batches that a pool of the run can hold."""
    most = max(generations - 1, 1)
    return most if workflow.window is None else min(workflow.window, most)


def _pool(
    xp: Any,
    workflow: Workflow,
    generations: int,
    key: _Numbers,
    set_key: _Numbers,
    generation: _Numbers,
    entity: _Numbers,
) -> tuple[IndexPlan, _Numbers]:
    """Pool of a generation, newest batch first, with 32 random bits per item.

    Each batch has bits of its own key, so that the draw of an item does not depend on how many
    batches the static shapes leave room for.
    """
    born = generation - xp.arange(_pooled_batches(workflow, generations), dtype=xp.int32)
    batches = _each(xp, lambda b: _batch(xp, workflow, key, b, entity), born)
    bits = _each(xp, lambda b: _bits(xp, set_key, b, workflow.new_items), born).reshape(-1)
    pool = jax.tree.map(lambda x: x.reshape(-1), batches)
    if workflow.real == "never":
        return pool, bits
    owners = xp.arange(workflow.entities, dtype=xp.int32) if workflow.shared else entity[None]
    count = workflow.initial * owners.shape[0]
    in_pool = xp.asarray(True)
    if workflow.real == "window" and workflow.window is not None:
        in_pool = generation < workflow.window
    real = _human_items(
        xp,
        position=xp.tile(xp.arange(workflow.initial, dtype=xp.int32), owners.shape[0]),
        entity=xp.repeat(owners, workflow.initial),
        valid=xp.broadcast_to(in_pool, (count,)),
    )
    return _join(xp, real, pool), xp.concatenate([_bits(xp, set_key, 0, count), bits])


def _batch(
    xp: Any, workflow: Workflow, key: _Numbers, born: _Numbers, entity: _Numbers
) -> IndexPlan:
    """Batch `born` (traced) as `entity` reads it: synthetic, human, then external items."""
    past = born - 1  # batches before this one
    synthetic = _batch_part(
        xp, workflow, SYNTHETIC, workflow.synthetic, born, entity, generation=past, start=0
    )
    if workflow.mixing is not None:
        generators = _generators(xp, workflow, key, born, entity)
        synthetic = _zero_padding(xp, synthetic._replace(entity=generators))
    human = _batch_part(
        xp,
        workflow,
        HUMAN,
        workflow.human,
        born,
        entity,
        generation=born,
        start=workflow.initial + past * workflow.human,
    )
    external = _batch_part(
        xp,
        workflow,
        EXTERNAL,
        workflow.external,
        born,
        entity,
        generation=born,
        start=past * workflow.external,
    )
    return _join(xp, synthetic, human, external)


def _batch_part(
    xp: Any,
    workflow: Workflow,
    source: int,
    size: int,
    born: _Numbers,
    entity: _Numbers,
    *,
    generation: _Numbers,
    start: int | _Numbers,
) -> IndexPlan:
    """`size` items of one source for each entity of the pool, from `start` of its stream on."""
    within = xp.tile(xp.arange(size, dtype=xp.int32), workflow.pool_entities)
    owner = xp.broadcast_to(entity, (size,))
    if workflow.shared:
        owner = xp.repeat(xp.arange(workflow.entities, dtype=xp.int32), size)
    return _zero_padding(
        xp,
        IndexPlan(
            source=xp.full(within.shape, source, xp.int32),
            generation=xp.broadcast_to(generation, within.shape),
            position=within + start,
            entity=owner,
            valid=xp.broadcast_to(born >= 1, within.shape),
        ),
    )


def _generators(
    xp: Any, workflow: Workflow, key: _Numbers, born: _Numbers, entity: _Numbers
) -> _Numbers:
    """Entity [synthetic] that generated each synthetic item that `entity` takes into batch `born`.

    The key is that of the batch: the same however often the batch is read.
    """
    edges = xp.asarray(np.cumsum(np.asarray(workflow.mixing), axis=1), xp.float32)[entity]
    draw_key = _fold_in(xp, _phase_key(xp, key, born, "mixing"), entity)
    return _interval(xp, _uniform(xp, draw_key, workflow.synthetic), edges)


def _interval(xp: Any, u: _Numbers, edges: _Numbers) -> _Numbers:
    """Index of the interval between cumulative weights [n] that each u [rows] in [0, 1) lies in."""
    return xp.sum(u[:, None] * edges[-1] >= edges[None, :-1], axis=1, dtype=xp.int32)


def _real_set(xp: Any, workflow: Workflow, entity: _Numbers) -> IndexPlan:
    """All items of generation 0's human set."""
    return _human_items(
        xp,
        position=xp.arange(workflow.initial, dtype=xp.int32),
        entity=entity,
        valid=xp.ones(workflow.initial, bool),
    )


def _human_items(xp: Any, *, position: _Numbers, entity: _Numbers, valid: _Numbers) -> IndexPlan:
    """Items of generation 0's human set at the given positions."""
    position = position.astype(xp.int32)
    zeros = xp.zeros_like(position)
    return _zero_padding(
        xp,
        IndexPlan(
            source=zeros + HUMAN,
            generation=zeros,
            position=position,
            entity=zeros + entity,
            valid=valid,
        ),
    )


def _bits(xp: Any, set_key: _Numbers, label: int | _Numbers, count: int) -> _Numbers:
    """32 random bits for each of `count` items, from the key of the set and a label."""
    key = _fold_in(xp, set_key, label)
    if xp is np:
        return host_draws.bits(key, count)
    return jax.random.bits(key, (count,), jnp.uint32)


def _draw(xp: Any, items: IndexPlan, bits: _Numbers, count: int) -> IndexPlan:
    """Draw `count` of the valid items, uniformly without replacement, in random order.

    Where fewer are valid, all of them come first, then padding.
    """
    if xp is np:
        order: _Numbers = np.lexsort((bits, ~items.valid))
    else:
        place = jnp.arange(bits.shape[0], dtype=jnp.int32)
        _, _, order = jax.lax.sort((jnp.asarray(~items.valid), bits, place), num_keys=2)
    return jax.tree.map(lambda x: x[order[:count]], items)


def _fold_in(xp: Any, key: _Numbers, number: int | _Numbers) -> _Numbers:
    return host_draws.fold_in(key, number) if xp is np else jax.random.fold_in(key, number)


def _phase_key(xp: Any, key: _Numbers, generation: _Numbers, phase: str) -> _Numbers:
    """As `keys.phase_key`."""
    return _fold_in(xp, _fold_in(xp, key, generation), zlib.crc32(phase.encode()))


def _uniform(xp: Any, key: _Numbers, count: int) -> _Numbers:
    if xp is np:
        return host_draws.uniform(key, count)
    return jax.random.uniform(key, (count,), jnp.float32)


def _below(xp: Any, key: _Numbers, count: int, limit: _Numbers) -> _Numbers:
    if xp is np:
        return host_draws.randint(key, count, limit)
    return jax.random.randint(key, (count,), 0, limit, jnp.int32)


def _each(xp: Any, function: Callable[[_Numbers], Any], numbers: _Numbers) -> Any:
    """`function` of each number [n], a tree whose arrays are stacked."""
    if xp is np:
        return jax.tree.map(lambda *x: np.stack(x), *map(function, numbers))
    return jax.vmap(function)(numbers)


def _zero_padding(xp: Any, items: IndexPlan) -> IndexPlan:
    return IndexPlan(
        source=xp.where(items.valid, items.source, 0),
        generation=xp.where(items.valid, items.generation, 0),
        position=xp.where(items.valid, items.position, 0),
        entity=xp.where(items.valid, items.entity, 0),
        valid=items.valid,
    )


def _join(xp: Any, *parts: IndexPlan) -> IndexPlan:
    return jax.tree.map(lambda *x: xp.concatenate(x), *parts)


def _pad(xp: Any, items: IndexPlan, rows: int) -> IndexPlan:
    return jax.tree.map(lambda x: xp.pad(x, (0, rows - x.shape[0])), items)


# ---- exchanges


def _exchange_plan(
    xp: Any,
    workflow: Workflow,
    exchange: Exchange,
    set_key: _Numbers,
    generation: _Numbers,
    entity: _Numbers,
) -> IndexPlan:
    """Rows drawn with replacement: a source by its weight, then an item of it uniformly."""
    rows, entities = workflow.drawn_rows, workflow.entities
    table = xp.asarray(_exchange_edges(workflow, exchange))
    edges = table[xp.minimum(generation, table.shape[0] - 1), entity]
    source_key, position_key = host_draws.split(set_key) if xp is np else jax.random.split(set_key)
    # Sources in the order of `edges`: private, public, then the synthetic set of every entity.
    part = _interval(xp, _uniform(xp, source_key, rows), edges)
    private = xp.asarray(exchange.private, xp.int32)[entity]
    others = xp.asarray([exchange.public] + [workflow.synthetic] * entities, xp.int32)
    sizes = xp.maximum(xp.concatenate([private[None], others])[part], 1)
    position = _below(xp, position_key, rows, sizes)
    source = xp.asarray([HUMAN, PUBLIC] + [SYNTHETIC] * entities, xp.int32)[part]
    synthetic = source == SYNTHETIC
    age = xp.zeros_like(position)
    if exchange.past != 1:
        reach = generation if exchange.past is None else xp.minimum(generation, exchange.past)
        age = _below(xp, _fold_in(xp, set_key, _AGES), rows, xp.maximum(reach, 1))
    return IndexPlan(
        source=source,
        generation=xp.where(synthetic, generation - 1 - age, 0),
        position=position,
        entity=xp.where(synthetic, part - 2, xp.where(source == HUMAN, entity, 0)),
        valid=xp.ones(rows, bool),
    )


def _exchange_edges(workflow: Workflow, exchange: Exchange) -> np.ndarray:
    """Cumulative weights [R, K, 2 + K] of (private, public, the entities' synthetic sets).

    Row [g, k] is what entity k reads in generation g; the last of the R rows holds from then on.
    They are summed in order on the host, so that a source of weight 0 has an interval of width 0.
    """
    alpha, real = exchange_weights(exchange, workflow.entities)
    rows = np.concatenate([real, alpha[:, :, None] * np.asarray(workflow.mixing)], axis=2)
    return np.cumsum(rows.astype(np.float32), axis=2, dtype=np.float32)
