"""Optimised HLO text, read: computations and instructions, what each kernel moves and computes, how
often each loop turns.

The text is what `jax.stages.Compiled.as_text()` gives on a CPU, a GPU or a TPU. Bytes are those of
the device's main memory: arrays that a TPU keeps on the chip (memory space 1) cost none.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxloop.accelerators import kernels

# Bytes of one number; of those not named here 4. Sub-byte numbers are packed.
WIDTH = dict(
    pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8, c64=8, c128=16, token=0, s4=0.5, u4=0.5,
    f8e4m3fn=1, f8e5m2=1, f8e4m3=1,
)  # fmt: skip
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
    """One line of a computation. inside: the text between its parentheses; attributes: what follows
    them.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool


class Module(NamedTuple):
    """{computation: {instruction: it}}, in the order of the text, and the name of the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Module:
    """The module of an HLO text. Raises ValueError where the text has no entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = None, None
    head = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*\) -> .*)?\{\s*(/\*.*\*/)?$")
    line_of = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := head.match(line):
                current = computations.setdefault(found[2], {})
                entry = found[2] if found[1] else entry
            continue
        found = line_of.match(line)
        if (
            found
            and current is not None
            and (made := _instruction(found[2], found[3], bool(found[1])))
        ):
            current[made.name] = made
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
# --------------------------------------------------------------------------------------------


def dimensions(shape: str) -> tuple[int, ...]:
    """Of the first array of a shape."""
    found = _ARRAY.search(shape)
    return tuple(int(x.replace("<=", "")) for x in found[2].split(",") if x) if found else ()


def dtype(shape: str) -> str:
    """Of the first array of a shape."""
    found = _ARRAY.search(shape)
    return found[1] if found else ""


def arrays(shape: str) -> Iterator[tuple[str, int, float]]:
    """(dtype, elements, bytes) of every array of a shape; bytes are 0 where a TPU keeps it on the
    chip.
    """
    for kind, dims, layout in _ARRAY.findall(shape):
        count = 1
        for x in dims.split(","):
            count *= int(x.replace("<=", "")) if x else 1
        yield kind, count, 0.0 if "S(1)" in layout else count * WIDTH.get(kind, 4)


def size(shape: str) -> float:
    """Bytes of a shape in the device's main memory."""
    return sum(width for _, _, width in arrays(shape))


def called(i: Instruction, key: str) -> str | None:
    """The computation that an attribute such as `calls=` names."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", i.attributes)
    return found[1] if found else None


def branches(i: Instruction) -> list[str]:
    """The computations of a conditional."""
    if found := re.search(r"branch_computations=\{([^}]*)\}", i.attributes):
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return [
        name for name in (called(i, "true_computation"), called(i, "false_computation")) if name
    ]


def operation(i: Instruction) -> str:
    """The JAX operation that an instruction comes from; "" where the text does not say."""
    found = re.search(r'op_name="([^"]*)"', i.attributes)
    return found[1] if found else ""


def cycles(i: Instruction) -> int:
    """XLA's own estimate for a TPU, in cycles of its clock; 0 where there is none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    return int(found[1]) if found else 0


def trips(module: Module, i: Instruction) -> int | None:
    """How often a `while` turns: as XLA says or, where its condition only compares a counter with a
    number, that number (counters of JAX's loops start at 0). None where that is known only when it
    runs.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes):
        return int(found[1])
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
# ----------------------------------------------------------------------------------------------


def traffic(module: Module, computation: str, i: Instruction) -> tuple[float, float]:
    """(bytes read, bytes written) by one kernel, every array once.

    A slice or gather reads what it gives, an update in place and a scatter read and write what they
    change, and a fusion that only slices or updates one of its parameters reads or writes that part
    of it.
    """
    local = module.computations[computation]
    if is_free(i) or i.op in ("while", "conditional", "call"):
        return 0.0, 0.0
    of = lambda name: size(local[name].shape) if name in local else 0.0  # noqa: E731
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
    """Of an array, or a slice of one, that is on its way between memories: of its two ends, those
    that lie in the main one.
    """
    first, second = _ARRAY.findall(i.shape)[:2]
    target, source = (first, second) if i.op == "copy-start" else (second, first)
    moved = size(f"{target[0]}[{target[1]}]")
    return tuple(0.0 if "S(1)" in layout else moved for layout in (source[2], target[2]))


def _results(i: Instruction) -> float:
    """Bytes that an instruction gives, without the workspace that libraries ask for as a last
    result.
    """
    whole = size(i.shape)
    if i.op == "custom-call" and i.shape.startswith("("):
        *_, last = _ARRAY.findall(i.shape)
        if last[0] in ("s8", "u8") and "," not in last[1]:
            whole -= size(f"{last[0]}[{last[1]}]{last[2]}")
    return whole


def _fusion_traffic(inner: dict[str, Instruction], i: Instruction, of) -> tuple[float, float]:
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for j in inner.values():
        for at, name in enumerate(j.operands):
            users.setdefault(name, []).append((j, at))

    def uses(name):
        """Who uses a value, through views."""
        for j, at in users.get(name, ()):
            if j.op == "bitcast":
                yield from uses(j.name)
            else:
                yield j, at

    def source(name):
        """The value behind views."""
        j = inner.get(name)
        return source(j.operands[0]) if j is not None and j.op == "bitcast" else j

    root = next((j for j in inner.values() if j.root), None) or list(inner.values())[-1]
    results = (
        [source(name) for name in root.operands] if root.op == "tuple" else [source(root.name)]
    )
    written = changed = 0.0
    for r in results:
        if r is not None and r.op in ("dynamic-update-slice", "scatter"):
            part = inner[r.operands[1 if r.op == "dynamic-update-slice" else -1]]
            written += size(part.shape)
            changed += size(part.shape) if r.op == "scatter" else 0.0
        elif r is not None:
            written += size(r.shape)
    read = changed
    for j in inner.values():
        if j.op != "parameter":
            continue
        number = int(j.inside)
        whole = of(i.operands[number]) if number < len(i.operands) else size(j.shape)
        found = list(uses(j.name))
        if found and all(
            at == 0 and u.op in ("dynamic-slice", "slice", "gather") for u, at in found
        ):
            whole = min(whole, sum(size(u.shape) for u, _ in found))
        elif found and all(
            at == 0 and u.op in ("dynamic-update-slice", "scatter") for u, at in found
        ):
            whole = 0.0
        read += whole
    return read, written


# ---- what a kernel computes
# -------------------------------------------------------------------------------------------


def flops(module: Module, computation: str, i: Instruction) -> float:
    """Operations of the products in one kernel, a multiplication and an addition being two. Other
    arithmetic is not counted: memory is its limit.
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
    inside = called(i, "calls") if i.op in ("fusion", "async-start") else None
    return sum(flops(module, inside, j) for j in module.computations.get(inside or "", {}).values())


def library(i: Instruction) -> str:
    """The name of the library routine or Pallas kernel that a custom call runs."""
    found = re.search(r'custom_call_target="([^"]+)"', i.attributes)
    return found[1] if found else ""


def is_free(i: Instruction) -> bool:
    """Whether an instruction is no kernel: a view, bookkeeping, or the end of a transfer that is
    counted at its start.
    """
    return i.op in FREE or i.op.endswith("-done") or (i.op == "custom-call" and library(i) in VIEWS)


def is_product_call(i: Instruction) -> bool:
    """Whether a custom call is a matrix product of a library."""
    return any(word in library(i).lower() for word in ("gemm", "matmul"))


def is_attention(i: Instruction) -> bool:
    """Whether a custom call is a library's fused attention, or a Pallas kernel, which is what we
    use those for.
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
    out = 1
    for n in dimensions(i.shape):
        out *= n
    left, right = (local[name].shape if name in local else "" for name in i.operands[:2])
    summed = 1
    if (
        i.op == "convolution"
    ):  # a TPU's products: kernel axes other than the output's are summed, but for those that stand for a batch
        labels = re.search(r"dim_labels=\w+_(\w+)->\w+", i.attributes)
        window = dict(
            re.findall(
                r"(\w+)=([\d_x]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or [""])[0]
            )
        )
        dilated = [int(x) > 1 for x in window.get("lhs_dilate", "").split("x") if x]
        for label, n in zip(labels[1] if labels else "", dimensions(right)):
            batch = label.isdigit() and int(label) < len(dilated) and dilated[int(label)]
            summed *= 1 if label == "o" or batch else n
        return 2.0 * out * summed
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.attributes) or re.search(
        r'"lhs_contracting_dimensions":\[([0-9",]*)\]', i.attributes
    )
    for axis in filter(None, (axes[1] if axes else "").replace('"', "").split(",")):
        summed *= dimensions(left)[int(axis)]
    return 2.0 * out * summed


def _attention(local: dict[str, Instruction], i: Instruction) -> float:
    """Of cuDNN's calls: two products of [T, S, K] for every row and head forward, five backward,
    half of it under a causal mask.
    """
    shape = re.search(
        r'"intermediate_tensor_shape":\s*\{[^}]*?"dimensions":\s*\[([^\]]*)\]', i.attributes
    )
    if not shape or not i.operands or i.operands[0] not in local:
        return 0.0
    count = 1
    for n in re.findall(r"\d+", shape[1]):
        count *= int(n)
    half = 0.5 if re.search(r'"mask_type":\s*"CAUSAL"', i.attributes) else 1.0
    return (
        2.0
        * count
        * dimensions(local[i.operands[0]].shape)[-1]
        * (5 if "Backward" in library(i) else 2)
        * half
    )


def operand_type(module: Module, computation: str, i: Instruction) -> str:
    """The dtype of what the (first) product in a kernel multiplies; "" where there is none."""
    local = module.computations[computation]
    if i.op in ("dot", "convolution", "custom-call"):
        return dtype(local[i.operands[0]].shape) if i.operands and i.operands[0] in local else ""
    inside = called(i, "calls") if i.op in ("fusion", "async-start") else None
    found = (
        operand_type(module, inside, j)
        for j in module.computations.get(inside or "", {}).values()
        if j.op in ("dot", "convolution", "fusion")
    )
    return next((kind for kind in found if kind), "")


def is_exact(module: Module, i: Instruction) -> bool:
    """Whether a product in a kernel is asked for at the highest precision."""
    inside = called(i, "calls") if i.op in ("fusion", "async-start") else None
    mine = re.search(r'operand_precision(?:=\{|":\[")(\w+)', i.attributes)
    return bool(mine and mine[1].lower() == "highest") or any(
        is_exact(module, j) for j in module.computations.get(inside or "", {}).values()
    )
