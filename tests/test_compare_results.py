"""scripts/compare_results.py: a planted difference is named, what may differ is not; kept sides."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxloop.runtime import tables

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(
        Path(__file__).resolve().parents[1] / "scripts"
    )  # where it finds _root, as when it is run
    import compare_results as cr

TEXT = "texts/chain=ratio-1/generation=0001.parquet"
ADAPTER = "checkpoints/generation=0001/adapters/chain=ratio-1.safetensors"
PAGE = """<html><style>p {{}}</style><h1>Collapse</h1><p>2 chains · {when}</p><p>{words}</p>
<dl><dt>command</dt><dd>python --workdir={folder}</dd><dt>data: docs</dt><dd>{data}</dd>
<dt>time</dt><dd>{time}</dd><dt>commit</dt><dd>{machine}</dd></dl>
<details><summary>Config</summary><pre>{{"a": {config}}}</pre></details>
<details><summary>Versions</summary><dl><dt>jax</dt><dd>{version}</dd></dl></details>
<svg><text>{time}</text></svg><pre>read {folder}/metrics.csv</pre></html>"""


def made(folder, **planted):
    """A small run directory; `planted` replaces values by name."""
    p = (
        dict(
            text="the end",
            value=0.25,
            cell=4,
            weight=1.0,
            loss=float("nan"),
            words="It fell.",
            data="9 texts",
            when="28 November 2026, 13:00",
            time="33 s",
            config=1,
            version="0.10",
            seconds=1.5,
            machine="cpu",
            steps=4,
            log="a",
        )
        | planted
    )
    tables.write_parquet(_in(folder / TEXT), {"text": ["once", p["text"]], "tokens": [3, 4]})
    lines = {
        "metric": ["quality", "length"],
        "value": [p["value"], p["loss"]],
        "seconds": [p["seconds"], 2.0],
    }
    (folder / "metrics.csv").write_bytes(tables.to_csv(lines))
    fit = json.dumps({"steps": p["steps"], p.get("field", "rate"): 1})
    ledger = {
        "count": [p["cell"]],
        "fit": [fit],
        "environment": [p["machine"]],
        "checkpoint_sha256": [p["machine"]],
    }
    tables.write_parquet(folder / "ledger.parquet", ledger)
    save_file(
        {"b": np.zeros(3, np.float16), "a": np.array([0, p["weight"]], np.float32)},
        _in(folder / ADAPTER),
    )
    (folder / "report.html").write_text(PAGE.format(folder=folder, **p), encoding="utf-8")
    (folder / "run.log").write_text(p["log"])
    settings = {"fit": {"steps": p["steps"], p.get("field", "rate"): 1}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "findings.json").write_text(
        json.dumps({"score": [p["value"]], "seconds": p["seconds"]})
    )


def _in(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def differences(tmp_path, **planted):
    sides = []
    for name, values in (("one", {}), ("other", planted)):
        made(tmp_path / name, **values)
        sides.append(cr.same_results.Run(tmp_path / name, ((str(tmp_path / name), "WORKDIR"),)))
    return cr.same_results.compare(*sides)


def test_what_may_differ_is_left_out(tmp_path):
    """Times, machine, paths, versions, log, digests of files, a config field of another name."""
    found = differences(
        tmp_path,
        when="1 May 2027, 09:59",
        time="2 min",
        config=2,
        version="0.12",
        seconds=9.0,
        machine="gpu",
        log="b",
        field="new_rate",
    )
    assert found.differences == ()
    assert found.files == {"texts": 1, "tables": 2, "adapters": 1, "other": 3}


NUMBERS = f"{ADAPTER}: array a: 1 of 2 numbers differ, the first at 1"
NEXT = np.nextafter(np.float32(1), np.float32(2))


@pytest.mark.parametrize(
    ("planted", "kind", "named"),
    [
        ({"text": "End"}, "texts", f'{TEXT}: column text, row 1: "the end" before, "End" after'),
        (
            {"value": 0.25 + 2**-54},
            "tables",
            'metrics.csv: column value, row 0: "0.25" before, "0.25',
        ),
        ({"loss": 1.0}, "tables", 'metrics.csv: column value, row 1: "nan" before, "1.0" after'),
        ({"cell": 5}, "tables", 'ledger.parquet: column count, row 0: "4" before, "5" after'),
        ({"steps": 5}, "tables", "ledger.parquet: column fit, row 0: "),
        ({"weight": NEXT}, "adapters", NUMBERS),
        ({"weight": -1.0}, "adapters", NUMBERS),
        ({"words": "It rose."}, "other", 'report.html: word 5, after "chains · It": "fell. '),
        ({"data": "8 texts"}, "other", "report.html: word "),
    ],
)
def test_a_planted_difference_is_named(tmp_path, planted, kind, named):
    found = differences(tmp_path, **planted)
    assert found.differ[kind] == 1
    assert any(line.startswith(named) for line in found.differences), found.differences


def test_files_columns_and_rows_that_one_side_lacks_are_named(tmp_path):
    made(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / TEXT).unlink()
    (tmp_path / "other" / "more.csv").write_text("a\n1\n")
    (tmp_path / "other" / "metrics.csv").write_text("value,metric,new\n0.25,quality,1\n")
    (tmp_path / "other" / ADAPTER).write_bytes((tmp_path / "one" / ADAPTER).read_bytes()[:-2])
    lines = cr.same_results.compare(
        *(cr.same_results.Run(tmp_path / name) for name in ("one", "other"))
    ).differences
    assert f"{TEXT}: is only before" in lines and "more.csv: is only after" in lines
    assert "metrics.csv: column seconds is only before" not in lines
    assert "metrics.csv: column new is only after" in lines
    assert any(line.startswith(f"{ADAPTER}: cannot be read after (array ") for line in lines)
    assert cr.same_results.compare(*[cr.same_results.Run(tmp_path / "nothing")] * 2).differences


def test_two_equal_numbers_are_the_same_value_and_a_flag_is_no_number():
    same = cr.same_results.same
    assert same({"a": [1.0, float("nan")]}, {"a": (1, float("nan"))})
    assert (
        not same(1, True) and not same(float("nan"), 0.0) and not same({"a": 1}, {"a": 1, "b": 1})
    )


def kept(folder, **about):
    """A side as --keep leaves it, with one study."""
    made(_in(folder / "wmle" / "x").parent)
    study = {
        "words": cr.words_of("wmle"),
        "code": 0,
        "last": "",
        "cpu_s": 1.0,
        "checkout": "/a",
    } | about
    record = {"commit": "", "results": str(folder), "studies": {"wmle": study}}
    (folder / cr.SIDE).write_text(json.dumps(record))
    return str(folder)


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_sides_that_were_kept_are_compared_without_a_run(tmp_path, capsys):
    sides = [kept(tmp_path / name) for name in ("before", "after")]
    assert cr.main([*sides, "--only=wmle"]) == 0
    assert last_line(capsys) == {
        "equal": True,
        "studies": 1,
        "different": {},
        "before_cpu_s": 1.0,
        "after_cpu_s": 1.0,
    }
    assert cr.main([*sides, "--only=wmle,theory"]) == 1
    assert last_line(capsys)["different"] == {"theory": "was not run before"}
    made(tmp_path / "after" / "wmle", text="another")
    assert cr.main([*sides, "--only=wmle"]) == 1
    assert list(last_line(capsys)["different"]) == ["wmle"]


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (
            {"code": 2, "last": "jaxloop: config.x: is not a field"},
            "ended with 2 after: jaxloop: config.x: is not a field",
        ),
        ({"words": ["--config=configs/wmle.py"]}, "was run with other words before than after"),
    ],
)
def test_a_study_that_failed_or_was_run_otherwise_is_a_difference(tmp_path, capsys, about, why):
    sides = [kept(tmp_path / "before"), kept(tmp_path / "after", **about)]
    assert cr.main([*sides, "--only=wmle"]) == 1
    assert last_line(capsys)["different"] == {"wmle": why}


def checkout(folder, ends=0):
    """A package called jaxloop that writes how it was asked, beside a page with its paths."""
    _in(folder / "jaxloop" / "__init__.py").write_text("")
    (folder / "jaxloop" / "main.py").write_text(
        "import os, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))\n"
        "folder.mkdir()\n"
        "(folder / 'words.csv').write_text('\\n'.join(['word', *sys.argv[1:-1], __file__]))\n"
        "(folder / 'report.html').write_text(f'<p>{folder}</p>')\n"
        "assert pathlib.Path(os.environ['JAXLOOP_CACHE'], 'xla').is_dir()\n"
        f"sys.exit({ends})\n"
    )
    return str(folder)


def test_both_sides_are_run_each_with_its_own_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    one, other, broken = (tmp_path / name for name in ("one", "other", "broken"))
    sides = [checkout(one), checkout(other)]
    assert cr.main([*sides, "--only=wmle", f"--keep={tmp_path / 'kept'}"]) == 0
    words = (tmp_path / "kept" / "after" / "wmle" / "words.csv").read_text().splitlines()[1:]
    assert words == [*cr.words_of("wmle"), str(other / "jaxloop" / "main.py")]
    assert (
        cr.main([str(tmp_path / "kept" / "before"), checkout(broken, ends=3), "--only=wmle"]) == 1
    )
    assert last_line(capsys)["different"] == {"wmle": "ended with 3 after: "}
    with pytest.raises(SystemExit):
        cr.main([*sides, "--only=wmle", f"--keep={tmp_path / 'kept'}"])
    assert "must be new, has results of" in capsys.readouterr().err
    again = cr.Side("main", tmp_path / "again", one, "0123")
    cr.run(again, ["wmle"])
    (one / "jaxloop" / "main.py").write_text("raise SystemExit(5)")
    cr.run(again, ["wmle", "theory"])
    studies = json.loads((tmp_path / "again" / cr.SIDE).read_text())["studies"]
    assert {name: study["code"] for name, study in studies.items()} == {"wmle": 0, "theory": 5}
    assert set((tmp_path / "cache").iterdir()) == {tmp_path / "cache" / "xla"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["no-such-revision", "HEAD"],
            "no-such-revision: must be a git revision, a checkout of jaxloop, or a side",
        ),
        (["HEAD", "HEAD", "--only=no_study"], "--only=no_study: must be one of quickstart, "),
        (["HEAD", "HEAD", "--keep=."], "--keep=.: must be a new folder, or one that --keep made"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, words, why):
    with pytest.raises(SystemExit) as end:
        cr.main(words)
    assert end.value.code == 2 and why in " ".join(capsys.readouterr().err.split())


def test_a_revision_is_checked_out_beside_and_removed_afterwards(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    _in(tmp_path / "jaxloop" / "main.py").write_text("first")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(cr._root, "ROOT", tmp_path)
    with cr.side("HEAD", tmp_path / "results") as found:
        assert (found.checkout / "jaxloop" / "main.py").read_text() == "first"
        assert not found.checkout.is_relative_to(tmp_path)
    assert not found.checkout.exists()
    assert not any((tmp_path / ".git" / "worktrees").glob("*"))


def test_overrides_name_a_field_once_and_every_study_is_there():
    for name in cr.STUDIES:
        fields = [word.split("=")[0] for word in cr.words_of(name)]
        assert len(set(fields)) == len(fields)
    assert "--config.chain.ratios=1/4,1" in cr.words_of("ratio_sweep")
