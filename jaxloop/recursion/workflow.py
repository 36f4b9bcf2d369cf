"""What generation g trains on, as a pure index plan: which item of which source, for every row of
the training set.

The simulators call `plan` inside one `lax.scan` over generations, vmapped over chains; the language
models call the same function from the host, because texts must be tokenised again. Both get the
same plan from the same key.

Vocabulary. Generation 0 trains on `initial` human items. Every later generation g brings one
*batch* (new_g): `synthetic` items written by the models of generation g-1, `human` fresh human
items, `external` items of a fixed outside source. The *pool* of generation g is made of batches;
the training set is the pool, or a uniform draw of `train` items from it without replacement (spec
recursive_loops.md, section 1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.keys import phase_key, random_bits
from jaxloop.core.mixing import check_mixing
from jaxloop.recursion.selection import Selection
from jaxloop.runtime.setup_jit import setup_jit

HUMAN, SYNTHETIC, EXTERNAL, PUBLIC = 0, 1, 2, 3
SOURCES = ("human", "synthetic", "external", "public")
STARTS = ("base", "previous", "scratch")
REAL = ("never", "window", "always")
Weight = float | tuple[float, ...] | tuple[tuple[float, ...], ...]


class Plan(NamedTuple):
    """One training set: arrays [rows], int32 except `valid` (bool). Rows with valid=False are
    padding and hold zeros.

    source      HUMAN, SYNTHETIC, EXTERNAL or PUBLIC
    generation  the generation whose model wrote the item (synthetic), or the one that brought it
    into the chain (all others)
    index       row in that generation's output (synthetic), or position in the stream of the source (all others)
    entity      whose model wrote it, or whose stream it is in
    """

    source: jax.Array
    generation: jax.Array
    index: jax.Array
    entity: jax.Array
    valid: jax.Array


@dataclass(frozen=True)
class Exchange:
    """Training sets drawn row by row, with replacement, from three sources (multi_entity.md,
    section 3.1).

    Entity k reads its private set with weight (1-alpha) beta, the public set with weight
    (1-alpha)(1-beta) and the newest synthetic sets with weight alpha, shared over their writers as
    row k of the mixing matrix says. alpha is 0 at generation 0, where beta is `initial_beta`.
    `private` [K] and `public` are the sizes of the sets, which are used again in every generation.

    alpha, beta   a number; [G] one per generation (the last one holds from then on); [G][K] or [1][K] one per entity as well
    initial_beta  a number, or [K] one per entity
    past          generations whose synthetic sets are read, the newest first, each with equal weight; None: all of them
    """

    alpha: "Weight"
    beta: "Weight"
    initial_beta: float | tuple[float, ...]
    private: tuple[int, ...]
    public: int
    past: int | None = 1


@dataclass(frozen=True)
class Workflow:
    """A rule for training sets; build it with the named constructors below. Sizes are numbers of
    items, per entity.

    initial    human items of generation 0
    synthetic  items that each generation writes for the next batch
    human      fresh human items in each batch
    external   items of the outside source in each batch
    preserved  items of generation 0's human set, drawn afresh for every generation and added to the
    drawn ones
    real       whether generation 0's human set is in the pool: "never", "window" (it is batch 0 and leaves as the window moves), "always"
    window     how many of the newest batches are in the pool; None: all
    train      items drawn from the pool without replacement (all of it while it is smaller); None: the whole pool
    start      weights that a generation starts from: "base", "previous" or "scratch"
    entities   K, the number of models in each generation
    mixing     [K][K], row k: the share of entity k's synthetic items that each entity writes; None: each reads itself only
    shared     one pool for all entities (K batches in one), from which each draws its own training set
    exchange   sources drawn by weight instead of a pool
    selection  which of the texts that a model writes are its synthetic items; None: the first ones
    """

    name: str
    initial: int
    synthetic: int
    human: int = 0
    external: int = 0
    preserved: int = 0
    real: str = "never"
    window: int | None = None
    train: int | None = None
    start: str = "base"
    entities: int = 1
    mixing: tuple[tuple[float, ...], ...] | None = None
    shared: bool = False
    exchange: Exchange | None = None
    selection: Selection | None = None

    def __post_init__(self):
        for field in ("initial", "entities"):
            _at_least(field, getattr(self, field), 1)
        for field in ("synthetic", "human", "external", "preserved"):
            _at_least(field, getattr(self, field), 0)
        for field in ("window", "train"):
            if getattr(self, field) is not None:
                _at_least(field, getattr(self, field), 1)
        _one_of("start", self.start, STARTS)
        _one_of("real", self.real, REAL)
        if self.preserved > self.initial:
            raise ValueError(
                f"preserved={self.preserved}: at most initial={self.initial}, the items of "
                "generation 0's human set"
            )
        if self.synthetic + self.human + self.external < 1:
            raise ValueError(
                "synthetic + human + external = 0: every generation needs at least one new item"
            )
        if self.selection is not None and self.selection.candidates < self.synthetic:
            raise ValueError(
                f"selection.candidates={self.selection.candidates}: must be at least "
                f"synthetic={self.synthetic}, which are chosen from them"
            )
        if self.mixing is not None:
            if self.shared:
                raise ValueError(
                    "mixing: not allowed with shared=True, where every entity draws from one pool"
                )
            check_mixing(self.mixing, self.entities)

    @property
    def batch(self) -> int:
        """Items that one generation adds to the pool that an entity reads."""
        return (self.synthetic + self.human + self.external) * self._writers

    @property
    def _writers(self) -> int:
        return self.entities if self.shared else 1


def _at_least(field, value, low):
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{field}={value!r}: must be an integer of at least {low}")


def _one_of(field, value, allowed):
    if value not in allowed:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(allowed)}")


def _in_unit(field, value):
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{field}={value!r}: must lie in [0, 1]")


def replace(size: int, **options) -> Workflow:
    """Each generation trains on the `size` items that the one before wrote, on nothing else."""
    return _build("replace", options, initial=size, synthetic=size, window=1)


def accumulate(size: int, **options) -> Workflow:
    """Each generation trains on the real items and on everything written so far
    (bias_amplification.md, section 2: real + D_1 + ... + D_t).
    """
    return _build("accumulate", options, initial=size, synthetic=size, real="always")


def accumulate_subsample(size: int, **options) -> Workflow:
    """As `accumulate`, but `size` items are drawn from it without replacement, so that the work per
    generation stays the same.
    """
    return _build(
        "accumulate_subsample", options, initial=size, synthetic=size, real="always", train=size
    )


def fresh_human(size: int, ratio: float, **options) -> Workflow:
    """The chain of recursive_loops.md, section 1: each generation adds a = int(ratio size)
    synthetic and size - a fresh human items to a pool that never holds generation 0's human set,
    and trains on `size` items drawn from it without replacement.

    Raises ValueError where ratio is outside [0, 1].
    """
    _in_unit("ratio", ratio)
    synthetic = int(ratio * size)
    return _build(
        "fresh_human",
        options,
        initial=size,
        synthetic=synthetic,
        human=size - synthetic,
        train=size,
    )


def preserve(size: int, share: float, **options) -> Workflow:
    """Each generation trains on the `size` items that the one before wrote and, on top of them, on
    round(share size) items of the real set, drawn afresh each time (bias_amplification.md, section
    2: 1,518 + 152).
    """
    _in_unit("share", share)
    return _build(
        "preserve", options, initial=size, synthetic=size, preserved=round(share * size), window=1
    )


def window(size: int, k: int, *, ratio: float = 1.0, **options) -> Workflow:
    """Each generation trains on the k newest batches, of int(ratio size) synthetic and otherwise
    fresh human items; the real set is batch 0.

    With train=n, n items are drawn from them without replacement.
    """
    _in_unit("ratio", ratio)
    synthetic = int(ratio * size)
    return _build(
        "window",
        options,
        initial=size,
        synthetic=synthetic,
        human=size - synthetic,
        real="window",
        window=k,
    )


def external(size: int, share: float, *, ratio: float = 1.0, **options) -> Workflow:
    """Each batch holds int(share size) items of an outside source; int(ratio rest) of the rest are
    synthetic, the others fresh human.

    The training set is `size` items drawn from all batches without replacement; with window=1 it is
    the newest batch.
    """
    _in_unit("share", share)
    _in_unit("ratio", ratio)
    outside = int(share * size)
    synthetic = int(ratio * (size - outside))
    return _build(
        "external",
        options,
        initial=size,
        synthetic=synthetic,
        human=size - outside - synthetic,
        external=outside,
        train=size,
    )


def exchange(
    size: int,
    *,
    alpha,
    beta,
    private,
    public: int,
    synthetic: int,
    initial_beta=None,
    past: int | None = 1,
    **options,
) -> Workflow:
    """K entities that read each other: `size` rows drawn by weight from private, public and
    synthetic sets (see `Exchange`).

    private: sizes of the private sets, one per entity; synthetic: items that each entity writes per
    generation; initial_beta: private weight at generation 0 (default: beta's first). Raises
    ValueError where a set with positive weight is empty.
    """
    private = tuple(int(n) for n in private)
    entities = options.setdefault("entities", len(private))
    options.setdefault("mixing", tuple((1.0 / entities,) * entities for _ in range(entities)))
    if len(private) != entities:
        raise ValueError(
            f"private: {len(private)} sizes for entities={entities}: must be one per entity"
        )
    if past is not None:
        _at_least("past", past, 1)
    alpha, beta = _weight("alpha", alpha, entities), _weight("beta", beta, entities)
    first = _weight(
        "initial_beta",
        _table(beta, entities)[0].tolist() if initial_beta is None else initial_beta,
        entities,
        over="entity",
    )
    sets = Exchange(alpha, beta, first, private, int(public), past)
    _, weights = exchange_weights(sets, entities)
    for k in np.flatnonzero((weights[:, :, 0] > 0).any(0)):
        if private[k] < 1:
            generation = int(np.flatnonzero(weights[:, k, 0] > 0)[0])
            value = (
                np.broadcast_to(_table(beta, entities), weights.shape[:2])[generation, k]
                if generation
                else np.broadcast_to(first, entities)[k]
            )
            name = "beta" if generation else "initial_beta"
            raise ValueError(
                f"private={private}: entity {k} has no private data but {name}={value:g}; every "
                "size must be at least 1 where it has weight"
            )
    if public < 1 and (weights[:, :, 1] > 0).any():
        raise ValueError(f"public={public}: must be at least 1 where the public set has weight")
    return _build("exchange", options, initial=size, synthetic=synthetic, train=size, exchange=sets)


def _weight(field, value, entities, over="generation"):
    """A weight in its canonical form: equal values over all generations and entities are one
    number.
    """
    try:
        table = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        table = None
    wanted = (
        "a number or one per entity"
        if over == "entity"
        else f"a number, one per generation, or a row of {entities} per generation"
    )
    fits = (
        table is not None
        and (table.ndim < (2 if over == "entity" else 3))
        and table.size
        and (table.ndim < 2 or table.shape[1] == entities)
    )
    if not fits or (over == "entity" and table.ndim and len(table) != entities):
        raise ValueError(f"{field}={value!r}: must be {wanted}")
    for one in table.reshape(-1).tolist():
        _in_unit(field, one)
    if (table == table.flat[0]).all():
        return float(table.flat[0])
    return tuple(tuple(row) if isinstance(row, list) else row for row in table.tolist())


def _table(weight, entities):
    """[rows, K] of a weight, rows 1 where it does not change."""
    table = np.asarray(weight, np.float64)
    return np.broadcast_to(
        table if table.ndim == 2 else table.reshape(-1, 1),
        (max(1, len(np.atleast_1d(weight))), entities),
    )


def exchange_weights(sets: Exchange, entities: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha [R, K] and the weights of (private, public) [R, K, 2], by generation (the last row
    holds from then on): what each entity reads.
    """
    alpha, beta = _table(sets.alpha, entities), _table(sets.beta, entities)
    rows = max(len(alpha), len(beta), 2)
    along = lambda table: table[np.minimum(np.arange(rows), len(table) - 1)].copy()
    alpha, beta = along(alpha), along(beta)
    alpha[0], beta[0] = 0.0, sets.initial_beta
    return alpha, np.stack([(1 - alpha) * beta, (1 - alpha) * (1 - beta)], axis=2)


def _build(name, options, **defaults):
    unknown = set(options) - set(Workflow.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]}: not an option of workflow {name}; options are "
            f"{', '.join(Workflow.__dataclass_fields__)}"
        )
    if options.get("mixing") is not None:
        options["mixing"] = tuple(tuple(float(x) for x in row) for row in options["mixing"])
    return Workflow(**{"name": name, **defaults, **options})


