"""The training set of one model in one generation as index arrays (an index plan).

They say which item of which source each row is. `workflow.Workflow` says what training sets are;
here they are drawn.

Everything is a pure function of the chain's key, so the simulators (which call `index_plan` inside
a `lax.scan`, vmapped over chains) and the language models (which call it from the host, because
texts must be tokenised again) train on the same items.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class IndexPlan(NamedTuple):
    """One training set as arrays [rows], int32 except `valid` (bool).

    Rows that are not valid are padding and hold zeros. After `on_host` the arrays are NumPy's and
    hold valid rows only.

    source      HUMAN, SYNTHETIC, EXTERNAL or PUBLIC
    generation  the generation whose model generated the item (synthetic), or the one that brought
                it into the chain (all others)
    position    row of that generation's output (synthetic), or position in the stream of the source
    entity      whose model generated it, or whose stream it is in
    valid       whether the row is an item
    """

    source: jax.Array | np.ndarray
    generation: jax.Array | np.ndarray
    position: jax.Array | np.ndarray
    entity: jax.Array | np.ndarray
    valid: jax.Array | np.ndarray


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
    """The training set of one entity in one generation, `plan_rows(workflow, generations)` rows.

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
    return _index_plan(
        workflow,
        generations,
        key,
        jnp.asarray(generation, jnp.int32),
        jnp.asarray(entity, jnp.int32),
    )


