"""Manifests and generations: only what is whole counts, and what is lost is said."""

import json

import numpy as np
import pytest

from jaxloop.runtime import checkpoint as cp
from jaxloop.runtime.workdir import open_workdir


@pytest.fixture
def root(tmp_path):
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        yield w.path


def make(root, generation, text=b"some text"):
    place = root / cp.unfinished(generation)
    (place / "adapters").mkdir(parents=True)
    (place / "adapters/a.bin").write_bytes(np.arange(100).tobytes())
    (place / cp.PARTS).mkdir()
    (root / f"texts-{generation}").write_bytes(text)
    names = [f"{cp.unfinished(generation)}/adapters/a.bin", f"texts-{generation}"]
    cp.finalise(root, generation, names, {"generation": generation})


def test_a_generation_counts_once_committed(root):
    assert cp.scan(root) == cp.CheckpointState(None, [], [], [], None)
    for generation in range(3):
        make(root, generation)
    found = cp.scan(root)
    assert found.last == 2 and [m["about"]["generation"] for m in found.manifests] == [0, 1, 2]
    assert set(found.manifests[1]["files"]) == {
        "checkpoints/generation=0001/adapters/a.bin",
        "texts-1",
    }
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == [
        f"generation=000{g}" for g in range(3)
    ]
    assert not (root / "checkpoints/generation=0001/parts").exists()


def damage_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit": damage_bit,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a link": lambda path: (
        path.rename(path.with_suffix(".old")),
        path.symlink_to(path.with_suffix(".old")),
    ),
}
FILES = (
    "checkpoints/generation=0001/adapters/a.bin",
    "checkpoints/generation=0001/manifest.json",
    "texts-1",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", list(DAMAGE))
def test_any_damage_falls_back_to_the_generation_before_and_says_what_is_lost(root, name, how):
    for generation in range(4):
        make(root, generation)
    DAMAGE[how](root / name)
    found = cp.scan(root)
    assert (found.last, found.lost) == (0, [1, 2, 3]) and name.split("/")[-1] in found.fault
    cp.recover(root, found)
    said = [line for line in (root / "run.log").read_text().splitlines() if "WARNING" in line]
    assert (
        len(said) == 1
        and name in said[0]
        and "generations 1 to 3 will be computed again, going on after generation 0" in said[0]
    )
    assert cp.scan(root).last == 0
    assert (root / "checkpoints/damaged-generation=0002/manifest.json").exists()
    (root / "texts-1").unlink(missing_ok=True)
    make(root, 1)
    assert cp.scan(root).last == 1 and not (root / "checkpoints/damaged-generation=0001").exists()


def test_a_missing_generation_ends_the_line(root):
    for generation in range(4):
        make(root, generation)
    (root / "checkpoints/generation=0002").rename(root / "checkpoints/elsewhere")
    found = cp.scan(root)
    assert (found.last, found.lost, found.fault) == (
        1,
        [3],
        "checkpoints/generation=0002 is missing",
    )


def test_without_generation_zero_nothing_starts_over(root):
    make(root, 0)
    make(root, 1)
    damage_bit(root / "texts-0")
    with pytest.raises(
        cp.CorruptCheckpointError,
        match="generation 0 cannot be used .texts-0 fails its SHA-256 checksum.*nothing here can "
        "be continued",
    ):
        cp.scan(root)
    (root / "checkpoints").rename(root / "moved")
    (root / "ledger.parquet").write_bytes(b"rows")
    with pytest.raises(cp.CorruptCheckpointError, match="its checkpoint is gone"):
        cp.scan(root)


def test_directories_that_are_not_generations_are_never_chosen(root):
    make(root, 0)
    for name in (
        "generation=0001",
        "generation=9",
        "generation=0007",
        "9",
        ".tmp-generation=0001",
        "unfinished-generation=0005",
        "generation=00x1",
    ):
        (root / "checkpoints" / name).mkdir()
    (root / "checkpoints/unfinished-generation=0001").mkdir()
    found = cp.scan(root)
    assert (found.last, found.lost, found.empty) == (0, [], [1, 7])
    cp.recover(root, found)
    said = (root / "run.log").read_text()
    for name in ("generation=0001", "generation=0007", "unfinished-generation=0005"):
        assert name in said and not (root / "checkpoints" / name).exists()
    assert "WARNING" not in said and (root / "checkpoints/unfinished-generation=0001").exists()


def test_a_manifest_may_not_name_files_outside(root):
    make(root, 0)
    path = root / "checkpoints/generation=0000/manifest.json"
    content = cp.read_manifest(root, "checkpoints/generation=0000/manifest.json")
    content["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": ""}
    cp._store_manifest(root, str(path.relative_to(root)), content)
    with pytest.raises(cp.CorruptCheckpointError, match="must be relative and stay inside"):
        cp.verify(root, "checkpoints/generation=0000/manifest.json")


def test_every_flipped_bit_of_a_manifest_is_refused(root):
    make(root, 0)
    path = root / "checkpoints/generation=0000/manifest.json"
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole) - 1)] ^= 1 << draw.integers(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(cp.CorruptCheckpointError):
            cp.read_manifest(root, "checkpoints/generation=0000/manifest.json")


def test_sealed_parts_are_kept_and_the_rest_of_an_unfinished_generation_is_not(root):
    place = root / cp.unfinished(2)
    (place / "parts").mkdir(parents=True)
    for name in ("adapters-a", "adapters-b", "parts/table"):
        (place / name).write_bytes(b"content " + name.encode())
    at = cp.unfinished(2)
    cp.write_manifest(root, f"{at}/parts/a.json", [f"{at}/adapters-a"], {"n": 1})
    cp.write_manifest(root, f"{at}/parts/b.json", [f"{at}/adapters-b"], {"n": 2})
    (place / "adapters-b").write_bytes(b"content adapters-B")
    kept = cp.verified_parts(root, 2)
    assert {k: m["about"] for k, m in kept.items()} == {"a": {"n": 1}}
    assert sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()) == [
        "adapters-a",
        "parts/a.json",
    ]
    assert "part b of unfinished generation 2 is not used" in (root / "run.log").read_text()
    assert cp.verified_parts(root, 3) == {}


