"""Where the seconds of a command went: `--timings`.

JAX says how long it traces, lowers and compiles each program, and jaxloop how long its own steps
take, both as events of `jax.monitoring`. Nothing is measured, or kept, without the flag.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax

_STEP = "/jaxloop/"
_KINDS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_FROM_CACHE = "/jax/compilation_cache/cache_retrieval_time_sec"
_READY = "until training began"
_SHOWN = 15  # programs; all others are one line


@dataclass
class _Program:
    """Seconds of all programs of one name, and how many were compiled and read from the cache."""

    compiled: int = 0
    cached: int = 0
    trace: float = 0.0
    lower: float = 0.0
    compile: float = 0.0
    read: float = 0.0

    @property
    def total(self) -> float:
        return self.trace + self.lower + self.compile + self.read


@dataclass
class _Event:
    """What a thread has done last: its start, and where its seconds were added."""

    start: float
    seconds: float
    program: _Program
    kind: str


@dataclass
class Timings:
    """What was heard so far."""

    programs: dict[str, _Program] = field(default_factory=lambda: defaultdict(_Program))
    steps: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _recent: dict[int, list[_Event]] = field(default_factory=lambda: defaultdict(list))
    _cached: set[int] = field(default_factory=set)

    def hear(self, event: str, duration_secs: float, **about: str | int) -> None:
        """Take an event of `jax.monitoring`; called in the thread that ends it."""
        thread = threading.get_ident()
        with self._lock:
            if event.startswith(_STEP):
                self.steps[event.removeprefix(_STEP)] += duration_secs
            elif event == _FROM_CACHE:
                self._cached.add(thread)
            elif event in _KINDS:
                self._add(thread, _KINDS[event], duration_secs, str(about.get("fun_name", "")))

    def _add(self, thread: int, kind: str, seconds: float, name: str) -> None:
        # Of a jitted function f the compiler says "jit(f)", the tracer "f".
        name = name.removeprefix("jit(").removesuffix(")")
        program = self.programs[name]
        if kind == "compile":
            kind = "read" if thread in self._cached else "compile"
            self._cached.discard(thread)
            if name == "train_steps":
                self.steps.setdefault(_READY, time.monotonic() - self._began)
            program.cached += kind == "read"
            program.compiled += kind == "compile"
        # A program is traced while those that it calls are: their seconds are among its own.
        start, recent = time.monotonic() - seconds, self._recent[thread]
        while recent and recent[-1].start >= start:
            inner = recent.pop()
            _change(inner.program, inner.kind, -inner.seconds)
        _change(program, kind, seconds)
        recent.append(_Event(start, seconds, program, kind))
        del recent[:-64]

    def table(self) -> str:
        """Return what `--timings` prints."""
        shown = sorted(self.programs.items(), key=lambda item: -item[1].total)
        shown = [item for item in shown if item[1].compiled or item[1].cached]
        others = _sum([program for _, program in shown[_SHOWN:]])
        rows = [(name, program) for name, program in shown[:_SHOWN]]
        if len(shown) > _SHOWN:
            rows.append((f"{len(shown) - _SHOWN} others", others))
        rows.append(("all programs", _sum([program for _, program in shown])))
        names = ("compiled", "cached", "trace", "lower", "compile", "read")
        width = max(len(name) for name, _ in [*rows, *((step, None) for step in self.steps)])
        lines = [f"{'seconds':{width}}" + "".join(f"{name:>10}" for name in names)]
        for name, p in rows:
            seconds = "".join(f"{s:10.2f}" for s in (p.trace, p.lower, p.compile, p.read))
            lines.append(f"{name:{width}}{p.compiled:10}{p.cached:10}{seconds}")
        lines += ["", *(f"{name:{width}}{s:10.2f}" for name, s in self.steps.items())]
        lines.append(f"{'processor':{width}}{time.process_time():10.2f}")
        lines.append(
            "Seconds of the clock, but the last; threads work side by side, so the parts may be "
            "more than the whole. A step holds the programs that it compiles."
        )
        return "\n".join(lines)


def _change(program: _Program, kind: str, seconds: float) -> None:
    setattr(program, kind, getattr(program, kind) + seconds)


def _sum(programs: list[_Program]) -> _Program:
    return _Program(
        compiled=sum(p.compiled for p in programs),
        cached=sum(p.cached for p in programs),
        trace=sum(p.trace for p in programs),
        lower=sum(p.lower for p in programs),
        compile=sum(p.compile for p in programs),
        read=sum(p.read for p in programs),
    )


@contextlib.contextmanager
def heard() -> Iterator[Timings]:
    """Context that listens, and gives what it hears."""
    timings = Timings()
    # The processor's seconds so far: Python's start and the modules that were imported.
    timings.steps["start and imports"] = time.process_time()
    jax.monitoring.register_event_duration_secs_listener(timings.hear)
    try:
        yield timings
    finally:
        jax.monitoring.unregister_event_duration_listener(timings.hear)


def took(step: str, seconds: float) -> None:
    """Say how long a step of ours took."""
    jax.monitoring.record_event_duration_secs(_STEP + step, seconds)
