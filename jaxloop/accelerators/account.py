"""The account of a compiled program: its kernels, bytes, FLOPs, and the sum of their rooflines.

A kernel's roofline is the larger of its bytes over the card's bandwidth and its FLOPs over the
card's peak: no program is faster than the sum.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxloop.accelerators import hlo, kernels
from jaxloop.accelerators.cards import Card
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
    """Bytes/s and FLOP/s of a device, as in `cards.Card`."""

    bandwidth: float
    peak: float
    peak32: float
    exact: float


@dataclass(frozen=True)
class Totals:
    """Totals of one execution.

    Attributes:
        kernels: how many run.
        read: bytes.
        written: bytes.
        flops: of products.
        cycles: XLA's estimate, on a TPU.
        unestimated: seconds of rooflines of the kernels for which it has none, such as Pallas
            kernels; transfers beside other kernels are not among them.
        kinds: seconds of rooflines by kind, one of `KINDS`.
    """

    kernels: int = 0
    read: float = 0.0
    written: float = 0.0
    flops: float = 0.0
    cycles: int = 0
    unestimated: float = 0.0
    kinds: Counter = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """The sum of the rooflines."""
        return sum(self.kinds.values())

    @property
    def bytes(self) -> float:
        """Bytes read and written."""
        return self.read + self.written

    def plus(self, other: "Totals", times: int = 1) -> "Totals":
        """Return the sum of these and `times` the others."""
        kinds = Counter({kind: times * seconds for kind, seconds in other.kinds.items()})
        return Totals(
            kernels=self.kernels + times * other.kernels,
            read=self.read + times * other.read,
            written=self.written + times * other.written,
            flops=self.flops + times * other.flops,
            cycles=self.cycles + times * other.cycles,
            unestimated=self.unestimated + times * other.unestimated,
            kinds=self.kinds + kinds,
        )


class Loop(NamedTuple):
    """A `while` loop.

    Attributes:
        body: its computation.
        depth: in how many other loops it is.
        trips: how often it turns; None: known when it runs.
        turn: the totals of one turn.
        operation: the JAX operation that it comes from.
    """

    body: str
    depth: int
    trips: int | None
    turn: Totals
    operation: str


class Finding(NamedTuple):
    """An instruction that an account names.

    Attributes:
        place: "once", "loop" (in a loop), or "step" (in a turn of `Account.step`'s loop).
    """

    bytes: float
    shape: str
    op: str
    where: str
    place: str


@dataclass(frozen=True)
class Account:
    """What a program does; scatters, and copies and collectives in loops, are to be avoided.

    Attributes:
        total: the program run once, loops of unknown length turning once and conditionals taking
            their longest branch.
        loops: outermost first.
        largest: arrays between kernels, by bytes.
        copies: in loops, by bytes.
        collectives: in loops.
    """

    total: Totals
    loops: tuple[Loop, ...]
    largest: tuple[Finding, ...]
    scatters: tuple[Finding, ...]
    copies: tuple[Finding, ...]
    collectives: tuple[Finding, ...]

    @property
    def step(self) -> Totals:
        """A step of training or decoding.

        It is one turn of the innermost loop whose length is known only when it runs and that does
        most, or the whole program where there is none.
        """
        turns = [loop.turn for loop in _steps(self.loops)]
        return max(turns, key=lambda turn: turn.seconds, default=self.total)


def _steps(loops: Iterable[Loop]) -> list[Loop]:
    """The innermost loops whose length is known only when they run."""
    open_loops = [loop for loop in loops if loop.trips is None]
    deepest = max((loop.depth for loop in open_loops), default=None)
    return [loop for loop in open_loops if loop.depth == deepest]


def account(text: str, rates: Rates, *, keep: int = 10) -> Account:
    """Return the account of optimised HLO text, with the `keep` largest arrays and copies."""
    module = hlo.parse(text)
    totals_of: dict[str, Totals] = {}
    loops: list[Loop] = []
    _find_loops(module, module.entry, 0, rates, totals_of, loops, set())
    total = _totals(module, module.entry, rates, totals_of)
    places = _places(module, loops)
    named = [
        (instruction, name, place)
        for name, place in places.items()
        for instruction in module.computations[name].values()
    ]
    in_loops = [entry for entry in named if entry[2] != "once"]
    arrays = [
        _finding(*entry)
        for entry in named
        if not hlo.is_free(entry[0]) and not entry[0].shape.startswith("(")
    ]
    copies = [_finding(*entry) for entry in in_loops if _is_copy(module, entry[0])]
    collectives = [_finding(*entry) for entry in in_loops if _is_collective(entry[0])]
    scatters = [
        _finding(inner, name, place)
        for instruction, name, place in named
        for inner in _inside(module, instruction)
        if inner.op == "scatter"
    ]
    return Account(
        total=total,
        loops=tuple(loops),
        largest=_largest(arrays, keep),
        scatters=tuple(scatters),
        copies=_largest(copies, keep),
        collectives=tuple(collectives),
    )


def _largest(findings: Sequence[Finding], keep: int) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: -finding.bytes)[:keep])


def _is_collective(i: Instruction) -> bool:
    return i.op.removesuffix("-start") in hlo.COLLECTIVES


def seconds_of_cycles(totals: Totals, clock: float) -> float:
    """Return XLA's own estimate for a TPU whose cores run at `clock` Hz.

    Kernels for which it has none count as their rooflines. 0 where it estimates nothing.
    """
    return totals.cycles / clock + totals.unestimated if clock and totals.cycles else 0.0


def widest(text: str, dtype: str) -> int:
    """Return the elements of the largest array of a dtype that stands between kernels."""
    module = hlo.parse(text)
    counts = [
        count
        for name in _reached(module, module.entry)
        for instruction in module.computations[name].values()
        if not hlo.is_free(instruction)
        for kind, count, _ in hlo.arrays(instruction.shape)
        if kind == dtype
    ]
    return max(counts, default=0)


def _finding(i: Instruction, computation: str, place: str) -> Finding:
    return Finding(
        bytes=hlo.size(i.shape),
        shape=i.shape.split("{")[0],
        op=i.op,
        where=hlo.operation(i) or computation,
        place=place,
    )


def _inside(module: Module, i: Instruction) -> Iterator[Instruction]:
    """The instruction itself, or those of its fusion."""
    inner = module.computations.get(hlo.called(i, "calls") or "") if i.op == "fusion" else None
    yield from inner.values() if inner else (i,)


def _is_copy(module: Module, i: Instruction) -> bool:
    """Whether a kernel does nothing but copy an array, whole.

    What a TPU's compiler moves to or from its fast memory, beside other kernels, is no copy.
    """
    if i.op == "copy-start" and "S(1)" in i.shape:
        return False
    if i.op != "fusion":
        return i.op in ("copy", "copy-start")
    return {j.op for j in _inside(module, i)} - {"parameter", "bitcast", "tuple"} == {"copy"}


def _next(module: Module, i: Instruction) -> list[str]:
    """The computations that an instruction runs as kernels of their own."""
    if i.op == "conditional":
        return hlo.branches(i)
    name = None
    if i.op == "while":
        name = hlo.called(i, "body")
    elif i.op == "call" or i.op.endswith("-start"):
        name = hlo.called(i, "calls")
        name = hlo.called(i, "to_apply") or name if i.op == "call" or name else None
    return [name] if name is not None and name in module.computations else []


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


def _find_loops(
    module: Module,
    computation: str,
    depth: int,
    rates: Rates,
    totals_of: dict[str, Totals],
    loops: list[Loop],
    seen: set[str],
) -> None:
    """Append the loops in a computation and in those that it runs, outermost first."""
    if computation in seen:
        return
    seen.add(computation)
    for i in module.computations[computation].values():
        for name in _next(module, i):
            if i.op == "while":
                loop = Loop(
                    body=name,
                    depth=depth,
                    trips=hlo.trips(module, i),
                    turn=_totals(module, name, rates, totals_of),
                    operation=hlo.operation(i),
                )
                loops.append(loop)
            _find_loops(module, name, depth + (i.op == "while"), rates, totals_of, loops, seen)


def _totals(module: Module, computation: str, rates: Rates, totals_of: dict[str, Totals]) -> Totals:
    """Of one run of a computation; `totals_of` holds those of other computations."""
    if computation in totals_of:
        return totals_of[computation]
    total = Totals()
    for i in module.computations[computation].values():
        each = [_totals(module, name, rates, totals_of) for name in _next(module, i)]
        if i.op == "conditional" and each:
            total = total.plus(max(each, key=lambda branch: branch.seconds))
        elif i.op == "while" and each:
            total = total.plus(each[0], hlo.trips(module, i) or 1)
        elif each:
            total = total.plus(each[0])
        elif i.op not in ("while", "conditional") and not hlo.is_free(i):
            total = total.plus(kernel(module, computation, i, rates))
    totals_of[computation] = total
    return total


def kernel(module: Module, computation: str, i: Instruction, rates: Rates) -> Totals:
    """Return the totals of one kernel."""
    read, written = hlo.traffic(module, computation, i)
    flops = hlo.flops(module, computation, i)
    peak = rates.peak
    if flops and hlo.operand_type(module, computation, i) in ("f32", "f64"):
        peak = rates.exact if hlo.is_exact(module, i) else rates.peak32
    moving, computing = (read + written) / rates.bandwidth, flops / peak
    kind, seconds = _kind(module, i, flops, computing >= moving), max(moving, computing)
    cycles = hlo.cycles(i)
    return Totals(
        kernels=1,
        read=read,
        written=written,
        flops=flops,
        cycles=cycles,
        unestimated=0.0 if cycles or i.op.endswith("-start") else seconds,
        kinds=Counter({kind: seconds}),
    )


def _kind(module: Module, i: Instruction, flops: float, computes: bool) -> str:
    if _is_collective(i):
        return "collectives"
    if _is_attention(i):
        return "attention calls"
    if flops:
        return "large products" if computes else "thin products"
    return _kind_without_products(module, i)


def _is_attention(i: Instruction) -> bool:
    if i.op != "custom-call":
        return False
    ours = kernels.name_of(hlo.operation(i))
    return ours in ("attend_rows", "attend_ring") or (ours is None and hlo.is_attention(i))


def _kind_without_products(module: Module, i: Instruction) -> str:
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


def as_row(program: Account) -> dict[str, Any]:
    """Return the account in numbers, for a line of JSON: bytes, FLOPs and milliseconds."""
    return {
        "total": _numbers(program.total),
        "step": _numbers(program.step),
        "scatters": len(program.scatters),
        "collectives_in_loops": len(program.collectives),
        "largest_copy_in_loops": int(program.copies[0].bytes) if program.copies else 0,
        "largest_array": int(program.largest[0].bytes) if program.largest else 0,
    }


def _numbers(totals: Totals) -> dict[str, Any]:
    milliseconds = {kind: 1e3 * totals.kinds[kind] for kind in KINDS if totals.kinds[kind]}
    return {
        "kernels": totals.kernels,
        "bytes": int(totals.bytes),
        "flops": int(totals.flops),
        "roofline_ms": round(1e3 * totals.seconds, 4),
        "kinds_ms": {kind: round(ms, 4) for kind, ms in milliseconds.items()},
        "cycles": totals.cycles,
    }


def rates_of(card: Card) -> Rates:
    """Return the rates of a card."""
    return Rates(card.bandwidth, card.peak, card.peak32, card.exact)
