"""The account of a compiled program: kernels run, bytes, FLOPs, the sum of their rooflines by kind,
and what should not be in it.

A kernel's roofline is the larger of its bytes over the card's bandwidth and its FLOPs over the
card's peak: no program is faster than the sum.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxloop.accelerators import hlo, kernels
from jaxloop.accelerators.hlo import Instruction, Module

KINDS = (
    "large products",
    "thin products",
    "copies, slices, updates",
    "elementwise, reductions",
    "attention calls",
    "collectives",
)


class Rates(NamedTuple):
    """Bytes/s of memory, FLOP/s of products in bfloat16, in float32, and in float32 at the highest
    precision (as in `cards.Card`).
    """

    bandwidth: float
    peak: float
    peak32: float
    exact: float


@dataclass(frozen=True)
class Totals:
    """Of one execution: kernels, bytes read and written, FLOPs of products, seconds of rooflines by
    kind, XLA's cycles on a TPU.
    """

    kernels: int = 0
    read: float = 0.0
    written: float = 0.0
    flops: float = 0.0
    cycles: int = 0
    kinds: Counter = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return sum(self.kinds.values())

    @property
    def bytes(self) -> float:
        return self.read + self.written

    def plus(self, other: "Totals", times: int = 1) -> "Totals":
        """These and `times` the others."""
        summed = {
            f: getattr(self, f) + times * getattr(other, f)
            for f in ("kernels", "read", "written", "flops", "cycles")
        }
        return Totals(
            **summed,
            kinds=self.kinds
            + Counter({kind: times * value for kind, value in other.kinds.items()}),
        )


class Loop(NamedTuple):
    """A `while`: how deep inside others, its turns (None: known when it runs), the totals of one
    turn, and the JAX operation it comes from.
    """

    body: str
    depth: int
    trips: int | None
    turn: Totals
    operation: str


class Found(NamedTuple):
    """An instruction that an account names. place: "once", "loop" (in a loop), or "step" (in a turn
    of `Account.step`'s loop).
    """

    bytes: float
    shape: str
    op: str
    where: str
    place: str


@dataclass(frozen=True)
class Account:
    """total: the program run once, loops of unknown length turning once and conditionals taking
    their longest branch. loops: outermost first. largest: arrays between kernels, by bytes;
    scatters, copies and collectives in loops (the copies by bytes): what is to be avoided.
    """

    total: Totals
    loops: tuple[Loop, ...]
    largest: tuple[Found, ...]
    scatters: tuple[Found, ...]
    copies: tuple[Found, ...]
    collectives: tuple[Found, ...]

    @property
    def step(self) -> Totals:
        """One turn of the innermost loop whose length is known only when it runs and that does
        most: a step of training or decoding. The whole program where there is none.
        """
        return max(
            (loop.turn for loop in _steps(self.loops)),
            key=lambda turn: turn.seconds,
            default=self.total,
        )


def _steps(loops: Iterable[Loop]) -> list[Loop]:
    """The innermost loops whose length is known only when they run."""
    open_loops = [loop for loop in loops if loop.trips is None]
    deepest = max((loop.depth for loop in open_loops), default=None)
    return [loop for loop in open_loops if loop.depth == deepest]


def account(text: str, rates: Rates, *, keep: int = 10) -> Account:
    """The account of optimised HLO text; `keep` arrays and copies are named."""
    module = hlo.parse(text)
    known: dict[str, Totals] = {}
    loops: list[Loop] = []
    _find_loops(module, module.entry, 0, rates, known, loops, set())
    total = _totals(module, module.entry, rates, known)
    places = _places(module, loops)
    named = [
        (i, name, place)
        for name, place in places.items()
        for i in module.computations[name].values()
    ]
    arrays = [
        _found(*each)
        for each in named
        if not hlo.is_free(each[0]) and not each[0].shape.startswith("(")
    ]
    copies = [_found(*each) for each in named if each[2] != "once" and _is_copy(module, each[0])]
    scatters = [
        _found(j, name, place)
        for i, name, place in named
        for j in _inside(module, i)
        if j.op == "scatter"
    ]
    collectives = [
        _found(*each)
        for each in named
        if each[2] != "once" and each[0].op.removesuffix("-start") in hlo.COLLECTIVES
    ]
    most = lambda found: tuple(sorted(found, key=lambda f: -f.bytes)[:keep])  # noqa: E731
    return Account(
        total, tuple(loops), most(arrays), tuple(scatters), most(copies), tuple(collectives)
    )


def seconds_of_cycles(totals: Totals, clock: float) -> float:
    """XLA's own estimate for a TPU whose cores run at `clock` Hz."""
    return totals.cycles / clock if clock else 0.0


def widest(text: str, dtype: str) -> int:
    """Elements of the largest array of a dtype that stands between kernels."""
    module = hlo.parse(text)
    found = (
        count for name in _reached(module, module.entry) for i in module.computations[name].values() if not hlo.is_free(i)
        for kind, count, _ in hlo.arrays(i.shape) if kind == dtype
    )  # fmt: skip
    return max(found, default=0)


def _found(i: Instruction, computation: str, place: str) -> Found:
    return Found(
        hlo.size(i.shape), i.shape.split("{")[0], i.op, hlo.operation(i) or computation, place
    )


def _inside(module: Module, i: Instruction) -> Iterator[Instruction]:
    """The instruction itself, or those of its fusion."""
    inner = module.computations.get(hlo.called(i, "calls") or "") if i.op == "fusion" else None
    yield from inner.values() if inner else (i,)


def _is_copy(module: Module, i: Instruction) -> bool:
    """Whether a kernel does nothing but copy an array, whole."""
    if i.op in ("copy", "copy-start"):
        return True
    return i.op == "fusion" and {j.op for j in _inside(module, i)} - {
        "parameter",
        "bitcast",
        "tuple",
    } == {"copy"}


def _next(module: Module, i: Instruction) -> list[str]:
    """The computations that an instruction runs as kernels of their own."""
    if i.op == "while":
        return [name for name in (hlo.called(i, "body"),) if name in module.computations]
    if i.op == "conditional":
        return hlo.branches(i)
    if i.op == "call" or (i.op.endswith("-start") and hlo.called(i, "calls")):
        name = hlo.called(i, "to_apply") or hlo.called(i, "calls")
        return [name] if name in module.computations else []
    return []


def _reached(module: Module, computation: str, seen: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The computations whose instructions are kernels, from one on."""
    if computation in seen:
        return seen
    seen = (*seen, computation)
    for i in module.computations[computation].values():
        for name in _next(module, i):
            seen = _reached(module, name, seen)
    return seen


def _places(module: Module, loops: Sequence[Loop]) -> dict[str, str]:
    """{computation whose instructions are kernels: its `Found.place`}."""
    places = dict.fromkeys(_reached(module, module.entry), "once")
    for place, some in (("loop", loops), ("step", _steps(loops))):
        for loop in some:
            places |= dict.fromkeys(_reached(module, loop.body), place)
    return places


def _find_loops(module, computation, depth, rates, known, loops, seen) -> None:
    if computation in seen:
        return
    seen.add(computation)
    for i in module.computations[computation].values():
        for name in _next(module, i):
            if i.op == "while":
                loops.append(
                    Loop(
                        name,
                        depth,
                        hlo.trips(module, i),
                        _totals(module, name, rates, known),
                        hlo.operation(i),
                    )
                )
            _find_loops(module, name, depth + (i.op == "while"), rates, known, loops, seen)


def _totals(module: Module, computation: str, rates: Rates, known: dict[str, Totals]) -> Totals:
    """Of one run of a computation, `known` holding those of others."""
    if computation in known:
        return known[computation]
    total = Totals()
    for i in module.computations[computation].values():
        run = _next(module, i)
        if i.op == "while":
            total = (
                total.plus(_totals(module, run[0], rates, known), hlo.trips(module, i) or 1)
                if run
                else total
            )
        elif i.op == "conditional":
            each = [_totals(module, name, rates, known) for name in run]
            total = total.plus(max(each, key=lambda t: t.seconds)) if each else total
        elif run:
            total = total.plus(_totals(module, run[0], rates, known))
        elif not hlo.is_free(i):
            total = total.plus(kernel(module, computation, i, rates))
    known[computation] = total
    return total


def kernel(module: Module, computation: str, i: Instruction, rates: Rates) -> Totals:
    """The totals of one kernel."""
    read, written = hlo.traffic(module, computation, i)
    flops = hlo.flops(module, computation, i)
    peak = rates.peak
    if flops and hlo.operand_type(module, computation, i) in ("f32", "f64"):
        peak = rates.exact if hlo.is_exact(module, i) else rates.peak32
    moving, computing = (read + written) / rates.bandwidth, flops / peak
    kind = _kind(module, i, flops, computing >= moving)
    return Totals(1, read, written, flops, hlo.cycles(i), Counter({kind: max(moving, computing)}))


def _kind(module: Module, i: Instruction, flops: float, computes: bool) -> str:
    if i.op.removesuffix("-start") in hlo.COLLECTIVES:
        return "collectives"
    ours = kernels.name_of(hlo.operation(i)) if i.op == "custom-call" else None
    if ours == "attend_rows" or ours is None and i.op == "custom-call" and hlo.is_attention(i):
        return "attention calls"
    if flops:
        return "large products" if computes else "thin products"
    inner = list(_inside(module, i))
    root = next((j for j in inner if j.root), inner[-1])
    large = {
        j.op
        for j in inner
        if hlo.dimensions(j.shape)
        and j.op not in ("parameter", "constant", "bitcast", "tuple", "convert")
    }
    updates = root.op == "dynamic-update-slice"
    moves = (
        updates or i.op.removesuffix("-start") in hlo.MOVES or bool(large) and large <= hlo.MOVES
    )
    return "copies, slices, updates" if moves else "elementwise, reductions"


def as_row(found: Account) -> dict:
    """The account in numbers, for a line of JSON: bytes, FLOPs and milliseconds of the whole and of
    a step.
    """

    def numbers(t: Totals) -> dict:
        kinds = {kind: round(1e3 * t.kinds[kind], 4) for kind in KINDS if t.kinds[kind]}
        return dict(
            kernels=t.kernels,
            bytes=int(t.bytes),
            flops=int(t.flops),
            roofline_ms=round(1e3 * t.seconds, 4),
            kinds_ms=kinds,
            cycles=t.cycles,
        )

    return dict(
        total=numbers(found.total), step=numbers(found.step), scatters=len(found.scatters), collectives_in_loops=len(found.collectives),
        largest_copy_in_loops=int(found.copies[0].bytes) if found.copies else 0, largest_array=int(found.largest[0].bytes) if found.largest else 0,
    )  # fmt: skip


def rates_of(card) -> Rates:
    """The rates of a `cards.Card`."""
    return Rates(card.bandwidth, card.peak, card.peak32, card.exact)