def human_needed(workflow: Workflow, generations: int) -> int:
    """Human items that one entity consumes in `generations` generations, exactly; a chain whose K
    entities read one dataset needs K times that.

    Paper's chain (recursive_loops.md, section 1.1): N + (G-1) h, so N=4000, r=1/8, G=20 needs
    70,500.
    """
    _at_least("generations", generations, 1)
    if workflow.exchange is not None:
        return max(workflow.exchange.private)
    return workflow.initial + (generations - 1) * workflow.human


def external_needed(workflow: Workflow, generations: int) -> int:
    """Items of the outside source that one entity consumes in `generations` generations."""
    return (generations - 1) * workflow.external


def human_rows(
    key: jax.Array, available: int, needed: int, *, entity: int = 0, entities: int = 1
) -> np.ndarray:
    """Row numbers [needed] (int64) of a chain's human stream: a uniform sample of range(available)
    without replacement, in random order.

    A longer stream of the same key begins with the shorter one, so more generations can be asked
    for later. Entities that read one dataset get disjoint streams. Raises ValueError, naming what
    is needed, where there are too few items.
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
    """Static number of rows of every `plan` of a run of `generations` generations (padding
    included).
    """
    if workflow.exchange is not None:
        return workflow.train
    pool = workflow.batch * _batches(workflow, generations) + (
        0 if workflow.real == "never" else workflow.initial * workflow._writers
    )
    drawn = pool if workflow.train is None else min(workflow.train, pool)
    return max(workflow.initial, workflow.preserved + drawn)


def plan(
    workflow: Workflow, key: jax.Array, generation, *, generations: int | None = None, entity=0
) -> Plan:
    """The training set of one entity in one generation: a Plan of `plan_rows(workflow,
    generations)` rows.

    key: the chain's key; generation, entity: integers, may be traced; generations: static number of
    generations of the run. Valid rows do not depend on it (it only bounds the pool); it may be left
    out when `generation` is a Python integer. Raises ValueError when it is left out although
    generation is traced.
    """
    if generations is None:
        if isinstance(generation, jax.core.Tracer):
            raise ValueError(
                "generations: must be given when generation is traced, it bounds the pool"
            )
        generations = int(generation) + 1
    return _plan(
        workflow,
        generations,
        key,
        jnp.asarray(generation, jnp.int32),
        jnp.asarray(entity, jnp.int32),
    )


@setup_jit(static_argnums=(0, 1))
def _plan(workflow, generations, key, generation, entity):
    draw_key = jax.random.fold_in(phase_key(key, generation, "plan"), entity)
    if workflow.exchange is not None:
        return _exchange_rows(workflow, draw_key, generation, entity)
    rows = plan_rows(workflow, generations)
    first = _human(jnp.arange(workflow.initial), 0, entity, jnp.ones(workflow.initial, bool))
    later = _later_rows(workflow, generations, key, draw_key, generation, entity)
    first, later = _pad(first, rows), _pad(later, rows)
    return jax.tree.map(lambda a, b: jnp.where(generation == 0, a, b), first, later)


def _later_rows(workflow, generations, key, draw_key, generation, entity):
    pool, bits = _pool(workflow, generations, key, draw_key, generation, entity)
    if workflow.train is not None and pool.valid.shape[0]:
        count = min(workflow.train, pool.valid.shape[0])
        pool = _draw(pool, bits, count)
    if workflow.preserved:
        kept = _human(jnp.arange(workflow.initial), 0, entity, jnp.ones(workflow.initial, bool))
        kept_bits = jax.random.bits(
            jax.random.fold_in(draw_key, 0xFFFFFFFF), (workflow.initial,), jnp.uint32
        )
        pool = _join(_draw(kept, kept_bits, workflow.preserved), pool)
    return pool


def _batches(workflow, generations):
    most = max(generations - 1, 1)
    return most if workflow.window is None else min(workflow.window, most)


def _pool(workflow, generations, key, draw_key, generation, entity):
    """Pool of a generation, newest batch first, with 32 random bits per item. Bits are drawn per
    batch from its own key, so that an item's draw does not depend on how many batches the static
    shapes leave room for.
    """
    ages = jnp.arange(_batches(workflow, generations))
    born = generation - ages
    parts = jax.vmap(lambda b: _batch(workflow, key, b, entity))(born)
    bits = jax.vmap(
        lambda b: jax.random.bits(jax.random.fold_in(draw_key, b), (workflow.batch,), jnp.uint32)
    )(born)
    pool = jax.tree.map(lambda x: x.reshape(-1), parts)
    bits = bits.reshape(-1)
    if workflow.real == "never":
        return pool, bits
    owners = jnp.arange(workflow.entities) if workflow.shared else entity[None]
    count = workflow.initial * owners.shape[0]
    inside = (
        jnp.asarray(True)
        if workflow.real == "always" or workflow.window is None
        else generation < workflow.window
    )
    real = _human(
        jnp.tile(jnp.arange(workflow.initial), owners.shape[0]),
        0,
        jnp.repeat(owners, workflow.initial),
        jnp.broadcast_to(inside, (count,)),
    )
    real_bits = jax.random.bits(jax.random.fold_in(draw_key, 0), (count,), jnp.uint32)
    return _join(real, pool), jnp.concatenate([real_bits, bits])


def _batch(workflow, key, born, entity):
    """Batch `born` (traced) as entity `entity` reads it: synthetic, human, then external items."""
    groups = []
    for source, size in (
        (SYNTHETIC, workflow.synthetic),
        (HUMAN, workflow.human),
        (EXTERNAL, workflow.external),
    ):
        within = jnp.tile(jnp.arange(size, dtype=jnp.int32), workflow._writers)
        if workflow.shared:
            owner = jnp.repeat(jnp.arange(workflow.entities, dtype=jnp.int32), size)
        elif source == SYNTHETIC and workflow.mixing is not None:
            owner = _writers(workflow, key, born, entity)
        else:
            owner = jnp.broadcast_to(entity, (size,))
        past = (born - 1) * size
        offset = {SYNTHETIC: 0, HUMAN: workflow.initial + past, EXTERNAL: past}[source]
        valid = jnp.broadcast_to(born >= 1, within.shape)
        whose = jnp.broadcast_to(born - 1 if source == SYNTHETIC else born, within.shape)
        groups.append(
            _clean(
                Plan(
                    jnp.full(within.shape, source, jnp.int32), whose, within + offset, owner, valid
                )
            )
        )
    return _join(*groups)


def _writers(workflow, key, born, entity):
    """Who wrote each synthetic item [synthetic] that `entity` takes into batch `born`: fixed once,
    whenever the item is read again.
    """
    row = jnp.asarray(np.cumsum(np.asarray(workflow.mixing), axis=1), jnp.float32)[entity]
    u = jax.random.uniform(
        jax.random.fold_in(phase_key(key, born, "mixing"), entity),
        (workflow.synthetic,),
        jnp.float32,
    )
    return jnp.sum(u[:, None] * row[-1] >= row[None, :-1], axis=1, dtype=jnp.int32)


def _exchange_rows(workflow, draw_key, generation, entity):
    sets, k = workflow.exchange, workflow.entities
    table = jnp.asarray(_exchange_edges(workflow))
    edges = table[jnp.minimum(generation, table.shape[0] - 1), entity]
    source_key, index_key = jax.random.split(draw_key)
    u = jax.random.uniform(source_key, (workflow.train,), jnp.float32)
    part = jnp.sum(u[:, None] * edges[-1] >= edges[None, :-1], axis=1, dtype=jnp.int32)
    sizes = jnp.concatenate(
        [
            jnp.asarray(sets.private, jnp.int32)[entity][None],
            jnp.asarray([sets.public] + [workflow.synthetic] * k, jnp.int32),
        ]
    )
    index = jax.random.randint(
        index_key, (workflow.train,), 0, jnp.maximum(sizes[part], 1), jnp.int32
    )
    source = jnp.asarray([HUMAN, PUBLIC] + [SYNTHETIC] * k, jnp.int32)[part]
    written = source == SYNTHETIC
    owner = jnp.where(written, part - 2, jnp.where(source == HUMAN, entity, 0))
    age = jnp.zeros_like(index)
    if sets.past != 1:
        reach = generation if sets.past is None else jnp.minimum(generation, sets.past)
        age = jax.random.randint(
            jax.random.fold_in(draw_key, 0xA6E),
            (workflow.train,),
            0,
            jnp.maximum(reach, 1),
            jnp.int32,
        )
    return Plan(
        source,
        jnp.where(written, generation - 1 - age, 0),
        index,
        owner,
        jnp.ones(workflow.train, bool),
    )


def _exchange_edges(workflow):
    """Cumulative source weights [R, K, 2+K] (generation, the last one for all later ones; reader;
    private, public, writers), summed in order on the host so that a source of weight 0 keeps an
    interval of exactly no width.
    """
    alpha, own = exchange_weights(workflow.exchange, workflow.entities)
    rows = np.concatenate([own, alpha[:, :, None] * np.asarray(workflow.mixing)], axis=2)
    return np.cumsum(rows.astype(np.float32), axis=2, dtype=np.float32)


def _draw(items, bits, count):
    """`count` of the valid items, uniformly without replacement, in random order; all of them, then
    padding, where fewer are valid.
    """
    place = jnp.arange(bits.shape[0], dtype=jnp.int32)
    _, _, order = jax.lax.sort((~items.valid, bits, place), num_keys=2)
    return jax.tree.map(lambda x: x[order[:count]], items)


def _human(index, generation, entity, valid):
    index = index.astype(jnp.int32)
    like = jnp.zeros_like(index)
    return _clean(Plan(like + HUMAN, like + generation, index, like + entity, valid))


def _clean(items):
    return Plan(*(jnp.where(items.valid, x, 0) for x in items[:-1]), items.valid)


def _join(*parts):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _pad(items, rows):
    return jax.tree.map(lambda x: jnp.pad(x, (0, rows - x.shape[0])), items)


def gather(items: Plan, *, human, synthetic, external=None, public=None):
    """Rows of a plan as arrays [rows, ...], for families whose items are arrays (padding rows hold
    item 0 of the human stream).

    human [K, stream, ...], synthetic [generations, K, synthetic, ...], external [K, stream, ...],
    public [items, ...].
    """
    taken = human[items.entity, items.index % human.shape[1]]

    def wide(mask):
        return mask.reshape(mask.shape + (1,) * (taken.ndim - 1))

    if synthetic.shape[2]:
        taken = jnp.where(
            wide(items.source == SYNTHETIC),
            synthetic[items.generation, items.entity, items.index % synthetic.shape[2]],
            taken,
        )
    if external is not None:
        taken = jnp.where(
            wide(items.source == EXTERNAL),
            external[items.entity, items.index % external.shape[1]],
            taken,
        )
    if public is not None:
        taken = jnp.where(
            wide(items.source == PUBLIC), public[items.index % public.shape[0]], taken
        )
    return taken


def on_host(items: Plan) -> Plan:
    """The valid rows of a plan, as NumPy arrays."""
    valid = np.asarray(items.valid)
    return Plan(*(np.asarray(x)[valid] for x in items))


def train_size(workflow: Workflow, generation: int) -> int:
    """Exact number of valid rows of a plan: items that one entity trains on in a generation (Python
    integers, no draw).
    """
    if workflow.exchange is not None:
        return workflow.train
    if generation == 0:
        return workflow.initial
    batches = generation if workflow.window is None else min(workflow.window, generation)
    keeps_real = workflow.real == "always" or (
        workflow.real == "window" and (workflow.window is None or generation < workflow.window)
    )
    pool = workflow.batch * batches + keeps_real * workflow.initial * workflow._writers
    return workflow.preserved + (pool if workflow.train is None else min(workflow.train, pool))
