"""Recursive-loops experiments before anything is trained: configs, subsets, chains, plans, and what
is refused.
"""

import collections
import pathlib
import re
import shutil
import typing

import numpy as np
import pytest

from jaxloop import config, studies
from jaxloop.lm.model.config import count_parameters
from jaxloop.recursion import selection
from jaxloop.recursion.plan import index_plan
from jaxloop.recursion.sources import sampling_prompts
from jaxloop.recursion.workflow import train_size
from jaxloop.studies.common import models
from jaxloop.studies.recursive_loops import chains as loops_chains
from jaxloop.studies.recursive_loops import cluster_table, cost, measure
from jaxloop.studies.recursive_loops import config as loops_config
from jaxloop.studies.recursive_loops import run as loops
from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops import subsets as loops_subsets
from jaxloop.studies.recursive_loops.analysis import findings
from jaxloop.studies.recursive_loops.data import recipes
from tests.command import call
from tests.encoders import letters
from tests.studies.recursive_loops import loops_study as ls

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
NAMES = (
    "ratio_sweep dataset_comparison cluster_study multi_domain quality_splits length_splits "
    "political_mixes models_per_generation first_size fit_modes interventions base_and_rate"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ls.build(tmp_path_factory.mktemp("loops"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxloop.metrics.embed.embed", letters)
    monkeypatch.setattr("jaxloop.metrics.embed.load_embedder", lambda name: letters)


def of_config(name, scale):
    raw = config.read_file(f"{CONFIGS / name}.py:{scale}")
    return config.build(studies.config_of(raw["study"]), raw)


# Chains of the paper's experiments (arXiv 2504.03814; first_size, fit_modes and
# interventions are not among them).
PAPER = dict(
    ratio_sweep=30,
    dataset_comparison=150,
    cluster_study=1600,
    multi_domain=400,
    political_mixes=125,
    models_per_generation=125,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_at_both_scales_and_plans_its_chains(name):
    for scale in ("paper", "tiny"):
        settings = of_config(name, scale)
        planned = loops_chains.plan(settings, loops_subsets.placeholders(settings))
        assert (
            len({p.id for p in planned})
            == len(planned)
            == len({tuple(sorted(p.factors.items())) for p in planned})
        )
        if scale == "paper" and name in PAPER:
            assert len(planned) == PAPER[name]
    if name == "cluster_study":
        assert (
            len({p.subset.name for p in planned}),
            len(planned),
            settings.chain.generations,
        ) == (24, 48, 8)


@pytest.mark.parametrize("name", ["cluster_study", "multi_domain", "models_per_generation"])
def test_plan_at_full_scale_counts_device_hours_without_models_or_data(name, monkeypatch):
    rows = dict(cost.table(of_config(name, "paper")))
    assert "H100-hours" in rows["device-hours"] and rows["chains"].startswith(
        f"{PAPER[name]} chains"
    )
    if name == "cluster_study":
        assert (
            rows["human texts per chain"].startswith("70,500")
            and rows["texts to train on"] == f"{1600 * 20 * 4000:,}"
        )


def test_published_descriptions_are_the_models_sizes():
    millions = {
        "Llama-3.2-1B": 1235.8,
        "Qwen2.5-1.5B": 1543.7,
        "SmolLM-1.7B": 1711.4,
        "Falcon3-1B-Base": 1669.4,
    }
    settings = of_config("ratio_sweep", "paper")
    for name in settings.models.pool:
        spec, tokenizer = models.model_shapes(settings.models, name)
        assert tokenizer is None and count_parameters(spec) / 1e6 == pytest.approx(
            millions[name.split("/")[1]], abs=0.1
        )


def test_a_directory_with_config_json_alone_is_enough_for_a_plan(place, tmp_path):
    folder = tmp_path / "described"
    folder.mkdir()
    shutil.copy(place / "base" / "config.json", folder)
    rows = dict(cost.table(ls.settings(place, models={"pool": [str(folder)]})))
    assert "H100-hours" in rows["device-hours"]


# ---- chains


def planned(place, **changes):
    settings = ls.settings(place, **changes)
    sources = {
        name: loops_data.read(settings, name, lambda texts: [len(t.split()) for t in texts])
        for name in settings.domains
    }
    subsets = loops_subsets.build(settings, sources, place)
    found = loops_chains.leave_out_short(settings, loops_chains.plan(settings, subsets))
    return settings, sources, subsets, found, loops_chains.datasets(found, sources)


def test_models_that_share_a_pool_add_a_part_each_and_draw_their_own_training_sets(place):
    chain = dict(models=[1, 3], size=20, contribution=0.2, ratios=[0.5], generations=3)
    _, _, _, found, _ = planned(place, experiment="models_per_generation", chain=chain)
    flow = found[1].spec.workflow
    # Section 1, models per generation: 0.2 of 20 per model and generation, half of it synthetic;
    # all models in one pool.
    assert (flow.entities, flow.synthetic, flow.human, flow.new_items, flow.initial) == (
        3,
        2,
        2,
        12,
        20,
    )
    assert [train_size(flow, g) for g in range(3)] == [20, 12, 20]
    rows = [
        np.asarray(index_plan(flow, found[1].spec.key, 2, generations=3, entity=e).position)
        for e in range(3)
    ]
    assert not np.array_equal(rows[0], rows[1])
    assert found[1].needed == 3 * (20 + 2 * 2) and found[0].spec.workflow.entities == 1


def test_independent_chains_share_no_draw_and_paired_ones_do(place):
    policies = dict(policies=["random", "quality"], written=3.0)
    for seeding, same in (("independent", False), ("paired", True)):
        changes = dict(
            experiment="interventions",
            interventions=policies,
            chain=dict(seeding=seeding, seeds=[0, 1]),
        )
        _, _, _, found, _ = planned(place, **changes)
        seeds = collections.defaultdict(set)
        for p in found:
            seeds[p.factors["seed"]].add(p.spec.seed)
        assert all(len(s) == (1 if same else 2) for s in seeds.values()) and not seeds[0] & seeds[1]
        assert (
            found[0].spec.workflow.selection.candidates == 24
            and found[0].spec.workflow.synthetic == 8
        )


def test_factors_reach_the_chains(place):
    chain = dict(gen0_sizes=[16, 32], factors={"fit": {"mode": ["lora", "full", "scratch"]}})
    _, _, _, found, _ = planned(place, experiment="gen0_size", chain=chain)
    assert {(p.spec.workflow.initial, dict(p.spec.fit)["mode"]) for p in found} == {
        (n, m) for n in (16, 32) for m in ("lora", "full", "scratch")
    }
    assert all(
        {"dataset", "ratio", "seed", "gen0_size", "fit.mode"} <= set(dict(p.spec.factors))
        for p in found
    )


TWO = ("posts", "other")


def two(place, **more):
    return {
        name: {"source": [f"{place}/{name}.jsonl"], "instruction": f"Write {name}.", **more}
        for name in TWO
    }


def plain_projection(embeddings, min_dist, **_):
    return np.asarray(embeddings[:, [2, 19]], np.float32)


SMALL = dict(
    count=2,
    min_size=50,
    fit_rows=200,
    methods=["kmeans-5", "gmm-5"],
    min_distances=[0.1],
    projections="each",
)


def test_mixtures_take_equally_many_texts_of_each_domain_and_answer_its_prompts_in_turn(
    place, monkeypatch
):
    monkeypatch.setattr("jaxloop.studies.recursive_loops.data.clustering.project", plain_projection)
    settings, sources, subsets, found, data = planned(
        place,
        experiment="multi_domain",
        domains=two(place),
        clusters=SMALL,
        chain=dict(generations=3),
    )
    assert len(found) == 2 and [s.name for s in subsets] == ["m000", "m001"]
    for p in found:
        assert (
            set(p.factors) == {"dataset", "cluster.posts", "cluster.other", "ratio", "seed"}
            and p.factors["dataset"] == ""
        )
        mixture = data[p.data]
        each = -(-p.needed // 2)
        counts = collections.Counter(mixture.prompts)
        assert (
            set(counts.values()) == {each}
            and len(mixture.texts) == 2 * each >= p.needed == 16 + 2 * 8
        )
        for text, prompt in zip(mixture.texts, mixture.prompts, strict=True):
            name = "posts" if "posts" in prompt else "other"
            member = dict(p.subset.parts)[name]
            assert text in set(sources[name].texts.take(member))
        turns = sampling_prompts(p.spec, data, 1, 0, 5)
        assert turns == [
            sources[name].prompt for name in ("posts", "other", "posts", "other", "posts")
        ]


def test_clusters_are_large_enough_named_and_their_overlap_is_reported(place, monkeypatch):
    from sklearn.metrics import jaccard_score

    monkeypatch.setattr("jaxloop.studies.recursive_loops.data.clustering.project", plain_projection)
    settings, sources, subsets, found, data = planned(place, experiment="clusters", clusters=SMALL)
    assert [s.factors["cluster"] for s in subsets] == ["c000", "c001"] and all(
        s.size == len(data[s.name].texts) >= 50 for s in subsets
    )
    overlap = loops_subsets.overlap(subsets, sources)["posts"]
    inside = [np.isin(np.arange(240), s.parts[0][1]) for s in subsets]
    assert overlap["mean"] == pytest.approx(jaccard_score(*inside), abs=1e-12)
    again = loops_subsets.build(settings, sources, place)
    assert all(
        np.array_equal(a.parts[0][1], b.parts[0][1]) for a, b in zip(subsets, again, strict=True)
    )


def test_splits_by_length_are_terciles_and_by_quality_exact_scores(place, monkeypatch):
    _, sources, subsets, _, _ = planned(place, experiment="length_splits")
    lengths = [
        np.array([len(t) for t in sources["posts"].texts.take(s.parts[0][1])]) for s in subsets
    ]
    assert [s.factors["length_level"] for s in subsets] == ["short", "medium", "long"] and [
        len(n) for n in lengths
    ] == [80, 80, 80]
    assert lengths[0].max() <= lengths[1].min() and lengths[1].max() <= lengths[2].min()
    score = np.random.default_rng(0).choice([20.0, 35.0, 40.0, 80.0, np.nan], 240)
    monkeypatch.setattr(loops_data, "quality", lambda settings, source: score)
    settings = ls.settings(place, experiment="quality_splits", splits={"levels": [20, 40, 60, 80]})
    found = loops_subsets.splits(settings, sources["posts"])
    for level, subset in zip((20, 40, 60, 80), found, strict=True):
        assert (
            subset.factors == {"quality_level": level}
            and subset.parts[0][1].tolist() == np.flatnonzero(score == level).tolist()
        )
    chains = loops_chains.leave_out_short(settings, loops_chains.plan(settings, found))
    # No text has 60: its chain is named with the reason and left out, the others run.
    assert [p.reason for p in chains if p.spec is None] == [
        "posts.60 has 0 texts, the chain needs 24"
    ]
    assert [s for s in loops_chains.table(chains, {})["status"] if s != "ok"] == [
        "posts.60 has 0 texts, the chain needs 24"
    ]


def test_political_mixes_are_the_first_rows_of_each_side(place, monkeypatch):
    lean = np.tile([90.0, 10.0, 50.0], 80)
    monkeypatch.setattr(
        "jaxloop.studies.recursive_loops.political_leaning.human", lambda *_: (np.arange(240), lean)
    )
    _, _, subsets, found, _ = planned(
        place,
        experiment="political",
        chain=dict(ratios=[0.75]),
        political_leaning={"mixes": [100, 25, 0]},
    )
    assert [s.name for s in subsets] == ["100l0r", "25l75r", "0l100r"] and {
        s.size for s in subsets
    } == {80}
    left, right = np.flatnonzero(lean < 50), np.flatnonzero(lean > 50)
    assert subsets[1].parts[0][1].tolist() == sorted([*left[:20], *right[:60]])
    assert {p.factors["mix"] for p in found} == {"100l0r", "25l75r", "0l100r"}


# ---- measuring


def test_lean_is_averaged_over_political_texts_and_shares_over_all(place):
    settings = ls.settings(place, political_leaning={"neutral": 10})
    found = measure.leaning_shares(settings, np.array([0.0, 45, 55, 100, -1, 80, np.nan, np.nan]))
    assert found == {
        "political_lean": 56.0,
        "left_share": pytest.approx(1 / 6),
        "right_share": pytest.approx(2 / 6),
        "neutral_share": pytest.approx(0.5),
        "not_political_share": pytest.approx(1 / 6),
        "unparsable_share": 0.25,
    }
    # Replies that are no score say nothing of the texts.
    nothing = measure.leaning_shares(settings, np.full(3, np.nan))
    assert nothing.pop("unparsable_share") == 1 and np.isnan(list(nothing.values())).all()


def test_metrics_of_several_domains_are_those_of_each(place):
    from jaxloop.metrics import registry

    settings = ls.settings(
        place, experiment="multi_domain", domains=two(place), chain=dict(eval_texts=6)
    )
    texts = [row["text"] for row in ls.posts(9, seed=5)]
    (found,) = measure.evaluate(settings, measure.names_at(settings, 0), [texts], None)
    for i, name in enumerate(TWO):
        alone = registry.evaluate(["text_length"], texts=[texts[:6][i::2]])["text_length"][0]
        assert found[f"text_length@{name}"] == alone
    assert set(found) == {f"{m}@{d}" for m in (*settings.metrics, "type_token_ratio") for d in TWO}


def test_quality_may_be_left_out_of_the_middle_generations(place):
    settings = ls.settings(place, quality_at="ends", chain=dict(generations=20))
    assert [g for g in range(20) if "type_token_ratio" in measure.names_at(settings, g)] == [
        0,
        15,
        16,
        17,
        18,
        19,
    ]


# ---- refusals

BAD = [
    (
        dict(domains={"a": {"source": ["x.jsonl"]}}),
        r"config.domains.a.instruction is missing: a domain of recipe 'plain' needs the prompt "
        r"of its texts",
    ),
    (dict(domains={"a": {"instruction": "Go."}}), r"config.domains.a.source is missing"),
    (
        dict(domains={"a b": {"source": ["x"], "instruction": "Go."}}),
        r"config.domains.a b: a domain's name is made of",
    ),
    (
        dict(experiment="clusterz"),
        r"config.experiment = 'clusterz' is not allowed: .*did you mean 'clusters'",
    ),
    (dict(experiment="models_per_generation"), r"config.chain.models is empty"),
    (dict(experiment="gen0_size"), r"config.chain.gen0_sizes is empty"),
    (
        dict(experiment="interventions", interventions={"policies": ["quality", "diversity"]}),
        r"config.interventions.policies must hold 'random'",
    ),
    (dict(experiment="multi_domain"), r"config.domains has 1 entry"),
    (dict(chain={"workflow": "replace"}), r"config.chain.workflow = 'replace' is not allowed here"),
    (dict(chain={"heldout_texts": 5}), r"config.chain.heldout_texts = 5 is not allowed here"),
    (
        dict(chain={"factors": {"size": [3]}}),
        r"config.chain.factors.size is not a factor of these experiments",
    ),
    (
        dict(
            models={"pool": ["a/llama", "b/llama"]},
            chain={"factors": {"bases": ["a/llama", "b/llama"]}},
        ),
        r"config.models.pool has two models called 'llama'",
    ),
    (
        dict(experiment="political_bases", chain={"factors": {"bases": ["base"]}}),
        r"config.chain.factors.bases is not allowed with experiment 'political_bases'",
    ),
    (dict(chain={"seeds": [0, 0]}), r"config.chain.seeds = \(0, 0\) repeats a value"),
]


@pytest.mark.parametrize("changes, said", BAD)
def test_bad_configs_are_refused_in_one_sentence(place, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        ls.settings(place, **changes)
    assert "\n" not in str(caught.value)


REFUSED = [
    (
        dict(experiment="clusters", clusters={**SMALL, "min_size": 20}),
        r"config.clusters.min_size = 20: the longest chain needs 24 human texts of a cluster",
    ),
    (
        dict(experiment="clusters", clusters={**SMALL, "min_size": 500, "count": 9}),
        r"config.clusters.min_size = 500: posts has 240 texts",
    ),
    (
        dict(experiment="clusters", clusters={**SMALL, "methods": ["kmeens-5"]}),
        r"config.clusters.methods has 'kmeens-5'.*did you mean 'kmeans-5'",
    ),
    (
        dict(experiment="clusters", clusters=SMALL),
        r"config.clusters.count = 2: that makes 2 clusters for a regression on 6 properties and "
        r"an intercept; .* least 8",
    ),
    (
        dict(
            experiment="clusters", clusters={**SMALL, "count": 7}, chain=dict(ratios=["1/8", "1/4"])
        ),
        r"config.clusters.count = 7: that makes 7 clusters for a regression on 6 properties and "
        r"an intercept; .* least 8",
    ),
    (dict(chain={"size": 200}), r"config.chain: chain .* posts has 240 texts, the chain needs 300"),
    (dict(metrics=["held_out_loss"]), r"config.metrics has 'held_out_loss', which needs losses"),
    (
        dict(quality="cosine_diversity"),
        r"config.quality = 'cosine_diversity': must be a metric of single texts",
    ),
]


@pytest.mark.parametrize("changes, said", REFUSED)
def test_what_cannot_run_is_refused_before_anything_is_written(
    place, tmp_path, capsys, changes, said
):
    path = ls.write(tmp_path / "study.py", ls.raw(place, **changes))
    for words in (["--validate"], [f"--workdir={tmp_path / 'run'}"]):
        code, _, err = call(capsys, f"--config={path}", *words)
        assert code == 2 and not (tmp_path / "run").exists()
        assert all(line.startswith("jaxloop: ") for line in err.splitlines()), err
        assert re.search(said, err), err


def test_a_property_that_is_the_same_for_every_cluster_is_refused_before_training(tmp_path):
    (tmp_path / "properties.csv").write_text(
        "dataset,cluster,quality,positivity\nposts,c000,50,0.1\nposts,c001,50,0.2\n"
    )
    with pytest.raises(
        ValueError,
        match="properties.csv: quality is 50 for all 2 clusters; a predictor of the regressions "
        "must vary",
    ):
        cluster_table.check_properties(tmp_path)


def test_a_rule_that_drops_everything_is_named_with_its_domain(place, tmp_path, capsys):
    domains = {
        "posts": {"source": [f"{place}/posts.jsonl"], "instruction": "Go.", "min_tokens": 500}
    }
    path = ls.write(tmp_path / "study.py", ls.raw(place, domains=domains))
    code, _, err = call(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert (
        code == 2
        and "config.domains.posts: cleaning: the rule 'not more than 500 tokens of model' drops "
        "all 240 rows that reach it"
        in err
    )
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_clean_data_are_read_once_with_their_report_and_again_when_the_file_changes(
    place, tmp_path, monkeypatch
):
    from jaxloop.studies.recursive_loops.data import clean_files

    calls = []
    original = clean_files.write_parquet
    monkeypatch.setattr(
        clean_files, "write_parquet", lambda *args: calls.append(args[0]) or original(*args)
    )
    domains = {
        "posts": {"recipe": "senator_tweets", "source": [str(tmp_path / "a.jsonl")], "keep": 100}
    }
    (tmp_path / "a.jsonl").write_bytes((place / "posts.jsonl").read_bytes())
    settings = ls.settings(place, domains=domains)
    first = loops_data.read(settings, "posts", len)
    second = loops_data.read(settings, "posts", len)
    assert (
        len(calls) == 1
        and len(first.texts) == 100
        and first.report == second.report
        and list(first.texts) == list(second.texts)
    )
    assert first.prompt == "### User:\nGenerate a twitter post.\n### Assistant:\n"
    entries = list(first.report.values())
    assert (
        entries[0]["in"] == 240
        and entries[-1]["out"] == 100
        and all(e["in"] - e["dropped"] == e["out"] for e in entries)
    )
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write(
            "\n" + '{"text": "one more post of more than ten words which is long enough to stay '
            'here", "party": "D"}'
        )
    assert loops_data.read(settings, "posts", len).folder != first.folder and len(calls) == 2
    assert not (first.folder / "parts").exists()
    # Columns that no experiment reads are not kept.
    with pytest.raises(ValueError, match="config.domains.posts: has no column 'party'; there are"):
        first.column("party")


def test_the_papers_unit_of_length_is_needed_only_by_rules_that_count_it(place, monkeypatch):
    def absent():
        raise ValueError("count_tokens: tiktoken is not installed; give count_tokens")

    monkeypatch.setattr("jaxloop.studies.recursive_loops.data.recipes.cl100k_counter", absent)
    assert len(loops_data.read(ls.settings(place, tokens="cl100k"), "posts").texts) == 240
    domains = {
        "posts": {"source": [f"{place}/posts.jsonl"], "instruction": "Go.", "max_tokens": 90}
    }
    said = (
        r"config.tokens = 'cl100k': tiktoken is not installed; pip install "
        r"'jaxloop-lm\[tiktoken\]' .*, or set config.tokens=model"
    )
    with pytest.raises(ValueError, match=said):
        loops_data.read(ls.settings(place, tokens="cl100k", domains=domains), "posts")


def test_validate_says_what_was_found(place, tmp_path, capsys):
    code, out, _ = call(
        capsys, f"--config={ls.write(tmp_path / 'study.py', ls.raw(place))}", "--validate"
    )
    assert code == 0 and "data posts: 240 of 240 texts (none dropped)" in out
    assert (
        "1 chains: 1 dataset, r in {1/2}, 1 seed, 2 generations; the longest needs 24 human texts"
        in out
    )
    assert loops.check(ls.settings(place))[0].startswith("data posts")


def test_clean_rows_are_found_again_however_their_file_is_named(place, monkeypatch):
    source = ls.settings(place)
    folder = loops_data.read(source, "posts", len).folder
    monkeypatch.chdir(place)
    domains = {"posts": {**ls.raw(place)["domains"]["posts"], "source": ["./posts.jsonl"]}}
    assert loops_data.read(ls.settings(place, domains=domains), "posts", len).folder == folder
    domains["posts"]["source"] = ["other.jsonl"]
    assert loops_data.read(ls.settings(place, domains=domains), "posts", len).folder != folder


# ---- one truth each


def test_names_of_the_config_are_those_of_what_they_name():
    assert set(typing.get_args(loops_config.RecipeName)) == {"plain", *recipes.RECIPES}
    assert typing.get_args(loops_config.PolicyName) == selection.POLICIES
    analysed = {*findings.ANALYSES, "judge_validation"}  # has a table alone
    assert set(typing.get_args(loops_config.ExperimentName)) == analysed


def test_the_section_of_political_leaning_has_its_old_name_too(place, caplog):
    raw = ls.raw(place, lean={"neutral": 10})
    config_now = config.override(raw, [("lean.left", "L")], loops_config.LoopsConfig)
    options = config.build(loops_config.LoopsConfig, config_now).political_leaning
    assert (options.neutral, options.left) == (10, "L")


def test_what_caches_hold_of_a_model_is_of_its_files_not_of_its_name(place, tmp_path, monkeypatch):
    """A model may be trained again in its directory, and two projects have one of the same path."""
    base, encoder = shutil.copytree(place / "base", tmp_path / "base"), tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    settings = ls.settings(place, models={"pool": [str(base)]}, embedder=str(encoder))
    count = models.describe(settings.models, str(base)).tokenizer.count
    asked = []

    def embed(texts, *args, **options):
        asked.append(len(texts))
        return letters(texts)

    monkeypatch.setattr("jaxloop.metrics.embed.embed", embed)
    source = loops_data.read(settings, "posts", count)
    for content, calls in (("{}", 1), ("{}", 1), ('{"again": 1}', 2)):
        (encoder / "config.json").write_text(content)
        loops_data.embeddings(settings, source)
        assert len(asked) == calls
    assert loops_data.is_clean(settings, "posts")
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + " ")
    assert not loops_data.is_clean(settings, "posts")
