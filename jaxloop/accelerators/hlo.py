"""Read optimised HLO text: instructions, what kernels move and compute, trip counts of loops.

The text is what `jax.stages.Compiled.as_text()` gives on a CPU, a GPU or a TPU. Bytes are those of
the device's main memory: arrays that a TPU keeps on the chip (memory space 1) cost none.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxloop.accelerators import kernels

# Bytes of one number; of those not named here 4. Sub-byte numbers are packed.
WIDTH = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3"), 1.0),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2.0),
    **dict.fromkeys(("s32", "u32", "f32"), 4.0),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8.0),
    "c128": 16.0,
    "token": 0.0,
    **dict.fromkeys(("s4", "u4"), 0.5),
}
# What is no kernel: names, views and bookkeeping.
FREE = frozenset(
    "parameter tuple get-tuple-element bitcast constant after-all opt-barrier partition-id "
    "replica-id add-dependency get-dimension-size".split()
)
# Custom calls of XLA for TPUs that are views or promises, not kernels.
VIEWS = frozenset(("ConcatBitcast", "AssumeGatherIndicesInBound", "AllocateBuffer"))
MOVES = frozenset(
    "copy slice dynamic-slice dynamic-update-slice transpose broadcast reshape concatenate pad "
    "reverse iota bitcast-convert".split()
)
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        inside: the text between its parentheses.
        attributes: the text after them.
        root: whether it is the computation's result.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool


class Module(NamedTuple):
    """Computations by name, with their instructions by name, and the name of the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*\) -> .*)?\{\s*(/\*.*\*/)?$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


def parse(text: str) -> Module:
    """Return the module of an HLO text.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            continue
        match = _LINE.match(line)
        if match is None or current is None:
            continue
        instruction = _instruction(match[2], match[3], bool(match[1]))
        if instruction is not None:
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError(
            "HLO text: there is no entry computation; give the text of a compiled program"
        )
    return Module(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> Instruction | None:
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    called = re.match(r"([\w\-]+)\(", rest)
    if not called:
        return None
    stop = _closing(rest, called.end() - 1)
    inside = rest[called.end() : stop - 1]
    operands = (
        () if called[1] in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
    )
    return Instruction(name, shape, called[1], operands, inside, rest[stop:], root)


def _closing(text: str, at: int) -> int:
    """The place after the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(text)


# ---- shapes and attributes


def dimensions(shape: str) -> tuple[int, ...]:
    """Return the dimensions of the first array of a shape."""
    match = _ARRAY.search(shape)
    return tuple(int(x.replace("<=", "")) for x in match[2].split(",") if x) if match else ()


def dtype(shape: str) -> str:
    """Return the dtype of the first array of a shape."""
    match = _ARRAY.search(shape)
    return match[1] if match else ""


def arrays(shape: str) -> Iterator[tuple[str, int, float]]:
    """Yield (dtype, elements, bytes) of every array of a shape.

    Bytes are 0 where a TPU keeps the array on the chip.
    """
    for kind, dims, layout in _ARRAY.findall(shape):
        count = 1
        for x in dims.split(","):
            count *= int(x.replace("<=", "")) if x else 1
        yield kind, count, 0.0 if "S(1)" in layout else count * WIDTH.get(kind, 4)


def size(shape: str) -> float:
    """Return the bytes of a shape in the device's main memory."""
    return sum(width for _, _, width in arrays(shape))


def called(i: Instruction, key: str) -> str | None:
    """Return the computation that an attribute such as `calls=` names, or None."""
    match = re.search(rf"\b{key}=%?([\w.\-]+)", i.attributes)
    return match[1] if match else None


def branches(i: Instruction) -> list[str]:
    """Return the computations of a conditional."""
    if match := re.search(r"branch_computations=\{([^}]*)\}", i.attributes):
        return [name.strip().lstrip("%") for name in match[1].split(",")]
    return [
        name for name in (called(i, "true_computation"), called(i, "false_computation")) if name
    ]


def operation(i: Instruction) -> str:
    """Return the JAX operation that an instruction comes from, "" where the text does not say."""
    match = re.search(r'op_name="([^"]*)"', i.attributes)
    return match[1] if match else ""


def cycles(i: Instruction) -> int:
    """Return XLA's own estimate for a TPU in cycles of its clock, 0 where there is none."""
    match = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    return int(match[1]) if match else 0


def trips(module: Module, i: Instruction) -> int | None:
    """Return how often a `while` turns, None where that is known only when it runs.

    It is what XLA says or, where the condition only compares a counter with a number, that number:
    counters of JAX's loops start at 0.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes):
        return int(match[1])
    condition = list(_all(module, called(i, "condition")))
    plain = all(j.op in (*FREE, "compare", "fusion", "call") for j in condition)
    numbers = [
        int(j.inside) for j in condition if j.op == "constant" and re.fullmatch(r"\d+", j.inside)
    ]
    less = any(j.op == "compare" and "direction=LT" in j.attributes for j in condition)
    return numbers[0] if plain and less and len(numbers) == 1 else None


def _all(module: Module, computation: str | None) -> Iterator[Instruction]:
    """The instructions of a computation and of those that it calls."""
    for i in module.computations.get(computation or "", {}).values():
        yield i
        yield from _all(module, called(i, "calls") or called(i, "to_apply"))


# ---- what a kernel moves


def traffic(module: Module, computation: str, i: Instruction) -> tuple[float, float]:
    """Return (bytes read, bytes written) by one kernel, every array once.

    A slice or gather reads what it gives, an update in place and a scatter read and write what they
    change, and a fusion that only slices or updates one of its parameters reads or writes that part
    of it.
    """
    local = module.computations[computation]
    if is_free(i) or i.op in ("while", "conditional", "call"):
        return 0.0, 0.0

    def of(name: str) -> float:
        return size(local[name].shape) if name in local else 0.0

    inner = module.computations.get(called(i, "calls") or "") if i.op == "fusion" else None
    if inner:
        return _fusion_traffic(inner, i, of)
    if i.op in ("slice", "dynamic-slice", "gather"):
        return size(i.shape) + sum(map(of, i.operands[1:])), size(i.shape)
    if i.op == "dynamic-update-slice":
        return of(i.operands[1]), of(i.operands[1])
    if i.op == "scatter":
        changed = of(i.operands[-1])
        return 2 * changed + sum(map(of, i.operands[1:-1])), changed
    if i.op in ("copy-start", "slice-start", "dynamic-slice-start"):
        return _transfer(i)
    if i.op.endswith("-start"):
        return sum(map(of, i.operands)), sum(map(of, i.operands))
    ours = kernels.name_of(operation(i)) if i.op == "custom-call" else None
    if ours:
        return kernels.moved(
            ours,
            _operands(local, i),
            [
                size(f"{kind}[{numbers}]{layout}")
                for kind, numbers, layout in _ARRAY.findall(i.shape)
            ],
        )
    return sum(map(of, i.operands)), _results(i)


def _operands(local: dict[str, Instruction], i: Instruction) -> list[tuple[tuple[int, ...], float]]:
    """(dimensions, bytes) of what a custom call takes."""
    shapes = [local[name].shape for name in i.operands if name in local]
    return [(tuple(dimensions(shape)), size(shape)) for shape in shapes]


def _transfer(i: Instruction) -> tuple[float, float]:
    """`traffic` of moving an array between memories: of its two ends, those in the main memory."""
    first, second = _ARRAY.findall(i.shape)[:2]
    target, source = (first, second) if i.op == "copy-start" else (second, first)
    moved = size(f"{target[0]}[{target[1]}]")
    read, written = (0.0 if "S(1)" in layout else moved for layout in (source[2], target[2]))
    return read, written


def _results(i: Instruction) -> float:
    """Bytes of an instruction's results, without the workspace that libraries add as the last."""
    whole = size(i.shape)
    if i.op == "custom-call" and i.shape.startswith("("):
        *_, last = _ARRAY.findall(i.shape)
        if last[0] in ("s8", "u8") and "," not in last[1]:
            whole -= size(f"{last[0]}[{last[1]}]{last[2]}")
    return whole


_UPDATES = ("dynamic-update-slice", "scatter")
_PARTS = ("dynamic-slice", "slice", "gather")


def _fusion_traffic(
    inner: dict[str, Instruction], i: Instruction, of: Callable[[str], float]
) -> tuple[float, float]:
    """`traffic` of a fusion: its instructions are `inner`, `of` gives the bytes of an operand."""
    written = changed = 0.0
    for result in _fusion_results(inner):
        if result.op in _UPDATES:
            part = inner[result.operands[1 if result.op == "dynamic-update-slice" else -1]]
            written += size(part.shape)
            changed += size(part.shape) if result.op == "scatter" else 0.0
        else:
            written += size(result.shape)
    users = _users(inner)
    read = changed
    for parameter in (j for j in inner.values() if j.op == "parameter"):
        number = int(parameter.inside)
        whole = of(i.operands[number]) if number < len(i.operands) else size(parameter.shape)
        counts = math.prod(dimensions(parameter.shape))
        uses = list(_uses(users, parameter.name, counts))
        read += _read_of_parameter(whole, uses, size(parameter.shape) / max(1, counts))
    return read, written


def _fusion_results(inner: dict[str, Instruction]) -> list[Instruction]:
    """What a fusion gives, behind views."""
    root = next((j for j in inner.values() if j.root), None) or list(inner.values())[-1]
    names = root.operands if root.op == "tuple" else (root.name,)
    results = [_source(inner, name) for name in names]
    return [result for result in results if result is not None]


def _source(inner: dict[str, Instruction], name: str) -> Instruction | None:
    """The instruction behind views."""
    j = inner.get(name)
    return _source(inner, j.operands[0]) if j is not None and j.op == "bitcast" else j


Users = dict[str, list[tuple[Instruction, int]]]


def _users(inner: dict[str, Instruction]) -> Users:
    """{name: (instruction that takes it, as which operand)}."""
    users: Users = {}
    for j in inner.values():
        for position, name in enumerate(j.operands):
            users.setdefault(name, []).append((j, position))
    return users


_ELEMENTWISE = (
    *("add", "and", "clamp", "compare", "convert", "divide", "exponential", "log", "maximum"),
    *("minimum", "multiply", "negate", "or", "power", "select", "subtract", "tanh"),
)


def _uses(users: Users, name: str, counts: int) -> Iterator[tuple[Instruction, int]]:
    """Who uses a value of `counts` elements, and as which operand.

    Through views, and through elementwise arithmetic, of which a fusion computes only what is used.
    """
    waiting, seen = [name], {name}
    while waiting:
        for j, position in users.get(waiting.pop(), ()):
            same = j.op in _ELEMENTWISE and math.prod(dimensions(j.shape)) == counts
            if not (j.op == "bitcast" or same and not j.root):
                yield j, position
            elif j.name not in seen:
                # Once: ways through arithmetic that uses a value twice double with every step.
                seen.add(j.name)
                waiting.append(j.name)


def _read_of_parameter(whole: float, uses: list[tuple[Instruction, int]], each: float) -> float:
    """Bytes that a fusion reads of a parameter of `whole` bytes, `each` for an element."""
    if uses and all(position == 0 and user.op in _PARTS for user, position in uses):
        # A value that reaches a slice by several ways is read once.
        parts = {user.name: each * math.prod(dimensions(user.shape)) for user, _ in uses}
        return min(whole, sum(parts.values()))
    if uses and all(position == 0 and user.op in _UPDATES for user, position in uses):
        return 0.0
    return whole


# ---- what a kernel computes


def flops(module: Module, computation: str, i: Instruction) -> float:
    """Return the FLOPs of the products in one kernel, two for each multiplication and addition.

    Other arithmetic is not counted: memory is its limit.
    """
    if i.op in ("dot", "convolution"):
        return _product(module.computations[computation], i)
    if i.op == "custom-call":
        ours = kernels.name_of(operation(i))
        if ours:
            return kernels.computed(ours, _operands(module.computations[computation], i))
        if is_attention(i):
            return _attention(module.computations[computation], i)
        return _product(module.computations[computation], i) if is_product_call(i) else 0.0
    inside = _called_by_fusion(i)
    return sum(flops(module, inside, j) for j in module.computations.get(inside, {}).values())


def _called_by_fusion(i: Instruction) -> str:
    """The computation inside a fusion or an asynchronous call, "" of other instructions."""
    return called(i, "calls") or "" if i.op in ("fusion", "async-start") else ""


def library(i: Instruction) -> str:
    """Return the library routine or Pallas kernel that a custom call runs, or ""."""
    match = re.search(r'custom_call_target="([^"]+)"', i.attributes)
    return match[1] if match else ""


def is_free(i: Instruction) -> bool:
    """Say whether an instruction is no kernel.

    That is a view, bookkeeping, or the end of a transfer, which is counted at its start.
    """
    return i.op in FREE or i.op.endswith("-done") or (i.op == "custom-call" and library(i) in VIEWS)


def is_product_call(i: Instruction) -> bool:
    """Say whether a custom call is a matrix product of a library."""
    return any(word in library(i).lower() for word in ("gemm", "matmul"))


def is_attention(i: Instruction) -> bool:
    """Say whether a custom call is a library's fused attention or a Pallas kernel.

    Attention is what we use Pallas kernels of libraries for.
    """
    name = library(i).lower()
    return any(
        word in name
        for word in (
            "fmha",
            "attention",
            "tpu_custom_call",
            "mosaic",
            "triton_kernel",
            "xla.gpu.triton",
        )
    )


def _product(local: dict[str, Instruction], i: Instruction) -> float:
    left, right = (local[name].shape if name in local else "" for name in i.operands[:2])
    outputs = math.prod(dimensions(i.shape))
    if i.op == "convolution":
        return 2.0 * outputs * _summed_by_convolution(i, right)
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.attributes) or re.search(
        r'"lhs_contracting_dimensions":\[([0-9",]*)\]', i.attributes
    )
    contracted = (axes[1] if axes else "").replace('"', "").split(",")
    return 2.0 * outputs * math.prod(dimensions(left)[int(axis)] for axis in contracted if axis)