def on_host(plan: IndexPlan) -> IndexPlan:
    """The valid rows of a plan, as NumPy arrays."""
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
    """Rows of a plan as arrays [rows, ...], for families whose items are arrays.

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


@setup_jit(static_argnums=(0, 1))
def _index_plan(
    workflow: Workflow, generations: int, key: jax.Array, generation: jax.Array, entity: jax.Array
) -> IndexPlan:
    set_key = jax.random.fold_in(phase_key(key, generation, "plan"), entity)
    if workflow.exchange is not None:
        return _exchange_plan(workflow, workflow.exchange, set_key, generation, entity)
    rows = plan_rows(workflow, generations)
    first = _real_set(workflow, entity)
    later = _later_plan(workflow, generations, key, set_key, generation, entity)
    return jax.tree.map(
        lambda a, b: jnp.where(generation == 0, a, b), _pad(first, rows), _pad(later, rows)
    )


def _later_plan(
    workflow: Workflow,
    generations: int,
    key: jax.Array,
    set_key: jax.Array,
    generation: jax.Array,
    entity: jax.Array,
) -> IndexPlan:
    """The training set of a generation after generation 0."""
    pool, bits = _pool(workflow, generations, key, set_key, generation, entity)
    if workflow.train is not None and pool.valid.shape[0]:
        pool = _draw(pool, bits, min(workflow.train, pool.valid.shape[0]))
    if workflow.preserved:
        bits = _bits(set_key, _PRESERVED, workflow.initial)
        pool = _join(_draw(_real_set(workflow, entity), bits, workflow.preserved), pool)
    return pool


def _pooled_batches(workflow: Workflow, generations: int) -> int:
    """Most batches that a pool of the run can hold."""
    most = max(generations - 1, 1)
    return most if workflow.window is None else min(workflow.window, most)


def _pool(
    workflow: Workflow,
    generations: int,
    key: jax.Array,
    set_key: jax.Array,
    generation: jax.Array,
    entity: jax.Array,
) -> tuple[IndexPlan, jax.Array]:
    """Pool of a generation, newest batch first, with 32 random bits per item.

    Each batch has bits of its own key, so that the draw of an item does not depend on how many
    batches the static shapes leave room for.
    """
    born = generation - jnp.arange(_pooled_batches(workflow, generations))
    batches = jax.vmap(lambda b: _batch(workflow, key, b, entity))(born)
    bits = jax.vmap(lambda b: _bits(set_key, b, workflow.new_items))(born).reshape(-1)
    pool = jax.tree.map(lambda x: x.reshape(-1), batches)
    if workflow.real == "never":
        return pool, bits
    owners = jnp.arange(workflow.entities) if workflow.shared else entity[None]
    count = workflow.initial * owners.shape[0]
    in_pool = jnp.asarray(True)
    if workflow.real == "window" and workflow.window is not None:
        in_pool = generation < workflow.window
    real = _human_items(
        position=jnp.tile(jnp.arange(workflow.initial), owners.shape[0]),
        entity=jnp.repeat(owners, workflow.initial),
        valid=jnp.broadcast_to(in_pool, (count,)),
    )
    return _join(real, pool), jnp.concatenate([_bits(set_key, 0, count), bits])


def _batch(workflow: Workflow, key: jax.Array, born: jax.Array, entity: jax.Array) -> IndexPlan:
    """Batch `born` (traced) as `entity` reads it: synthetic, human, then external items."""
    past = born - 1  # batches before this one
    synthetic = _batch_part(
        workflow, SYNTHETIC, workflow.synthetic, born, entity, generation=past, start=0
    )
    if workflow.mixing is not None:
        generators = _generators(workflow, key, born, entity)
        synthetic = _zero_padding(synthetic._replace(entity=generators))
    human = _batch_part(
        workflow,
        HUMAN,
        workflow.human,
        born,
        entity,
        generation=born,
        start=workflow.initial + past * workflow.human,
    )
    external = _batch_part(
        workflow,
        EXTERNAL,
        workflow.external,
        born,
        entity,
        generation=born,
        start=past * workflow.external,
    )
    return _join(synthetic, human, external)


def _batch_part(
    workflow: Workflow,
    source: int,
    size: int,
    born: jax.Array,
    entity: jax.Array,
    *,
    generation: jax.Array,
    start: int | jax.Array,
) -> IndexPlan:
    """`size` items of one source for each entity of the pool, from `start` of its stream on."""
    within = jnp.tile(jnp.arange(size, dtype=jnp.int32), workflow.pool_entities)
    owner = jnp.broadcast_to(entity, (size,))
    if workflow.shared:
        owner = jnp.repeat(jnp.arange(workflow.entities, dtype=jnp.int32), size)
    return _zero_padding(
        IndexPlan(
            source=jnp.full(within.shape, source, jnp.int32),
            generation=jnp.broadcast_to(generation, within.shape),
            position=within + start,
            entity=owner,
            valid=jnp.broadcast_to(born >= 1, within.shape),
        )
    )


def _generators(
    workflow: Workflow, key: jax.Array, born: jax.Array, entity: jax.Array
) -> jax.Array:
    """Entity [synthetic] that generated each synthetic item that `entity` takes into batch `born`.

    The key is that of the batch: the same however often the batch is read.
    """
    edges = jnp.asarray(np.cumsum(np.asarray(workflow.mixing), axis=1), jnp.float32)[entity]
    draw_key = jax.random.fold_in(phase_key(key, born, "mixing"), entity)
    u = jax.random.uniform(draw_key, (workflow.synthetic,), jnp.float32)
    return _interval(u, edges)


def _interval(u: jax.Array, edges: jax.Array) -> jax.Array:
    """Index of the interval between cumulative weights [n] that each u [rows] in [0, 1) lies in."""
    return jnp.sum(u[:, None] * edges[-1] >= edges[None, :-1], axis=1, dtype=jnp.int32)


def _real_set(workflow: Workflow, entity: jax.Array) -> IndexPlan:
    """All items of generation 0's human set."""
    return _human_items(
        position=jnp.arange(workflow.initial),
        entity=entity,
        valid=jnp.ones(workflow.initial, bool),
    )


def _human_items(*, position: jax.Array, entity: jax.Array, valid: jax.Array) -> IndexPlan:
    """Items of generation 0's human set at the given positions."""
    position = position.astype(jnp.int32)
    zeros = jnp.zeros_like(position)
    return _zero_padding(
        IndexPlan(
            source=zeros + HUMAN,
            generation=zeros,
            position=position,
            entity=zeros + entity,
            valid=valid,
        )
    )


