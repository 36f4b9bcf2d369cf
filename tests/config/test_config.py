"""Config files and overrides: what they become, and the one sentence with which each mistake is
refused.
"""

import pathlib

import numpy as np
import pydantic
import pytest

from jaxloop import config
from jaxloop.studies import STUDIES, config_of
from jaxloop.studies.chain.config import ChainConfig as Settings

ROOT = pathlib.Path(__file__).resolve().parents[2]


def settings(raw=None, *assignments):
    pairs = [tuple(a.split("=", 1)) for a in assignments]
    return config.build(Settings, config.override(raw or {}, pairs, Settings))


def refusal(function, *args):
    with pytest.raises(ValueError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_the_paper():
    s = settings()
    assert s.chain.ratios == (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1) and s.chain.seeds == (
        0,
        1,
        2,
        3,
        4,
    )
    assert (s.chain.generations, s.chain.size, s.chain.eval_texts) == (20, 4000, 250)
    assert (s.fit.lora.rank, s.fit.lora.alpha, s.fit.lora.dropout, s.fit.lora.targets) == (
        16,
        16,
        0,
        "all-linear",
    )
    assert (s.fit.epochs, s.fit.batch_size, s.fit.learning_rate, s.fit.warmup_steps) == (
        1,
        16,
        2e-4,
        1,
    )
    assert (s.fit.weight_decay, s.fit.max_length, s.fit.completion_only) == (0.01, 256, True)
    assert (s.sample.temperature, s.sample.min_p, s.sample.top_p, s.sample.top_k) == (
        1.5,
        0.2,
        1,
        0,
    )
    assert (s.sample.repetition_penalty, s.sample.max_new_tokens) == (1, 300)
    assert (s.data.min_tokens, s.data.max_tokens) == (20, 200)


def test_settings_are_frozen_and_do_not_share_the_dict_they_came_from():
    raw = {"chain": {"seeds": [1, 2]}}
    s = settings(raw, "chain.seeds=3,4", "fit.max_grad_norm=none")
    assert raw == {"chain": {"seeds": [1, 2]}}
    assert s.chain.seeds == (3, 4) and s.fit.max_grad_norm is None
    with pytest.raises(pydantic.ValidationError):
        s.chain.size = 1
    assert s == settings({}, "chain.seeds=3,4", "fit.max_grad_norm=none")


@pytest.mark.parametrize(
    "assignment, path, value",
    [
        ("chain.generations=5", "chain.generations", 5),
        ("chain.ratios=1/8,1", "chain.ratios", (0.125, 1.0)),
        ("chain.ratios=(0.5, 1)", "chain.ratios", (0.5, 1.0)),
        ("chain.ratios=[0.5,1,]", "chain.ratios", (0.5, 1.0)),
        ("chain.ratios=1", "chain.ratios", (1.0,)),
        ("models.pool=../x/y", "models.pool", ("../x/y",)),
        ("models.pool=('a', \"b\")", "models.pool", ("a", "b")),
        ("models.revisions=abc", "models.revisions", ("abc",)),
        ("fit.lora.targets=q_proj,k_proj", "fit.lora.targets", ("q_proj", "k_proj")),
        ("fit.lora.targets=all-linear", "fit.lora.targets", "all-linear"),
        ("fit.learning_rate=1e-3", "fit.learning_rate", 1e-3),
        ("fit.learning_rate=1", "fit.learning_rate", 1.0),
        ("fit.steps=None", "fit.steps", None),
        ("data.source=123", "data.source", "123"),
        ("data.delimiter=\t", "data.delimiter", "\t"),
        ("data.delimiter=", "data.delimiter", None),
        ("data.instruction=Say a=b, please.", "data.instruction", "Say a=b, please."),
        ("metrics=self_bleu", "metrics", ("self_bleu",)),
        (
            "metrics=distinct_n(n=2),a(n=2, size=5)",
            "metrics",
            ("distinct_n(n=2)", "a(n=2, size=5)"),
        ),
        (
            "chain.factors.sample.temperature=1,1.5",
            "chain.factors",
            {"sample.temperature": (1, 1.5)},
        ),
        ("chain.factors.dataset=docs,a.jsonl", "chain.factors", {"dataset": ("docs", "a.jsonl")}),
        ("chain.factors.fit.remat=true,False", "chain.factors", {"fit.remat": (True, False)}),
        ("chain.factors.fit.mode=(lora, full)", "chain.factors", {"fit.mode": ("lora", "full")}),
        (
            "chain.factors.fit.dropout=model,none",
            "chain.factors",
            {"fit.dropout": ("model", "none")},
        ),
        ("chain.factors.fit.steps=none,5", "chain.factors", {"fit.steps": (None, 5)}),
    ],
)
def test_override_reads_text_as_the_type_of_the_field(assignment, path, value):
    result = settings({}, assignment)
    for part in path.split("."):
        result = getattr(result, part)
    assert result == value and type(result) is type(value)


def test_sections_by_name_are_overridden_field_by_field():
    from jaxloop.studies.pretrain.config import PretrainConfig as Pretrain

    raw = {"bases": {"llama": {"width": 40}}}
    pairs = [("bases.llama.layers", "2"), ("bases.opt.architecture", "opt")]
    built = config.build(Pretrain, config.override(raw, pairs, Pretrain))
    assert (
        built.bases["llama"].width,
        built.bases["llama"].layers,
        built.bases["opt"].architecture,
    ) == (40, 2, "opt")
    assert "did you mean 'bases.llama.layers'" in refusal(
        config.override, {}, [("bases.llama.layer", "2")], Pretrain
    )


@pytest.mark.parametrize(
    "assignment, said",
    [
        (
            "chain.generatons=5",
            "--config.chain.generatons: unknown field 'chain.generatons'; did you mean "
            "'chain.generations'?",
        ),
        (
            "chan.generations=5",
            "--config.chan.generations: unknown field 'chan'; did you mean 'chain'?",
        ),
        (
            "temperature=1",
            "--config.temperature: unknown field 'temperature'; did you mean 'sample.temperature'?",
        ),
        (
            "fit.lora.rnk=4",
            "--config.fit.lora.rnk: unknown field 'fit.lora.rnk'; did you mean 'fit.lora.rank'?",
        ),
        (
            "zzz=1",
            "--config.zzz: unknown field 'zzz'; there are: study, title, data, models, chain, "
            "fit, sample, metrics, embedder, reference, judge, only, run",
        ),
        (
            "chain.ratios.0=1",
            "--config.chain.ratios.0: 'chain.ratios' has no fields, so 'chain.ratios.0' cannot "
            "be set",
        ),
        ("chain=3", "--config.chain=3: 'chain' is a section; set one of chain.generations, "),
        (
            "chain.generations=five",
            "config.chain.generations = 'five' is not allowed: a whole number of at least 1",
        ),
        (
            "chain.generations=5.5",
            "config.chain.generations = 5.5 is not allowed: a whole number of at least 1",
        ),
        (
            "chain.generations=true",
            "config.chain.generations = 'true' is not allowed: a whole number of at least 1",
        ),
        (
            "chain.ratios=0.5,1.5",
            "config.chain.ratios[1] = 1.5 is not allowed: a number from 0 to 1",
        ),
        ("chain.ratios=-0.1", "config.chain.ratios[0] = -0.1 is not allowed: a number from 0 to 1"),
        ("chain.ratios=nan", "config.chain.ratios[0] = nan is not allowed: a number from 0 to 1"),
        ("chain.ratios=1/0", "config.chain.ratios[0] = '1/0' is not allowed: a number from 0 to 1"),
        (
            "chain.ratios=",
            "config.chain.ratios = [] is not allowed: a list of at least one entry, each a "
            "number from 0 to 1",
        ),
        (
            "chain.seeds=",
            "config.chain.seeds = [] is not allowed: a list of at least one entry, each a whole "
            "number from 0 to 4294967295",
        ),
        ("chain.seeds=1,1", "config.chain.seeds = (1, 1) repeats a value: every entry must differ"),
        (
            "fit.mode=loar",
            "config.fit.mode = 'loar' is not allowed: one of lora, full, scratch; did you mean "
            "'lora'?",
        ),
        (
            "fit.max_grad_norm=-1",
            "config.fit.max_grad_norm = -1 is not allowed: a number above 0 or none",
        ),
        (
            "fit.learning_rate=inf",
            "config.fit.learning_rate = inf is not allowed: a number above 0",
        ),
        (
            "sample.min_p=1",
            "config.sample.min_p = 1 is not allowed: a number from 0 to 1 (less than 1)",
        ),
        ("sample.temperature=0", "config.sample.temperature = 0 is not allowed: a number above 0"),
        ("data.source=", "config.data.source = '' is not allowed: text that is not empty"),
        (
            "data.min_tokens=500",
            "config.data.min_tokens = 500 leaves no text: must be below data.max_tokens = 200",
        ),
        (
            "fit.epochs=none",
            "config.fit.steps and config.fit.epochs are both none: one of them must be a number",
        ),
        (
            "models.dtype=bfloat16",
            "config.fit.dtype = float32 with config.models.dtype = bfloat16: adapters cannot be "
            "computed in a wider number format than their base; set both to one of them",
        ),
        (
            "models.revisions=abc,none",
            "config.models.revisions has 2 entries: must be empty or one per model (1)",
        ),
        (
            "chain.workflow=external",
            "config.chain.external is missing: workflow 'external' needs a file of texts",
        ),
        (
            "chain.window=3",
            "config.chain.window = 3 changes nothing under config.chain.workflow = 'fresh_human': "
            "it is of workflow 'window'",
        ),
        (
            "chain.share=1/4",
            "config.chain.share = 0.25 changes nothing under config.chain.workflow = "
            "'fresh_human': it is of workflow 'preserve' or 'external'",
        ),
        (
            "chain.factors.k=1,2",
            "config.chain.factors.k changes nothing under config.chain.workflow = 'fresh_human': "
            "it is of workflow 'window'",
        ),
        (
            "chain.factors.sample.num_beams=2,4",
            "config.chain.factors.sample.num_beams changes nothing with config.sample.decoder = "
            "'sample': it needs 'beam'",
        ),
        (
            "chain.factors.sample.temprature=1,2",
            "config.chain.factors.sample.temprature is not a factor; did you mean "
            "'sample.temperature'?",
        ),
        (
            "chain.factors.fit.mode=lora,ful",
            "config.chain.factors.fit.mode has 'ful', which is not allowed: one of lora, full, "
            "scratch",
        ),
        (
            "chain.factors.fit.remat=1",
            "config.chain.factors.fit.remat has 1, which is not allowed: true or false",
        ),
        (
            "chain.factors.size=100,0",
            "config.chain.factors.size has 0, which is not allowed: a whole number of at least 1",
        ),
        (
            "chain.factors.size=1e2",
            "config.chain.factors.size has 100.0, which is not allowed: a whole number of at "
            "least 1",
        ),
        (
            "chain.factors.fit.learning_rate=1,1.0",
            "config.chain.factors.fit.learning_rate = [1, 1.0]: must be a list of at least one "
            "value, no value twice",
        ),
        (
            "chain.factors.size=100,100",
            "config.chain.factors.size = [100, 100]: must be a list of at least one value, no "
            "value twice",
        ),
        (
            "chain.factors.bases=jaxloop/assets/bases/lama",
            "config.chain.factors.bases has 'jaxloop/assets/bases/lama', which is not in "
            "config.models.pool",
        ),
        (
            "chain.factors=3",
            "config.chain.factors = 3 is not allowed: a section whose fields are lists of values",
        ),
        (
            "study=chains",
            "config.study = 'chains' is not allowed: one of chain; did you mean 'chain'?",
        ),
    ],
)
def test_override_refusals(assignment, said):
    assert refusal(settings, {}, assignment).startswith(said)


@pytest.mark.parametrize(
    "factors, said",
    [
        (
            {"sample.decoder": ["greedy", "beam"], "sample.top_k": [1, 2]},
            "config.chain.factors.sample.top_k changes nothing with "
            "config.chain.factors.sample.decoder = ['greedy', 'beam']: it needs 'sample'",
        ),
        (
            {"fit.steps": [3, 4], "fit.epochs": [1, 2]},
            "config.chain.factors.fit.epochs changes nothing with config.chain.factors.fit.steps "
            "= [3, 4]: fit.steps must be none",
        ),
    ],
)
def test_a_factor_without_effect_beside_others_is_refused(factors, said):
    assert refusal(settings, {"chain": {"factors": factors}}) == said


@pytest.mark.parametrize("study", ["chain", "loops"])
@pytest.mark.parametrize(
    "words, refused",
    [
        (("fit.dtype=bfloat16",), False),
        (("chain.factors.fit.dtype=bfloat16",), False),
        (("only=metrics",), False),
        (("chain.factors.fit.mode=full",), False),
        (("chain.factors.start=scratch",), False),
        (("fit.dtype=bfloat16", "chain.factors.fit.dtype=bfloat16,float32"), True),
        (("fit.mode=full", "chain.factors.fit.mode=full,lora"), True),
        (("chain.start=scratch", "chain.factors.start=scratch,previous"), True),
    ],
)
def test_number_formats_are_those_of_the_chains(study, words, refused):
    """Base in bfloat16, and `fit.dtype` float32 where no word says otherwise."""
    kind = config_of(study)
    raw = config.read_file(str(ROOT / "configs/quality_splits.py")) if study == "loops" else {}
    pairs = [
        tuple(word.split("=", 1)) for word in ("models.dtype=bfloat16", "fit.dtype=float32", *words)
    ]
    raw = config.override(raw, pairs, kind)
    if refused:
        assert "adapters cannot be computed in a wider" in refusal(config.build, kind, raw)
    else:
        config.build(kind, raw)


def test_a_factor_takes_floats_of_numpy_and_no_false_for_a_number():
    """Levels are often made by `numpy.geomspace`."""
    levels = tuple(np.geomspace(1e-4, 1e-3, 3))
    chain = settings({"chain": {"factors": {"fit": {"learning_rate": levels}}}}).chain
    assert chain.factors == {"fit.learning_rate": levels}
    said = refusal(settings, {"chain": {"factors": {"sample": {"min_p": [False, 0.2]}}}})
    assert said.startswith("config.chain.factors.sample.min_p has False, which is not allowed")


def test_a_plan_needs_shares_to_divide_by():
    kind = config_of("multi_entity")
    for field in ("plan.train_share", "plan.write_share"):
        said = refusal(config.build, kind, config.override({}, [(field, "0")], kind))
        assert said == f"config.{field} = 0 is not allowed: a number from 0 to 1 (more than 0)"


def test_a_copy_with_other_values_keeps_which_fields_were_set():
    fit = config.FitConfig(epochs=2).replace(steps=5, lora=config.LoraConfig().replace(rank=4))
    assert fit.model_fields_set == {"epochs", "steps", "lora"}
    assert fit.lora.model_fields_set == {"rank"}
    assert fit == config.FitConfig(epochs=2, steps=5, lora=config.LoraConfig(rank=4))


@pytest.mark.parametrize(
    "raw, said",
    [
        ({"fit": 5}, "config.fit = 5 is not allowed: a section with mode, lora, "),
        ({"extra": 3}, "config.extra: unknown field 'extra'; did you mean 'chain.external'?"),
        (
            {"data": {"text_colum": "x"}},
            "config.data.text_colum: unknown field 'data.text_colum'; did you mean "
            "'data.text_column'?",
        ),
        (
            {"chain": {"factors": {"fit.steps": ["5", 10]}}},
            "config.chain.factors.fit.steps has '5', which is not allowed: a whole number of at "
            "least 1 or none",
        ),
        (
            {"chain": {"workflow": "preserve", "first_size": 99, "factors": {"share": [0, 1 / 8]}}},
            "config.chain.first_size = 99: must be at least 500, the share of 0.125 of 4000 texts",
        ),
        (
            {"models": {"pool": ["a/b", "c/d", "a/b"], "revisions": ["1", "2", "3"]}},
            "config.models.revisions has '1' and '3' for a/b: a model of the pool is known by its "
            "name",
        ),
        (
            {"fit": {"lora": {"rank": True}}},
            "config.fit.lora.rank = True is not allowed: a whole number of at least 1",
        ),
        (
            {"fit": {"lora": {"targets": [1]}}},
            "config.fit.lora.targets = [1] is not allowed: text that is not empty or a list, "
            "each text",
        ),
        (
            {"chain": {"factors": {"fit": {"steps": 5}}}},
            "config.chain.factors.fit.steps = 5 is not allowed: a list",
        ),
        (
            {"metrics": "self_bleu"},
            "config.metrics = 'self_bleu' is not allowed: a list of at least one entry, each "
            "text that is not empty",
        ),
        (
            {"data": {"min_tokens": None}},
            "config.data.min_tokens = None is not allowed: a whole number of at least 0",
        ),
        (
            {"chain": {"size": -1, "generations": "x"}},
            "config.chain.generations = 'x' is not allowed: a whole number of at least 1 (and 1 "
            "more)",
        ),
    ],
)
def test_file_refusals(raw, said):
    assert refusal(settings, raw).startswith(said)


def write(tmp_path, text, name="study.py"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


GOOD = """from ml_collections import ConfigDict
def get_config(arg='none'):
    c = ConfigDict()
    c.study = 'chain'
    c.name = arg
    return c
"""


def test_read_file_passes_the_argument(tmp_path):
    path = write(tmp_path, GOOD)
    assert config.read_file(path) == {"study": "chain", "name": "none"}
    assert config.read_file(path + ":tiny:1") == {"study": "chain", "name": "tiny:1"}


@pytest.mark.parametrize(
    "text, said",
    [
        (b"x = '\xff'", "not UTF-8 text (byte 5)"),
        ("def get_config(:", "line 1: SyntaxError:"),
        ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
        ("def get_config():\n    return open('/nowhere')\n", "line 2: FileNotFoundError:"),
        ("x = 1", "defines no get_config()"),
        (
            "def get_config():\n    return {'a': 1}",
            "get_config() must return an ml_collections.ConfigDict, got dict",
        ),
        ("\0", "null bytes"),
    ],
)
def test_broken_files(tmp_path, text, said):
    path = write(tmp_path, text)
    message = refusal(config.read_file, path)
    assert message.startswith(f"--config={path}: ") and said in message


def test_missing_files_and_arguments(tmp_path):
    write(tmp_path, GOOD, "quickstart.py")
    missing = tmp_path / "quickstat.py"
    assert refusal(config.read_file, str(missing)).endswith(
        f"there is no file {missing}; did you mean {tmp_path / 'quickstart.py'}?"
    )
    assert "must be a Python file" in refusal(config.read_file, str(tmp_path))
    no_argument = write(tmp_path, "def get_config():\n    return 1")
    assert refusal(config.read_file, no_argument + ":big").endswith(
        "get_config() takes no argument, got ':big'"
    )


def test_studies_are_found_by_name():
    assert config_of("chain") is Settings
    assert (
        refusal(config_of, "chan") == "config.study = 'chan' is not a study; did you mean 'chain'?"
    )
    assert refusal(config_of, None).startswith("config.study is missing: one of chain")


def test_fingerprint_follows_every_field_but_the_ignored_sections():
    base = config.fingerprint(settings(), ignore=["run"])
    assert base == config.fingerprint(settings({}, "run.chains_per_program=2"), ignore=["run"])
    assert base != config.fingerprint(settings({}, "fit.lora.rank=8"), ignore=["run"])
    assert config.build(Settings, settings().model_dump(mode="json")) == settings()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_every_config_builds(path):
    raw = config.read_file(str(path))
    assert raw["study"] in STUDIES
    config.build(config_of(raw["study"]), raw)


def test_configs_readme_names_every_config():
    text = (ROOT / "configs" / "README.md").read_text()
    assert [
        p.name for p in sorted((ROOT / "configs").glob("*.py")) if f"| `{p.name}` |" not in text
    ] == []


def test_configs_readme_holds_the_reference_of_all_fields():
    """After a change: python -m jaxloop.main --config=configs/quickstart.py --fields, pasted into
    configs/README.md.
    """
    assert config.reference(Settings) in (ROOT / "configs" / "README.md").read_text()


def test_config_dict_references_and_placeholders_are_resolved(tmp_path):
    text = GOOD.replace(
        "c.name = arg",
        "c.a = ml.config_dict.placeholder(int)\n    c.b = 2\n    c.d = c.get_ref('b') * 3",
    ).replace("from ml_collections", "import ml_collections as ml\nfrom ml_collections")
    assert config.read_file(write(tmp_path, text)) == {"study": "chain", "a": None, "b": 2, "d": 6}


def test_a_section_is_copied_with_other_values_that_are_checked():
    fit = settings().fit
    other = fit.replace(batch_size=4, lora=fit.lora.replace(rank=8))
    assert (other.batch_size, other.lora.rank, other.lora.scale) == (4, 8, 2.0)
    assert (fit.batch_size, fit.lora.scale) == (16, 1.0) and other.epochs == fit.epochs
    assert hash(other) == hash(fit.replace(batch_size=4, lora=other.lora)) != hash(fit)
    said = refusal(lambda: fit.replace(mode="qlora"))
    assert said.startswith("mode: 'qlora' is not allowed; ") and "'scratch'" in said
    assert refusal(lambda: fit.replace(speed=2)).startswith("speed: 2 is not allowed; ")
