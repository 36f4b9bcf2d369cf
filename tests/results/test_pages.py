"""The numbers of the results pages are those of the tables beside them, and the numbers that the
README and the page of all results repeat are those of the pages and the tables.
"""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.results import expectations, measures, page, verdict

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(path for path in RESULTS.glob("*.md") if path.stem != "index")
# Claims of each page whose measure is in the tables beside it; the others need the whole run.
RECOMPUTED = {
    "bias_amplification": 21,
    "diversity": 19,
    "entities": 21,
    "interventions": 4,
    "linear_dynamics": 9,
    "multi_entity": 7,
    "political_mixes": 3,
    "wmle": 9,
}
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def rows_of(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading, by the names of its columns."""
    lines = text.split(f"{heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    names, _, *rows = table
    return [dict(zip(names, row, strict=True)) for row in rows]


def claims_of(path: Path) -> list[dict[str, str]]:
    return rows_of(path.read_text(encoding="utf-8"), "## Claims")


def run_of(path: Path, folder: Path) -> expectations.Expectations:
    """The tables beside a page where the run had them, and what was expected of it."""
    expected = expectations.read(RESULTS / "expectations" / f"{path.stem}.toml")
    for name in expected.tables:
        parts = Path(name).parts
        shown = f"{parts[0]}_{parts[-1]}" if expected.runs else parts[-1]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RESULTS / path.stem / shown, folder / name)
    return expected


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_numbers_of_a_page_are_those_of_the_tables_beside_it(path, tmp_path):
    """Estimate, interval, formula and verdict, digit for digit."""
    expected = run_of(path, tmp_path)
    shown = claims_of(path)
    assert len(shown) == len(expected.claims)
    found = 0
    for claim, row in zip(expected.claims, shown, strict=True):
        assert row["claim"] == f"{claim.says} ({claim.where})".replace("|", "\\|")
        try:
            estimate = measures.measure(tmp_path, claim.measure)
            formula = measures.measure(tmp_path, claim.formula).value if claim.formula else None
        except ValueError as error:
            assert "the run has no" in str(error)
            continue
        interval = verdict.interval(estimate, expected.confidence)
        target = formula if isinstance(claim.value, str) else claim.value
        judged = verdict.judge(claim, interval, math.nan if target is None else target)
        finding = page.Finding(claim, estimate, interval, judged, formula)
        assert row["ours"] == page.estimate_text(finding)
        assert row.get("formula", "") == ("" if formula is None else page.number(formula))
        assert row["verdict"] == f"**{judged}**"
        found += 1
    assert found >= RECOMPUTED.get(path.stem, 0)


def numbers(text: str) -> list[tuple[float, float]]:
    """(value, half of its last digit) of every number of a text."""
    return [
        (float(word), 0.5 * 10.0 ** -len(word.partition(".")[2]))
        for word in re.findall(NUMBER, text)
    ]


def test_the_readme_repeats_claims_of_the_pages():
    """Each row has the paper's words, the rounded numbers and the verdict of one claim."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = rows_of(text, "## What came out")
    assert len(rows) >= 8 and {row["verdict"] for row in rows} >= {"replicated", "not replicated"}
    for row in rows:
        (link,) = re.findall(r"\]\((docs/results/\w+\.md)\)", row["page"])
        told = numbers(row["here, with 95% interval"])
        assert len(told) == 3
        same = [
            claim
            for claim in claims_of(ROOT / link)
            if claim["verdict"] == f"**{row['verdict']}**"
            and (row["paper"] == claim["paper"] or "(not in the paper" in claim["claim"])
            and len(ours := re.findall(r"-?\d\S*\d|\d", claim["ours"])) == 3
            and all(
                abs(float(value.strip("[],")) - rounded) <= half * (1 + 1e-9)
                for value, (rounded, half) in zip(ours, told, strict=True)
            )
        ]
        assert len(same) == 1, row
        if row["paper"] != same[0]["paper"]:
            assert row["paper"] == "ours", row


def test_every_file_of_expectations_has_a_page_or_is_said_to_be_not_run():
    index = (RESULTS / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in PAGES}
    expected = {path.stem for path in (RESULTS / "expectations").glob("*.toml")}
    assert pages <= expected
    assert {name for name in pages if f"]({name}.md)" not in index} == set()
    not_run = "".join(re.findall(r"^Not run yet, .*$", index, re.MULTILINE))
    assert set(re.findall(r"`(\w+)\.toml`", not_run)) == expected - pages
    for name in pages:
        for document in ("README.md", "configs/README.md"):
            text = (ROOT / document).read_text(encoding="utf-8")
            assert f"docs/results/{name}.md)" in text, (document, name)


def _late(name: str, metric: str, **at) -> tuple[float, float]:
    """(estimate, half of its 95 % interval) of a relative score less 1 in cells.csv."""
    table = pd.read_csv(RESULTS / name / "cells.csv")
    row = _row(table[table.metric == metric], **at)
    high = row.get("high", 2 * row["relative"] - row["low"])
    return row["relative"] - 1, (high - row["low"]) / 2


def _row(table: pd.DataFrame, **at) -> dict:
    for column, value in at.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


def _losses(task: str, **at) -> pd.Series:
    table = pd.read_csv(RESULTS / "diversity" / "metrics.csv")
    table = table[(table.task == task) & (table.base == "gpt2")]
    table = table[(table.metric == "test_loss_answer")]
    for column, value in at.items():
        table = table[table[column] == value]
    return table.set_index("seed")["value"]


def _share(run: str) -> tuple[float, float, float]:
    """What two, three or five models close of the gap, half of its interval, the formula."""
    table = pd.read_csv(RESULTS / "entities" / f"{run}_effects.csv")
    row = _row(table, effect="transfer_share_own_text", alpha=0.5)
    theory = _row(pd.read_csv(RESULTS / "entities" / f"{run}_theory.csv"), alpha=0.5)
    half = (row["high"] - row["low"]) / 2
    return row["mean"], half, theory["linear_transfer_share_own_text"]


def _half(groups) -> pd.Series:
    """Half of the 95 % interval of the mean of each group."""
    return scipy.stats.t.ppf(0.975, groups.count() - 1) * groups.sem()


def _told(paragraph: str) -> list[float]:
    """What the tables say, in the order in which a paragraph of the page of all results does."""
    if paragraph == "Synthetic share":
        sweep = [_late("ratio_sweep", "cosine_diversity", ratio=r) for r in (0.25, 0.5, 0.75, 1.0)]
        table = pd.read_csv(RESULTS / "ratio_sweep" / "beside_gaussian.csv")
        late = [_row(table, generation="late", ratio=r)["formula"] for r in (0.5, 0.75, 1.0)]
        return [*np.ravel(sweep), *(-value for value in late)]
    if paragraph == "Diversity":
        of = {
            n: {d: _losses("story", level=d, real=0, generated=n) for d in LEVELS} for n in (48, 96)
        }
        falls = [(of[n]["D6"] - of[n]["D0"]).mean() for n in (96, 48)]
        crossed = [
            _losses("qa", level="crossed", shift=s, duplicates=1.0)
            - _losses("qa", level="crossed", shift=s, duplicates=0.0)
            for s in (0.0, 1.0)
        ]
        means = [of[96][level].mean() for level in LEVELS]
        error = float(np.mean([of[96][level].sem() for level in LEVELS]))
        harm = [crossed[0].mean(), crossed[1].mean(), crossed[1].sem()]
        return [*means, error, np.mean(falls), *falls, *harm]
    if paragraph == "Two, three and five models":
        shares = [_share(run) for run in ("two", "three", "five")]
        return [*np.ravel([share[:2] for share in shares]), *(share[2] for share in shares)]
    if paragraph == "Three models on a grid":
        table = pd.read_csv(RESULTS / "multi_entity" / "theory.csv")
        table = table[table.beta > 0].groupby("alpha")
        name = "_transfer_share_own_text"
        low, high = (getattr(table[f"language_model{name}"], end)() for end in ("min", "max"))
        against = table["language_model_transfer_share_alpha_0"]
        linear = table["linear_transfer_share_alpha_0"].min()[0.5]
        told = [against.min()[0.5], against.max()[0.5], linear]
        told += [low[0.25], high[0.25], low[0.75], high[0.75], high[1.0]]
        effects = pd.read_csv(RESULTS / "multi_entity" / "effects.csv")
        row = _row(effects, effect="transfer_share_own_text", alpha=1.0, beta=0.5)
        shown = table.get_group(0.25), table.get_group(0.75), table.get_group(1.0)
        formula = pd.concat(shown)[f"linear{name}"]
        return [*told, (row["high"] - row["low"]) / 2, formula.min(), formula.max()]
    if paragraph == "Properties of text":
        table = pd.read_csv(RESULTS / "cluster_study" / "outcomes.csv").groupby("dependent")
        mean, half = table.relative.mean(), _half(table.relative)
        fits = pd.read_csv(RESULTS / "cluster_study" / "fits.csv")
        fits = fits[fits.column == "All"].set_index("dependent")
        told = [mean["diversity"], half["diversity"], mean["quality"], half["quality"]]
        kinds = ["diversity", "quality"]
        return [*told, *(100 * fits.r2[kinds]), *fits.adjusted_r2[kinds]]
    if paragraph == "Properties of text, with a shift":
        fits = pd.read_csv(RESULTS / "cluster_study_shifted" / "fits.csv")
        together = fits.column == "All"
        one = fits[~together & (fits.dependent == "diversity")].adjusted_r2
        whole = fits[together & (fits.dependent == "diversity")].r2.item()
        table = pd.read_csv(RESULTS / "cluster_study_shifted" / "coefficients.csv")
        table = table[(table.form == "relative") & (table.errors == "overlap")]
        table = table[(table.term == "lexical_diversity") & (table.column != "All")]
        assert len(table) == 8 and (table.low < 0).all() and (table.high > 0).all()
        ends = table.coefficient.min(), table.coefficient.max()
        outcomes = pd.read_csv(RESULTS / "cluster_study_shifted" / "outcomes.csv")
        outcomes = outcomes[outcomes.dependent == "quality"].groupby("ratio").relative
        shown = [(outcomes.mean()[ratio], _half(outcomes)[ratio]) for ratio in (0.5, 1.0)]
        return [100 * whole, one.min(), one.max(), *ends, *shown[0], *shown[1]]
    if paragraph == "Three domains":
        table = pd.read_csv(RESULTS / "multi_domain" / "outcomes.csv")
        table["kind"] = table.dependent.str.partition("@")[0]
        chains = table.groupby(["kind", "chain"]).relative.mean().groupby("kind")
        mean, half = chains.mean(), _half(chains)
        influence = pd.read_csv(RESULTS / "multi_domain" / "influence.csv")
        largest = influence[(influence.errors == "overlap") & (influence.outcome == "diversity")]
        told = [mean["diversity"], half["diversity"], mean["quality"], half["quality"]]
        return [*told, largest.largest.max()]
    if paragraph == "Choice of texts":
        chosen = ("quality", "random", "diversity")
        scores = [
            1 + _late("interventions", metric, selection=name, ratio=1.0)[0]
            for metric in ("cosine_diversity", "text_quality_index")
            for name in chosen
        ]
        shorter = -100 * _late("interventions", "text_length", selection="random", ratio=1.0)[0]
        return [*scores, shorter]
    raise AssertionError(paragraph)


LEVELS = ("D0", "D3", "D5", "D6")
# Numbers of a paragraph that are no measurements: ratios, levels, sizes.
NAMES = (
    r"the paper's ratios, 1/8 and 1/4|R2 |alpha = \d(?:/\d)?|beta = \d|(?:below|above) 0|"
    r"generation \d|r = \d(?:/\d)?|\bat \d/\d|\bat 1\b|D\d|Distinct-5|\d+ stories|\bof \d+ \(|95 %"
)


@pytest.mark.parametrize(
    "paragraph",
    [
        "Synthetic share",
        "Diversity",
        "Two, three and five models",
        "Three models on a grid",
        "Choice of texts",
        "Properties of text",
        "Properties of text, with a shift",
        "Three domains",
    ],
)
def test_what_was_seen_after_the_runs_is_in_the_tables(paragraph):
    text = (RESULTS / "index.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\*\*\[{paragraph}\]\S+ (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    found = re.sub(NAMES, lambda match: "(" * match[0].endswith("("), found.replace("\n", " "))
    told = numbers(found)
    for (value, half), true in zip(told, expected := _told(paragraph), strict=False):
        assert abs(value - true) <= half * (1 + 1e-6), (value, true)
    assert len(told) >= len(expected)
