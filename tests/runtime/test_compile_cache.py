"""The compilation cache: filled by one process, read by the next, and never the reason that a run
stops.
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxloop.runtime import compile_cache

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, pathlib, jax, jax.numpy as jnp
from jax import monitoring
hits = []
def count(name, **kw):
    if name == "/jax/compilation_cache/cache_hits":
        hits.append(name)
monitoring.register_event_listener(count)
from jaxloop.runtime.compile_cache import keep_compiled_programs
used = keep_compiled_programs(pathlib.Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((64, 64))).block_until_ready()
print(used, len(hits))
"""


def run(folder, **variables):
    env = (
        {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        | variables
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    used, hits = done.stdout.split()
    return used == "True", int(hits), done.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that one process filled, and what it said. Tests that write to it copy it."""
    folder = tmp_path_factory.mktemp("filled") / "cache" / "xla"
    return folder, run(folder)


@pytest.fixture(scope="module")
def of_the_user(tmp_path_factory):
    """The same where the user's own setting names another folder: that, ours, and what it said."""
    own, folder = tmp_path_factory.mktemp("user") / "own", tmp_path_factory.mktemp("user") / "ours"
    return own, folder, run(folder, JAX_COMPILATION_CACHE_DIR=str(own))


def test_the_second_process_compiles_nothing_again(filled):
    folder, (used, hits, _) = filled
    assert used and hits == 0
    (place,) = folder.iterdir()
    assert re.fullmatch(
        rf"python{sys.version_info.major}\.{sys.version_info.minor}-jax{jax.__version__}-jaxlib.+-cpu-[0-9a-f]{{8}}",
        place.name,
    )
    assert any(path.name.endswith("-cache") for path in place.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, place))
    used, hits, _ = run(folder)
    assert used and hits >= 1


def test_an_entry_that_cannot_be_read_is_compiled_again_without_a_warning(
    tmp_path, filled, of_the_user
):
    """What another version of Python packed in another way reads as damage."""
    folder = shutil.copytree(filled[0], tmp_path / "xla")
    own = shutil.copytree(of_the_user[0], tmp_path / "own")
    for variables in ({}, {"JAX_COMPILATION_CACHE_DIR": str(own)}):
        entries = [
            path
            for path in (own if variables else next(folder.iterdir())).iterdir()
            if path.name.endswith("-cache")
        ]
        assert entries
        for path in entries:
            path.write_bytes(b"\x28\xb5\x2f\xfd of another Python")
        used, hits, err = run(folder, **variables)
        assert used and hits == 0 and err == ""


def test_other_warnings_stay():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compile_cache.hide_unreadable_entries()
        warnings.warn(
            "Error reading persistent compilation cache entry for 'jit_f': ValueError: damaged",
            stacklevel=1,
        )
        warnings.warn(
            "Error writing persistent compilation cache entry for 'jit_f': OSError: no room",
            stacklevel=1,
        )
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message).split(":")[0] for one in seen] == [
        "Error writing persistent compilation cache entry for 'jit_f'",
        "something else",
    ]


CPU = (
    "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.1\nflags\t\t: fpu "
    "avx2\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n"
)


def test_the_environment_is_that_of_the_cpus_model_and_features(tmp_path):
    def name(text):
        (tmp_path / "cpuinfo").write_text(text)
        return compile_cache.environment(tmp_path / "cpuinfo")

    first = name(CPU)
    assert (
        name(CPU.replace("2596.1", "3100.0")) == first
        and name(CPU.replace("fpu avx2", "avx2 fpu")) == first
    )
    others = [
        name(CPU.replace("avx2", "avx2 avx512f")),
        name(CPU.replace("AMD EPYC", "AMD EPYC 2")),
        name("processor : 0\nFeatures : fp asimd\nCPU part : 0xd0c\n"),
    ]
    assert len({first, *others}) == 4
    assert compile_cache.environment(tmp_path / "absent") == compile_cache.environment(
        tmp_path / "absent"
    )


def test_a_platform_that_is_absent_is_refused_elsewhere(monkeypatch):
    def absent():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "default_backend", absent)
    assert "-none-" in compile_cache.environment()


def test_the_users_own_settings_win(tmp_path, of_the_user):
    own, folder, (used, _, _) = of_the_user
    assert used and any(own.iterdir()) and not folder.exists()
    folder = tmp_path / "ours"
    used, _, _ = run(folder, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not used and not folder.exists()


@pytest.mark.parametrize("kind", ["file", "foreign"])
def test_a_folder_that_cannot_be_used_costs_the_cache_only(tmp_path, kind):
    folder = tmp_path / "xla"
    if kind == "file":
        folder.write_text("")
    elif os.getuid() == 0:
        folder.mkdir()
        os.chown(folder, 12345, 12345)
    else:
        folder.mkdir(mode=0o500)
    used, _, err = run(folder)
    assert not used and "compiled programs are not kept" in err


def test_programs_are_dropped_before_a_process_has_too_many():
    @jax.jit
    def step(x):
        return jnp.sort(jnp.tanh(x @ x.T), 0).sum()

    before = compile_cache.mappings()[0]
    for rows in range(3, 33):
        step(jnp.ones((rows, rows)))
    crowded, allowed = compile_cache.mappings()
    assert crowded > before + 80
    assert (
        not compile_cache.make_room((crowded + 50) / allowed)
        and compile_cache.mappings()[0] > crowded - 50
    )
    assert (
        compile_cache.make_room((crowded - 50) / allowed)
        and compile_cache.mappings()[0] < crowded - 80
    )


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_system_that_does_not_count_mappings_drops_nothing(monkeypatch, error):
    def absent(*_):
        raise error

    monkeypatch.setattr(compile_cache, "open", absent, raising=False)
    assert compile_cache.mappings() == (0, 1) and not compile_cache.make_room(0.0)