def test_forgotten_weights_leave_a_generation_that_verifies(root):
    make(root, 0)
    cp.remove_files(root, 0, ["checkpoints/generation=0000/adapters/a.bin", "not/listed"])
    assert not (root / "checkpoints/generation=0000/adapters/a.bin").exists()
    assert set(cp.verify(root, "checkpoints/generation=0000/manifest.json")["files"]) == {"texts-0"}
    cp.remove_files(root, 0, ["not/listed"])
    assert cp.scan(root).last == 0


def test_added_files_count_from_the_manifest_on(root):
    make(root, 0)
    (root / "checkpoints/generation=0000/late.bin").write_bytes(b"late")
    cp.recover(root, cp.scan(root))
    assert not (
        root / "checkpoints/generation=0000/late.bin"
    ).exists()  # a run that was killed before it was listed
    (root / "checkpoints/generation=0000/late.bin").write_bytes(b"late")
    cp.add_files(root, 0, ["checkpoints/generation=0000/late.bin"])
    cp.recover(root, cp.scan(root))
    assert (
        "checkpoints/generation=0000/late.bin"
        in cp.verify(root, "checkpoints/generation=0000/manifest.json")["files"]
    )
    (root / "checkpoints/generation=0000/late.bin").write_bytes(b"l4te")
    with pytest.raises(cp.CorruptCheckpointError, match="late.bin fails its SHA-256"):
        cp.verify(root, "checkpoints/generation=0000/manifest.json")


def test_environment_is_json_and_changes_are_named(root):
    now = cp.environment()
    assert json.loads(json.dumps(now)) == now and {"jax", "numpy", "platform", "python"} <= set(now)
    assert cp.warn_of_changes(now, now) == []
    assert cp.warn_of_changes(now | {"jax": "0.1"}, now) == [f"jax 0.1 -> {now['jax']}"]
    assert "WARNING versions or hardware differ" in (root / "run.log").read_text()


def test_what_lies_elsewhere_is_asked_once_for_a_manifest(root):
    names = [f"weights-{i}" for i in range(5)]
    for name in names:
        (root / name).write_text(name)
    cp.write_manifest(root, "manifest.json", names)
    for name in names[1:]:
        (root / name).unlink()
    asked = []

    def elsewhere(listed):
        asked.append(listed)
        return names[1:4]

    with pytest.raises(cp.CorruptCheckpointError, match="weights-4 is missing"):
        cp.verify(root, "manifest.json", elsewhere)
    assert len(asked) == 1
