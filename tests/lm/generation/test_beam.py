"""Beam search against `transformers.generate`, token for token."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.lm.generation import beam
from jaxloop.lm.generation.prefill import unstack_layers
from jaxloop.lm.model import lora
from tests.peers import peer

peft = peer("peft", "torch")
torch = peer("torch")
hf = peer("transformers", "torch")

NEW = 12
rng = np.random.default_rng(0)
PROMPTS = [rng.integers(3, 320, n).tolist() for n in (1, 4, 9, 17, 16, 5, 3, 2)]
LONG = rng.integers(3, 320, 30).tolist()


def generate(model, prompts, eos, pad=0, new=NEW, **settings):
    """Continuations by transformers: one left-padded batch, each cut after its first EOS."""
    longest = max(map(len, prompts))
    ids, mask = np.full((len(prompts), longest), pad), np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    given = dict(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        do_sample=False,
        max_new_tokens=new,
    )
    rows = model.generate(**given, eos_token_id=eos, pad_token_id=pad, **settings)[
        :, longest:
    ].tolist()
    ends = [[i for i, token in enumerate(row) if token in np.atleast_1d(eos)] for row in rows]
    return [row[: end[0] + 1] if end else row for row, end in zip(rows, ends, strict=True)]


def search(model, prompts, eos, num_beams=4, new=NEW, **settings):
    given = dict(rows=4) | settings
    return beam.beam_search(
        model.config,
        model.params,
        prompts,
        num_beams=num_beams,
        max_new_tokens=new,
        eos=eos,
        **given,
    )


def frequent(texts, n):
    """Tokens that end texts early when they are made EOS."""
    return [
        token
        for token, _ in collections.Counter(t for text in texts for t in set(text)).most_common(n)
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "opt-350m"])
def test_equal_to_transformers_on_ragged_prompts_whether_eos_comes_early_or_not(
    name, checkpoint, loaded
):
    theirs, ours = checkpoint(name).torch, loaded(name)
    never = generate(theirs, PROMPTS, 319, num_beams=4)
    assert search(ours, PROMPTS, 319) == never
    lengths = set()
    for eos in frequent(never, 2):
        expected = generate(theirs, PROMPTS, eos, num_beams=4)
        assert search(ours, PROMPTS, eos) == expected
        lengths |= set(map(len, expected))
    assert len(lengths) > 1 and min(lengths) < NEW


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param(dict(early_stopping=True, num_beams=3), marks=pytest.mark.slow)],
    ids=["default", "early"],
)
def test_several_tokens_end_a_text_as_in_transformers(settings, checkpoint, loaded):
    given, (theirs, ours) = (
        dict(num_beams=4) | settings,
        (checkpoint("llama").torch, loaded("llama")),
    )
    common = frequent(generate(theirs, PROMPTS, 319, num_beams=4), 4)
    seen = set()
    for ends in (common[:2], common[1:4], [319, common[0]]):
        expected = generate(theirs, PROMPTS, ends, **given)
        assert search(ours, PROMPTS, tuple(ends), **given) == expected
        seen |= {text[-1] for text in expected} & set(ends)
    assert len(seen) > 2


@pytest.mark.parametrize(
    "settings",
    [
        dict(early_stopping=True),
        dict(early_stopping="never", length_penalty=2.0),
        dict(early_stopping="never", length_penalty=0.0),
        dict(length_penalty=-1.5),
        dict(repetition_penalty=1.6),
        dict(num_beams=2, length_penalty=0.5),
    ],
    ids=str,
)
def test_equal_to_transformers_at_every_setting(settings, checkpoint, loaded):
    given = dict(num_beams=4) | settings
    theirs, ours = checkpoint("llama").torch, loaded("llama")
    for eos in frequent(generate(theirs, PROMPTS, 319, num_beams=4), 2):
        assert search(ours, PROMPTS, eos, **given) == generate(theirs, PROMPTS, eos, **given)


def test_a_real_pretrained_model_ends_its_stories_as_transformers_does(shared):
    path = shared("weights/stories260K")
    ours, theirs = (
        lm.load(path),
        hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
    )
    prompts = ours.tokenizer.encode(
        ["Once upon a time", "Tom and his dog", "She was very sad because"]
    )
    prompts.append([ours.tokenizer.bos])
    eos = ours.tokenizer.encode(["."], special=False)[0][-1]  # a sentence each
    settings = dict(num_beams=5, new=40)
    texts = search(ours, prompts, eos, **settings)
    assert texts == generate(theirs, prompts, eos, **settings)
    assert sum(text[-1] == eos for text in texts) >= 2


def test_chains_with_their_own_adapters_equal_peft(checkpoint, loaded, tmp_path):
    ours, expected, read = loaded("llama"), [], []
    prompts = PROMPTS[:5]
    for chain in range(2):
        base = type(checkpoint("llama").torch).from_pretrained(checkpoint("llama").path)
        model = peft.get_peft_model(
            base,
            peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        generator = torch.Generator().manual_seed(chain)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path)
        read.append(lm.load_peft(tmp_path, ours.config))
        expected += generate(model.eval(), prompts, 7, num_beams=4)
    stacked = lora.stack(read)
    assert search(ours, prompts + prompts, 7, adapters=stacked) == expected
    assert expected[:5] != expected[5:]


def test_one_program_serves_every_call_of_a_padded_length(checkpoint, loaded):
    ours, theirs = loaded("llama"), checkpoint("llama").torch
    expected = generate(theirs, [*PROMPTS, LONG], 319, num_beams=4)
    beam.beam_program.clear_cache()
    assert (
        search(ours, PROMPTS, 319) == expected[:-1]
    )  # eight prompts of 1 to 17 tokens, four at a time
    assert beam.beam_program._cache_size() == 1
    assert search(ours, PROMPTS[2:3], 319) == expected[2:3]
    eos = frequent(expected, 1)[0]
    patient, hasty = (
        dict(early_stopping="never", length_penalty=2.0),
        dict(early_stopping=True, length_penalty=-1.0),
    )
    assert search(ours, PROMPTS, eos, **patient) != search(ours, PROMPTS, eos, **hasty)
    assert search(ours, PROMPTS[::-1] * 3, eos) == search(ours, PROMPTS, eos)[::-1] * 3
    unstacked = ours._replace(params=unstack_layers(ours.params))
    assert beam.beam_program._cache_size() == 1
    assert search(ours, [LONG, *PROMPTS], 319) == [expected[-1], *expected[:-1]]
    assert beam.beam_program._cache_size() == 2
    assert search(unstacked, PROMPTS, 319) == expected[:-1]


def test_prompts_of_many_lengths_share_one_program_where_they_are_padded_alike(checkpoint, loaded):
    beam.beam_program.clear_cache()
    expected = generate(checkpoint("gpt2").torch, [*PROMPTS, LONG], 319, num_beams=4)
    assert search(loaded("gpt2"), [*PROMPTS, LONG], 319, prompt_len=33) == expected
    assert beam.beam_program._cache_size() == 1


def test_equal_prompts_are_searched_once(loaded, monkeypatch):
    calls, real = [], beam.beam_program
    monkeypatch.setattr(beam, "beam_program", lambda *a: calls.append(1) or real(*a))
    once = search(loaded("llama"), PROMPTS[:2], 319)
    assert search(loaded("llama"), PROMPTS[:2] * 50, 319) == once * 50
    assert len(calls) == 2


def test_no_prompts_no_texts(loaded):
    assert search(loaded("llama"), [], 2) == []


def test_the_context_may_be_filled_to_its_last_token(checkpoint, loaded):
    ours, new = loaded("gpt2"), 35  # 30 + 35 - 1 = 64 positions
    assert search(ours, [LONG], 319, num_beams=2, new=new) == generate(
        checkpoint("gpt2").torch, [LONG], 319, num_beams=2, new=new
    )
    with pytest.raises(
        ValueError,
        match="prompt 0 has 30 tokens, which with max_new_tokens = 36 exceeds the model's "
        "context of 64",
    ):
        search(ours, [LONG], 319, new=36)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            dict(num_beams=1),
            "num_beams: 1 is not allowed; it must be an integer from 2 up; "
            "one beam is greedy decoding",
        ),
        (dict(num_beams=161), "num_beams: 161 is more than half the model's vocabulary of 320"),
        (dict(new=0), "max_new_tokens: 0 is not allowed"),
        (dict(length_penalty=float("nan")), "length_penalty: nan is not allowed"),
        (
            dict(early_stopping="always"),
            "early_stopping: 'always' is not allowed; it must be True, False or 'never'",
        ),
        (dict(early_stopping=1), "early_stopping: 1 is not allowed"),
        (dict(repetition_penalty=0), "repetition_penalty: 0 is not allowed"),
        (dict(rows=0), "rows: 0 is not allowed"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match, loaded):
    with pytest.raises(ValueError, match=match):
        search(loaded("llama"), PROMPTS, 2, **settings)


def test_prompts_that_cannot_be_continued_are_refused(loaded):
    ours = loaded("llama")
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        search(ours, [[3], []], 2)
    shapes = jax.eval_shape(
        lambda: lora.init(jax.random.split(jax.random.key(0), 2), ours.config, lm.LoraConfig())
    )
    stacked = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    with pytest.raises(ValueError, match="3 prompts are not divisible among 2 chains"):
        search(ours, PROMPTS[:3], 2, adapters=stacked)


def test_bfloat16_mostly_finds_the_same_texts(checkpoint, loaded):
    half = lm.load(checkpoint("llama").path, dtype=jnp.bfloat16)
    same = [
        a == b
        for a, b in zip(search(half, PROMPTS, 2), search(loaded("llama"), PROMPTS, 2), strict=True)
    ]
    assert sum(same) >= len(PROMPTS) // 2
