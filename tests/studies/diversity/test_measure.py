"""Distances, regressions, writers and the plan of the diversity study, piece by piece."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.outliers_influence import variance_inflation_factor

from jaxloop import config
from jaxloop.data import stories
from jaxloop.lm import family
from jaxloop.lm.io import config_json
from jaxloop.lm.model.config import count_parameters
from jaxloop.runtime.signals import Stop, Stopped
from jaxloop.studies.common import published_models
from jaxloop.studies.diversity import cost, generate, measure, prepare, writers
from jaxloop.studies.diversity import run as diversity
from jaxloop.studies.diversity import sets as diversity_sets
from jaxloop.studies.diversity.cells import experiments
from jaxloop.studies.diversity.sets import COLUMNS
from tests.studies.diversity import diversity_place as dp

PAPER = Path(__file__).resolve().parents[3] / "configs/diversity.py"


def paper(*assignments):
    raw = config.read_file(str(PAPER))
    return config.build(
        diversity.DiversityConfig,
        config.override(
            raw, [tuple(a.split("=", 1)) for a in assignments], diversity.DiversityConfig
        ),
    )


def planted(sets=40, seeds=3, slope=(-0.3, 0.2), together=0.0, seed=0):
    """Models whose loss is slope . (diversity, shift) + a term of the set + noise; the regressors
    correlate as `together` says.
    """
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal([0, 0], [[1, together], [together, 1]], sets)
    rows = []
    for i in range(sets):
        own = 0.05 * rng.standard_normal()
        for _ in range(seeds):
            loss = 4 + x[i] @ np.array(slope) + own + 0.02 * rng.standard_normal()
            rows.append(
                {
                    "task": "qa",
                    "kind": "crossed",
                    "print": f"p{i}",
                    "group": f"p{i}",
                    "test_loss_answer": loss,
                    "distinct_matched": x[i, 0],
                }
            )
            rows[-1] |= dict.fromkeys(measure.DISTANCES, x[i, 1])
    return pd.DataFrame(rows)


def test_a_reply_is_a_story_if_it_has_all_sentences():
    five = ["Tom ran.", '"Why?" Ann asked.', "He sat.", 'He said "Go. Now."', "She left."]
    assert generate.story_in(" ".join(five), 5) == [(" ".join(five[:4]), five[4])]
    assert generate.story_in(" ".join([*five, "The end."]), 5)[0][1] == "She left."
    assert generate.story_in("Tom ran. He sat.", 5) == generate.story_in("", 2) == []
    assert generate.story_in("Tom ran. He sat.", 2) == [("Tom ran.", "He sat.")]


def test_regressions_find_planted_effects_with_honest_intervals(monkeypatch):
    """The 95 % interval of the coefficient, sets being independent, holds the planted one in 200
    studies as often as a binomial allows.
    """
    monkeypatch.setattr(measure, "DISTANCES", ("length_kl",))
    hits = {"diversity": 0, "shift": 0}
    for seed in range(200):
        table = planted(seed=seed)
        one = measure.regressions(table).iloc[0]
        spread = table[["distinct_matched", "length_kl"]].std(ddof=1)
        hits["diversity"] += (
            one["diversity_low"] <= -0.3 * spread["distinct_matched"] <= one["diversity_high"]
        )
        hits["shift"] += one["shift_low"] <= 0.2 * spread["length_kl"] <= one["shift_high"]
    assert all(180 <= count <= 199 for count in hits.values()), hits


def test_regressions_tell_confounded_regressors():
    table = planted(together=0.95)
    one = measure.regressions(table).iloc[0]
    assert one["sets"] == 40 and one["models"] == 120
    x = np.column_stack([np.ones(len(table)), table["distinct_matched"], table["length_kl"]])
    assert one["vif"] == pytest.approx(variance_inflation_factor(x, 1), rel=1e-9) and one["vif"] > 5
    # Alone, diversity takes shift's effect for its own: -0.3 + 0.95 * 0.2.
    assert one["diversity_alone"] / table["distinct_matched"].std(ddof=1) == pytest.approx(
        -0.3 + 0.95 * 0.2, abs=0.05
    )
    assert one["diversity_together"] / table["distinct_matched"].std(ddof=1) == pytest.approx(
        -0.3, abs=0.06
    )


def test_equal_losses_have_no_coefficients():
    # Rounding alone would give them an interval.
    table = planted().assign(test_loss_answer=0.1)
    assert "diversity_together" not in measure.regressions(table)


def test_sizes_and_bases_are_held_as_statsmodels_formula_holds_them():
    """Two sizes and two bases whose losses and regressors lie apart."""
    parts = [
        planted(seed=seed).assign(
            base=base, records=records, group=lambda t, s=seed: t.group + str(s)
        )
        for seed, (base, records) in enumerate([("a", 48), ("a", 96), ("b", 48)])
    ]
    for shift, part in zip((0.0, -3.0, 2.0), parts, strict=True):
        part["test_loss_answer"] += 2 * shift
        part["distinct_matched"] += shift
    table = pd.concat(parts, ignore_index=True)
    table["alike"] = table["base"] + table["records"].astype(str)
    one = measure.regressions(table).iloc[0]
    formula = "test_loss_answer ~ distinct_matched + length_kl + C(alike)"
    whole = ols(formula, table).fit().params
    parts = [ols(formula, rest).fit().params for rest in without_each(table, "group")]
    variance = (len(parts) - 1) / len(parts) * sum((part - whole) ** 2 for part in parts)
    wide = stats.t.ppf(0.975, len(parts) - 1) * np.sqrt(variance["distinct_matched"])
    inner = table.groupby("alike")["distinct_matched"]
    unit = (table["distinct_matched"] - inner.transform("mean")).std(ddof=1)
    middle = whole["distinct_matched"]
    assert one["diversity_together"] == pytest.approx(middle * unit)
    assert (one["diversity_low"], one["diversity_high"]) == pytest.approx(
        ((middle - wide) * unit, (middle + wide) * unit)
    )


def without_each(table, column):
    return [table[table[column] != value] for value in table[column].unique()]


def test_sets_of_one_group_are_not_independent(monkeypatch):
    """Seven groups with 13 sets each; a group's own loss has nothing to do with its diversity."""
    monkeypatch.setattr(measure, "DISTANCES", ("length_kl",))
    found = {"group": 0, "print": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        own = np.repeat(rng.normal(size=(7, 3)), 13, axis=0) + 0.1 * rng.normal(size=(91, 3))
        table = pd.DataFrame(own, columns=["test_loss_answer", "distinct_matched", "length_kl"])
        table = table.assign(task="qa", kind="levels", level=np.repeat(range(7), 13), seed=0)
        table["print"] = table.index.astype(str)
        table["group"] = measure.groups(table)
        for column in found:
            one = measure.regressions(table, group=column).iloc[0]
            found[column] += one["diversity_low"] > 0 or one["diversity_high"] < 0
    assert one["sets"] == 91 and found["group"] <= 6 and found["print"] > 24


def test_crossed_sets_of_a_seed_are_a_group_where_seeds_are_enough():
    def of(seeds):
        table = pd.DataFrame({"seed": range(seeds), "kind": "crossed", "level": "crossed"})
        level = pd.DataFrame({"seed": [0, 1], "kind": "levels", "level": "D3"})
        table = pd.concat([table, level], ignore_index=True)
        return measure.groups(table.assign(print=[f"p{i}" for i in table.index])).tolist()

    assert of(6) == [f"seed {i}" for i in range(6)] + ["D3", "D3"]
    assert of(5) == [f"p{i}" for i in range(5)] + ["D3", "D3"]


def test_the_jackknife_of_groups_of_one_is_that_of_a_mean():
    """Errors of a mean by leaving out one value at a time are its usual ones."""
    losses = np.random.default_rng(0).normal(size=9)
    mean, error = measure._jackknife(np.ones((9, 1)), np.zeros((9, 0)), losses, np.arange(9))
    assert mean[0] == pytest.approx(losses.mean()) and error[0] == pytest.approx(stats.sem(losses))


def test_a_regression_that_rests_on_one_group_has_no_interval():
    table = planted(sets=12)
    table["length_kl"] = table["distinct_matched"] + (table["group"] == "p3")
    one = measure.regressions(table).set_index("shift").loc["length_kl"]
    assert np.isfinite(one["vif"]) and np.isnan(one["diversity_together"])


@pytest.mark.parametrize(
    "change", [{"sets": 5}, {"distinct_matched": 1.0}, {"length_kl": "distinct_matched"}]
)
def test_regressions_that_nothing_identifies_say_so(change):
    table = planted(sets=change.get("sets", 12))
    for name, value in change.items():
        if name != "sets":
            table[name] = table[value] if isinstance(value, str) else value
    one = measure.regressions(table).set_index("shift").loc["length_kl"]
    assert np.isnan(one.get("diversity_together", np.nan)) and one["models"] == len(table)


def table_of(texts, answer="one two three"):
    return pd.DataFrame(
        [("c", "", text, answer, "", "real") for text in texts], columns=list(COLUMNS), dtype=object
    )


def test_distances_are_zero_for_equal_sets_and_grow_with_shift():
    settings = paper("distances.points=40")
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([[float(t.split()[0]), len(t) % 3, 1.0] for t in texts])

    real = table_of([f"{i % 4} a" for i in range(40)])
    sets = {
        "same": ("story", real),
        "again": ("story", real.iloc[::-1]),
        "far": ("story", table_of([f"{i % 4 + 9} a" for i in range(40)], "one " * 30)),
    }
    found, clouds = measure.distances(sets, {"story": real}, settings, embed)
    found = found.set_index("set")
    assert len(asked) == len(set(asked)) == 8
    for name in measure.DISTANCES:
        # The unbiased estimate of a squared discrepancy lies around 0, not at it.
        assert (
            abs(found.loc["same", name]) < (0.1 if name == "mmd2" else 1e-6)
            and found.loc["far", name] > 0.5
        )
        assert found.loc["same", name] == found.loc["again", name]
    flat = measure.flat(clouds, ["story-real", "far"], "pca")
    assert (
        flat["far"].shape == (40, 2)
        and abs(flat["far"].mean(0) - flat["story-real"].mean(0)).max() > 8
    )


class Counting:
    """A writer that counts what it is asked and can be stopped."""

    def __init__(self, stop=None, after=99):
        self.asked, self.stop, self.after = [], stop, after

    def write(self, numbers, prompts):
        self.asked += list(prompts)
        if self.stop is not None and len(self.asked) >= self.after:
            self.stop.number = 15
        return [f"reply {number} {prompt}" for number, prompt in zip(numbers, prompts, strict=True)]


def desk(root, counting, stop=None, block=4):
    return writers.ReplyStore(root, writers.Writer("w", counting.write), block, 3, stop or Stop())


def test_a_stopped_generation_goes_on_with_the_next_block(tmp_path):
    prompts = [f"p{i}" for i in range(10)]
    undisturbed = desk(tmp_path / "a", Counting()).ask("x", prompts)
    stop = Stop()
    first = Counting(stop, after=8)
    with pytest.raises(Stopped):
        desk(tmp_path / "b", first, stop).ask("x", prompts)
    second = Counting()
    assert desk(tmp_path / "b", second).ask("x", prompts) == undisturbed
    assert first.asked == prompts[:8] and second.asked == prompts[8:]
    damaged = tmp_path / "b/generated/x/block=00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    third = Counting()
    assert (
        desk(tmp_path / "b", third).ask("x", prompts) == undisturbed and third.asked == prompts[:4]
    )
    changed = Counting()
    desk(tmp_path / "b", changed).ask("x", ["other", *prompts[1:]])
    assert changed.asked == ["other", *prompts[1:4]]


def test_what_is_lacking_is_asked_for_again_and_no_more(tmp_path):
    counting = Counting()
    parse = lambda i, reply: [reply] if "attempt 1" in reply or "item 0" in reply else []  # noqa: E731
    found = desk(tmp_path, counting).collect(
        "x", [1, 1], lambda i, missing, attempt: f"item {i} attempt {attempt}", parse
    )
    assert [len(f) for f in found] == [1, 1] and counting.asked == [
        "item 0 attempt 0",
        "item 1 attempt 0",
        "item 1 attempt 1",
    ]


@pytest.mark.parametrize(
    "reply, expected",
    [
        (
            "Question: Who?\nAnswer: Ann.\nQuestion: Why?\nAnswer: So.",
            [("Who?", "Ann."), ("Why?", "So.")],
        ),
        (
            "1. **Question:** Who?\n   **Answer:** Ann\n\n2. **Question:** Why?\n   **Answer:** So",
            [("Who?", "Ann"), ("Why?", "So")],
        ),
        (
            "**Question**: Who?\n**Answer**: **Ann**\n**Question**: Why?\n**Answer**: So",
            [("Who?", "**Ann**"), ("Why?", "So")],
        ),
        ("question: a\nb?\nanswer: c", [("a b?", "c")]),
        (
            "**Question 1:** Who?\n**Answer 1:** Ann\n### Question #2: Why?\nAnswer: In 2: so",
            [("Who?", "Ann"), ("Why?", "In 2: so")],
        ),
        ("Question: Who?\nAnswer:", []),
        ("Sure!", []),
        ("", []),
    ],
)
def test_pairs_in_replies(reply, expected):
    assert generate.pairs_in(reply) == expected


def test_templates_are_filled_in_one_pass():
    assert generate.fill("{a} {b} {c}", {"a": "{b}", "b": "x"}) == "{b} x {c}"


def test_a_local_writer_is_adapted_once_and_writes_a_row_alike_in_any_block(tmp_path):
    writer = (
        'model="{}", story="model", qa="control", adapt=3.0, adapt_rate=0.05, seeds=0, '
        'max_tokens=12, topics="data"'
    )
    text = dp.write(tmp_path).replace('url="URL"', writer.format(tmp_path / "base"))
    (tmp_path / "study.py").write_text(text)
    settings = config.build(diversity.DiversityConfig, config.read_file(str(tmp_path / "study.py")))
    texts = [f"The dog {i} ran." for i in range(6)]
    root = tmp_path / "run"
    first = writers.model_writer(settings, root, "story", lambda: (texts, ["dog"] * 6))
    whole = first.write([1, 2, 3], ["dog", "cat", "dog"])
    assert len(set(whole)) == 3 and first.write([3], ["dog"]) == whole[2:]
    again = writers.model_writer(settings, root, "story", lambda: pytest.fail("was adapted again"))
    assert again.write([1, 2, 3], ["dog", "cat", "dog"]) == whole
    plain = writers.model_writer(
        settings.model_copy(
            update={"generator": settings.generator.model_copy(update={"adapt": 0.0})}
        ),
        root,
        "story",
        lambda: pytest.fail("adapted"),
    )
    assert plain.write([1], ["dog"]) != whole[:1]


def test_a_writer_that_only_continues_is_given_the_first_words_of_stories(tmp_path, monkeypatch):
    """The topics are openings of real stories: prompts as they stand, stories that begin with them,
    a topic anew where a reply is no story.
    """
    asked = []

    def fake_generate(model, jobs, settings, options):
        asked.extend(jobs[0].prompts)
        return [
            SimpleNamespace(
                texts=[
                    "."
                    if "The dog" in p and len(asked) < 40
                    else " it. He ran. She ran. It ran. They ran."
                    for p in jobs[0].prompts
                ]
            )
        ]

    monkeypatch.setattr(family, "generate", fake_generate)
    writer = (
        'model="{}", story="model", qa="control", seeds=0, topics="openings", opening_words=4, '
        'story_prompt="{{topic}}"'
    )
    (tmp_path / "study.py").write_text(
        dp.write(tmp_path).replace('url="URL"', writer.format(tmp_path / "base"))
    )
    (tmp_path / "plain.jsonl").write_text('{"question": "How many?", "answer": "One."}\n' * 20)
    settings = config.build(diversity.DiversityConfig, config.read_file(str(tmp_path / "study.py")))
    prepared = prepare.prepare(settings)
    made = generate._stories(
        settings, prepared.tables["story"], tmp_path / "run", {0: 12, 6: 12}, Stop(), words_of
    )
    for level, topics in ((0, 1), (6, 8)):
        table = made[level]
        assert (
            len(table) == 12
            and table["topic"].nunique() <= topics
            and all(map(str.startswith, table["head"], table["topic"]))
        )
        assert all(len(topic.split()) == 4 for topic in table["topic"]) and set(table["text"]) == {
            "They ran."
        }
    real = diversity_sets.bodies(prepared.tables["story"].reserve)
    assert (
        all(any(text.startswith(prompt) for text in real) for prompt in asked)
        and made[6]["topic"].nunique() > 1
    )


def words_of(texts):
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    "text, words, expected",
    [
        (
            "He went to the old house. It was dark.",
            3,
            ("He went to", " the old house. It was dark."),
        ),
        (" A  b c d. E.", 2, (" A  b", " c d. E.")),
        ("He went. It was dark.", 2, ("", "He went. It was dark.")),
        ("One.", 4, ("", "One.")),
    ],
)
def test_openings_leave_something_of_the_first_sentence(text, words, expected):
    assert stories.opening(text, words) == expected


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-3.1-8B", 8_030_261_248),
        ("opt-1.3b", 1_315_758_080),
    ],
)
def test_shapes_of_the_papers_models(name, parameters):
    """Against the parameter counts that the models are published with."""
    assert (
        count_parameters(config_json.parse_config(published_models.PUBLISHED[name].config))
        == parameters
    )