def _summed_by_convolution(i: Instruction, kernel: str) -> int:
    """Terms of each sum of a convolution, which is how a TPU's products are written.

    The kernel's axes are summed but for the output's, and those that stand for a batch.
    """
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", i.attributes)
    windows = re.search(r"window=\{([^}]*)\}", i.attributes)
    window = dict(re.findall(r"(\w+)=([\d_x]+)", windows[0] if windows else ""))
    dilated = [int(x) > 1 for x in window.get("lhs_dilate", "").split("x") if x]
    summed = 1
    for label, n in zip(labels[1] if labels else "", dimensions(kernel)):
        batch = label.isdigit() and int(label) < len(dilated) and dilated[int(label)]
        summed *= 1 if label == "o" or batch else n
    return summed


def _attention(local: dict[str, Instruction], i: Instruction) -> float:
    """FLOPs of a call to cuDNN's attention.

    Forward it is two products of [T, S, K] for every row and head, backward five; half of that
    under a causal mask.
    """
    shape = re.search(
        r'"intermediate_tensor_shape":\s*\{[^}]*?"dimensions":\s*\[([^\]]*)\]', i.attributes
    )
    if not shape or not i.operands or i.operands[0] not in local:
        return 0.0
    scores = math.prod(int(n) for n in re.findall(r"\d+", shape[1]))
    head_dim = dimensions(local[i.operands[0]].shape)[-1]
    products = 5 if "Backward" in library(i) else 2
    half = 0.5 if re.search(r'"mask_type":\s*"CAUSAL"', i.attributes) else 1.0
    return 2.0 * scores * head_dim * products * half


def operand_type(module: Module, computation: str, i: Instruction) -> str:
    """Return the dtype of what the first product in a kernel multiplies, "" where there is none."""
    local = module.computations[computation]
    if i.op in ("dot", "convolution", "custom-call"):
        return dtype(local[i.operands[0]].shape) if i.operands and i.operands[0] in local else ""
    inside = _called_by_fusion(i)
    kinds = (
        operand_type(module, inside, j)
        for j in module.computations.get(inside, {}).values()
        if j.op in ("dot", "convolution", "fusion")
    )
    return next((kind for kind in kinds if kind), "")


def is_exact(module: Module, i: Instruction) -> bool:
    """Say whether a product in a kernel is computed at the highest precision."""
    inside = _called_by_fusion(i)
    precision = re.search(r'operand_precision(?:=\{|":\[")(\w+)', i.attributes)
    return bool(precision and precision[1].lower() == "highest") or any(
        is_exact(module, j) for j in module.computations.get(inside, {}).values()
    )
