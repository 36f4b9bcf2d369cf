"""Judges: local models against transformers. Judges behind an endpoint: test_endpoint.py."""

import itertools

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaxloop import lm
from jaxloop.metrics import judge_model, judges, registry
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.judge_replies import (
    ENGLISH,
    POLITICAL_LEAN,
    QUALITY,
    judgement,
    parse_reply,
)
from jaxloop.metrics.judges import judge
from tests.metrics.server import Server, completion
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

TEXTS = ["A cat sat on the mat.", "", "taxes, now! 😀 مرحبا", "x " * 40]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt "
    "%}<judge>{% endif %}"
)


# ---- local models


def write_model(
    path,
    numbers: bool,
    seed: int = 0,
    template: str | None = TEMPLATE,
    context: int = 1024,
    first: str = "number",
):
    """A random Llama whose byte-level tokenizer has 0..100 as single tokens, or only digits. The
    token that it writes first after a prompt is a number, "-", or a letter with every number far
    behind.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = (
        [(a, b) for a, b in itertools.product("123456789", "0123456789")] + [("10", "0")]
        if numbers
        else []
    )
    vocab = {
        piece: i
        for i, piece in enumerate(["<pad>", "<s>", "</s>", *alphabet, *(a + b for a, b in pairs)])
    }
    backend = Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<pad>", "<s>", "</s>")]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
    )
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.2)
        digits = [vocab[d] for d in "0123456789"] + [vocab[a + b] for a, b in pairs]
        model.lm_head.weight[digits] *= 4
        if first != "number":
            text = tokenizer.apply_chat_template(
                POLITICAL_LEAN.messages("x"), tokenize=False, add_generation_prompt=True
            )
            state = model.model(
                tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            ).last_hidden_state[0, -1]
            model.lm_head.weight[[vocab["-"]] if first == "minus" else digits] += state * (
                2.0 if first == "minus" else -2.0
            )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge")
    return (*write_model(path, numbers=True), lm.load(path))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge")
    model, tokenizer = write_model(path, numbers=False, seed=1)
    end_after_two_digits(model, tokenizer)
    model.save_pretrained(path)
    return model, tokenizer, lm.load(path)


def end_after_two_digits(model, tokenizer):
    """Let some replies end after two tokens: the end's row of the head has the part of the mean
    state there that is in no mean state before. A random head writes on, past every score.
    """
    states = []
    with torch.no_grad():
        for text in texts_for(8):
            ids = quality_ids(tokenizer, text)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=2
            )
            states.append(model.model(out).last_hidden_state[0, ids.shape[1] - 1 :])
        first, second, at = torch.stack(states).mean(0)
        for before in (first, second):
            at = at - at @ before / (before @ before) * before
        model.lm_head.weight[model.config.eos_token_id] = 2 * at / at.norm()


def quality_ids(tokenizer, text):
    prompt = tokenizer.apply_chat_template(
        QUALITY.messages(text), tokenize=False, add_generation_prompt=True
    )
    return tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids


def texts_for(n):
    rng = np.random.default_rng(0)
    words = "the a tax cat vote mat left right runs sits law of and 1 2".split()
    return [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(n)]


def first_distribution(model, tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits[0, -1].double().softmax(-1).numpy()


@pytest.mark.parametrize(
    ("first", "prompt"),
    [
        ("number", QUALITY),
        ("number", POLITICAL_LEAN),
        ("minus", POLITICAL_LEAN),
        ("letter", QUALITY),
    ],
)
def test_first_token_scores_equal_the_torch_distribution(single, tmp_path, first, prompt):
    model, tokenizer, ours = single
    if first != "number":
        model, tokenizer = write_model(tmp_path, numbers=True, first=first)
        ours = lm.load(tmp_path)
    texts = texts_for(4) + TEXTS
    found = judge(texts, ours, prompt)
    kinds = set()
    for i, text in enumerate(texts):
        p = first_distribution(model, tokenizer, prompt.messages(text))
        order = np.argsort(-p)[:20]
        names = [tokenizer.decode([t]) for t in order]
        top = next((n for n in names if n.isdigit() or (prompt.none and n in ("-", "-1"))), None)
        share = np.array([p[tokenizer.convert_tokens_to_ids(str(v))] for v in range(101)])
        if top is None:
            kinds.add("unparsable")
            assert found.unparsable[i] and np.isnan(found.score[i]) and np.isnan(found.expected[i])
        elif not top.isdigit():
            kinds.add("none")
            assert found.none[i] and not found.unparsable[i] and np.isnan(found.score[i])
        else:
            kinds.add("score")
            assert found.score[i] == int(top) and not found.none[i] and not found.unparsable[i]
            assert found.expected[i] == pytest.approx(
                (share * np.arange(101)).sum() / share.sum(), abs=2e-2
            )
    assert {"number": "score", "minus": "none", "letter": "unparsable"}[first] in kinds


def test_number_tokens(single, digits):
    singles = {v for _, v, spaced in judge_model.number_tokens(single[2].tokenizer) if not spaced}
    assert singles == {*range(101), -1}
    assert {v for _, v, _ in judge_model.number_tokens(digits[2].tokenizer)} == {*range(10), -1}


def test_short_replies_equal_generate(digits):
    """Where numbers have several tokens, a few are written greedily, as transformers writes them,
    and parsed.
    """
    model, tokenizer, ours = digits
    texts = texts_for(8)
    found = judge(texts, ours)
    values = []
    for i, text in enumerate(texts):
        ids = quality_ids(tokenizer, text)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
        )[0, ids.shape[1] :]
        value = parse_reply(tokenizer.decode(out, skip_special_tokens=True))
        assert found.unparsable[i] == (value is None)
        assert value is None or found.score[i] == value
        values.append(value)
    assert len(set(values)) > 2 and None in values  # scores and replies without one
    assert np.isnan(found.expected).all()


def test_chat_templates_render_as_in_transformers(single):
    _, tokenizer, ours = single
    for messages in (
        QUALITY.messages("  a text\n"),
        POLITICAL_LEAN.messages("a {text}"),
        POLITICAL_LEAN.messages("x", "user"),
    ):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert judge_model.render(ours, judge_model.chat_template(ours), messages) == theirs
    with pytest.raises(ValueError, match="cannot render messages of tool.*no tools.*role = 'user'"):
        judge_model.render(ours, TEMPLATE, [{"role": "tool", "content": "x"}])


def test_a_saved_model_keeps_its_chat_template(single, tmp_path):
    _, tokenizer, ours = single
    lm.save(ours, tmp_path / "saved")
    messages = QUALITY.messages("a text")
    options = {"tokenize": False, "add_generation_prompt": True}
    saved = hf.AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = tokenizer.apply_chat_template(messages, **options)
    assert saved.apply_chat_template(messages, **options) == expected
    assert judge_model.chat_template(lm.load(tmp_path / "saved")) == TEMPLATE


def test_a_model_without_template_reads_plain_lines(tmp_path):
    write_model(tmp_path, numbers=True, template=None)
    ours = lm.load(tmp_path)
    assert judge_model.chat_template(ours) is None
    assert (
        judge_model.render(ours, None, POLITICAL_LEAN.messages("vote"))
        == POLITICAL_LEAN.system + "\nvote\n"
    )


def test_long_texts_are_cut_and_small_contexts_refused(single, tmp_path):
    _, _, ours = single
    found = judge(["word " * 200_000, "short"], ours)
    assert (
        len(found.score) == 2 and (np.isfinite(found.score) | found.unparsable | found.none).all()
    )
    write_model(tmp_path, numbers=True, context=128)
    with pytest.raises(
        ValueError, match="quality prompt has .* no room for a text in the 128 tokens"
    ):
        judge(["x"], lm.load(tmp_path))


def test_a_judgement_does_not_depend_on_the_other_texts(single):
    ours = single[2]
    texts = texts_for(6)
    together = judge(texts, ours, batch=512)
    for i, text in enumerate(texts):
        alone = judge([text], ours, batch=512)
        np.testing.assert_array_equal(
            [alone.score[0], alone.expected[0]], [together.score[i], together.expected[i]]
        )


def test_bad_input(single):
    ours = single[2]
    empty = judge([], ours)
    assert [len(x) for x in empty] == [0] * 5
    with pytest.raises(ValueError, match="texts\\[0\\] is int 3"):
        judge([3], ours)
    with pytest.raises(ValueError, match="role is 'boss'"):
        judge(["x"], ours, role="boss")


# ---- metrics


def test_a_local_model_by_name(single):
    ours = single[2]
    name = f"judge_quality(model={ours.name!r}, variant='expected')"
    texts = texts_for(12)
    (found,) = registry.evaluate([name], texts=[texts])[name]
    assert found == pytest.approx(np.nanmean(judge(texts, ours).expected))


def test_expected_scores_are_refused_where_a_model_has_none(single, digits):
    """Before a run: its values would all be nan."""
    for model, more in ((digits[2].name, ""), (single[2].name, ", reply='short'")):
        for metric in ("judge_quality", "judge_political_lean"):
            name = f"{metric}(model={model!r}, variant='expected'{more})"
            with pytest.raises(ValueError, match="'expected' needs the probabilities of first"):
                registry.check([name])


def test_the_judge_of_language_says_yes_or_no(monkeypatch):
    def answered(texts, prompt, *backend):
        assert prompt is ENGLISH and "{text}" in prompt.system
        return Corpus.of(texts), judgement([1, 0, None, 70], np.full(4, np.nan))

    monkeypatch.setattr(judges, "_ask", answered)
    name = "judge_english(model='m')"
    assert registry.evaluate([name], texts=[["a", "b", "c", "d"]])[name].tolist() == [0.5]
    (values,) = registry.evaluate_texts([name], texts=[["a", "b", "c", "d"]])[name]
    np.testing.assert_array_equal(values, [1, 0, np.nan, np.nan])


def test_a_judge_needs_a_model():
    with pytest.raises(ValueError, match="the quality judge has no model"):
        registry.evaluate(["judge_quality"], texts=[["x"]])
    with pytest.raises(ValueError, match="variant is 'median'"):
        registry.evaluate(["judge_quality(model='m', variant='median')"], texts=[["x"]])


def test_the_judge_of_three_levels_has_three_scores(tmp_path):
    replies = {"Good post.": "2", "Middling post.": "1", "Odd post.": "7", "Mute post.": "none"}

    def reply(body, number):
        said = body["messages"][0]["content"]
        assert "0 for low quality" in said and body["max_tokens"] == 1
        text = next(text for text in replies if text in said)
        return completion(replies[text], (replies[text], -0.1))

    with Server(reply) as server:
        options = (
            f"model='m', url='{server.url}', reply='first_token', cache='{tmp_path / 'judges'}'"
        )
        name = f"judge_quality_level({options})"
        scores = registry.evaluate_texts([name], texts=[list(replies)])[name][0]
        np.testing.assert_array_equal(scores, [2, 1, np.nan, np.nan])
        share = f"judge_unparsable(prompt='quality_level', {options})"
        found = registry.evaluate([name, share], texts=[list(replies)])
        assert found[name][0] == 1.5 and found[share][0] == 0.5