def test_the_paper_scale_config_is_the_papers():
    settings = paper()
    assert (
        settings.fit.lora.rank,
        settings.fit.lora.alpha,
        settings.fit.learning_rate,
        settings.fit.weight_decay,
        settings.fit.epochs,
    ) == (
        8,
        16,
        1e-4,
        1e-4,
        3,
    )
    cells = experiments(settings)
    assert {cell.counts.generated for cell in cells["variable"] if cell.task == "qa"} == {
        0,
        551,
        1469,
        3306,
        8816,
    }
    assert {sum(cell.counts) for cell in cells["fixed"] if cell.task == "story"} == {20_000}
    assert len({(c.base, c.level) for c in cells["generated"] if c.task == "qa"}) == 3 * 8 and {
        c.base for c in cells["sizes"]
    } == set(settings.models.pool[:2])
    # 1,102 documents: once for their records and six times for paraphrases; every level has its own
    # stories.
    documents = -(-32_291 // 30)
    assert cost.requests(settings) == {"qa": documents * 7, "story": 7 * 30_000 + 200}


def test_a_model_that_is_nowhere_is_refused_by_the_plan():
    settings = paper(
        "models.pool=nobody/nothing",
        "generated.models=",
        "fixed.models=",
        "variable.models=",
        "sizes.models=",
        "architectures.models=",
    )
    with pytest.raises(
        ValueError, match="'nobody/nothing' is neither a directory here nor reachable on the hub"
    ):
        cost.model_config_of(settings, "nobody/nothing")
    assert dataclasses.is_dataclass(cost.model_config_of(settings, "meta-llama/Llama-3.1-8B")[0])