def _bits(set_key: jax.Array, label: int | jax.Array, count: int) -> jax.Array:
    """32 random bits for each of `count` items, from the key of the set and a label."""
    return jax.random.bits(jax.random.fold_in(set_key, label), (count,), jnp.uint32)


def _draw(items: IndexPlan, bits: jax.Array, count: int) -> IndexPlan:
    """Draw `count` of the valid items, uniformly without replacement, in random order.

    Where fewer are valid, all of them come first, then padding.
    """
    place = jnp.arange(bits.shape[0], dtype=jnp.int32)
    _, _, order = jax.lax.sort((jnp.asarray(~items.valid), bits, place), num_keys=2)
    return jax.tree.map(lambda x: x[order[:count]], items)


def _zero_padding(items: IndexPlan) -> IndexPlan:
    return IndexPlan(
        source=jnp.where(items.valid, items.source, 0),
        generation=jnp.where(items.valid, items.generation, 0),
        position=jnp.where(items.valid, items.position, 0),
        entity=jnp.where(items.valid, items.entity, 0),
        valid=items.valid,
    )


def _join(*parts: IndexPlan) -> IndexPlan:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _pad(items: IndexPlan, rows: int) -> IndexPlan:
    return jax.tree.map(lambda x: jnp.pad(x, (0, rows - x.shape[0])), items)


# ---- exchanges


def _exchange_plan(
    workflow: Workflow,
    exchange: Exchange,
    set_key: jax.Array,
    generation: jax.Array,
    entity: jax.Array,
) -> IndexPlan:
    """Rows drawn with replacement: a source by its weight, then an item of it uniformly."""
    rows, entities = workflow.drawn_rows, workflow.entities
    table = jnp.asarray(_exchange_edges(workflow, exchange))
    edges = table[jnp.minimum(generation, table.shape[0] - 1), entity]
    source_key, position_key = jax.random.split(set_key)
    # Sources in the order of `edges`: private, public, then the synthetic set of every entity.
    part = _interval(jax.random.uniform(source_key, (rows,), jnp.float32), edges)
    private = jnp.asarray(exchange.private, jnp.int32)[entity]
    others = jnp.asarray([exchange.public] + [workflow.synthetic] * entities, jnp.int32)
    sizes = jnp.maximum(jnp.concatenate([private[None], others])[part], 1)
    position = jax.random.randint(position_key, (rows,), 0, sizes, jnp.int32)
    source = jnp.asarray([HUMAN, PUBLIC] + [SYNTHETIC] * entities, jnp.int32)[part]
    synthetic = source == SYNTHETIC
    age = jnp.zeros_like(position)
    if exchange.past != 1:
        reach = generation if exchange.past is None else jnp.minimum(generation, exchange.past)
        age_key = jax.random.fold_in(set_key, _AGES)
        age = jax.random.randint(age_key, (rows,), 0, jnp.maximum(reach, 1), jnp.int32)
    return IndexPlan(
        source=source,
        generation=jnp.where(synthetic, generation - 1 - age, 0),
        position=position,
        entity=jnp.where(synthetic, part - 2, jnp.where(source == HUMAN, entity, 0)),
        valid=jnp.ones(rows, bool),
    )


def _exchange_edges(workflow: Workflow, exchange: Exchange) -> np.ndarray:
    """Cumulative weights [R, K, 2 + K] of (private, public, the entities' synthetic sets).

    Row [g, k] is what entity k reads in generation g; the last of the R rows holds from then on.
    They are summed in order on the host, so that a source of weight 0 has an interval of width 0.
    """
    alpha, real = exchange_weights(exchange, workflow.entities)
    rows = np.concatenate([real, alpha[:, :, None] * np.asarray(workflow.mixing)], axis=2)
    return np.cumsum(rows.astype(np.float32), axis=2, dtype=np.float32)
