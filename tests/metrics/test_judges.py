"""Judges: local models against transformers, an endpoint on this machine's loopback, agreement with people against scipy."""

import http.server
import itertools
import json
import logging
import sqlite3
import threading
import time

import numpy as np
import pytest
import scipy.stats
import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaxloop import lm
from jaxloop.metrics import judges, registry
from jaxloop.metrics.endpoint import Endpoint, Unreachable, complete
from jaxloop.metrics.judges import POLITICAL_LEAN, QUALITY, judge, parse_reply

TEXTS = ["A cat sat on the mat.", "", "taxes, now! 😀 مرحبا", "x " * 40]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}<judge>{% endif %}"
)


# ---- local models -----------------------------------------------------------------------------------------------------


def write_model(path, numbers: bool, seed: int = 0, template: str | None = TEMPLATE, context: int = 1024, first: str = "number"):
    """A random Llama whose byte-level tokenizer has 0..100 as single tokens, or only digits. The token that it writes first after a prompt is
    a number, "-", or a letter with every number far behind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a, b in itertools.product("123456789", "0123456789")] + [("10", "0")] if numbers else []
    vocab = {piece: i for i, piece in enumerate(["<pad>", "<s>", "</s>", *alphabet, *(a + b for a, b in pairs)])}
    backend = Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<s>", "</s>")])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template)
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=context, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.2)
        digits = [vocab[d] for d in "0123456789"] + [vocab[a + b] for a, b in pairs]
        model.lm_head.weight[digits] *= 4
        if first != "number":
            text = tokenizer.apply_chat_template(POLITICAL_LEAN.messages("x"), tokenize=False, add_generation_prompt=True)
            state = model.model(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).last_hidden_state[0, -1]
            model.lm_head.weight[[vocab["-"]] if first == "minus" else digits] += state * (2.0 if first == "minus" else -2.0)
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
    return (*write_model(path, numbers=False, seed=1), lm.load(path))


def texts_for(n):
    rng = np.random.default_rng(0)
    words = "the a tax cat vote mat left right runs sits law of and 1 2".split()
    return [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(n)]


def first_distribution(model, tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits[0, -1].double().softmax(-1).numpy()


@pytest.mark.parametrize(("first", "prompt"), [("number", QUALITY), ("number", POLITICAL_LEAN), ("minus", POLITICAL_LEAN), ("letter", QUALITY)])
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
            assert found.expected[i] == pytest.approx((share * np.arange(101)).sum() / share.sum(), abs=2e-2)
    assert {"number": "score", "minus": "none", "letter": "unparsable"}[first] in kinds


def test_number_tokens(single, digits):
    singles = {v for _, v, spaced in judges.number_tokens(single[2].tokenizer) if not spaced}
    assert singles == {*range(101), -1}
    assert {v for _, v, _ in judges.number_tokens(digits[2].tokenizer)} == {*range(10), -1}


def test_short_replies_equal_generate(digits):
    """Where numbers have several tokens, a few are written greedily, as transformers writes them, and parsed."""
    model, tokenizer, ours = digits
    texts = texts_for(8)
    found = judge(texts, ours)
    for i, text in enumerate(texts):
        prompt = tokenizer.apply_chat_template(QUALITY.messages(text), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
        value = parse_reply(tokenizer.decode(out, skip_special_tokens=True))
        assert found.unparsable[i] == (value is None)
        assert value is None or found.score[i] == value
    assert np.isnan(found.expected).all()


def test_chat_templates_render_as_in_transformers(single):
    _, tokenizer, ours = single
    for messages in (QUALITY.messages("  a text\n"), POLITICAL_LEAN.messages("a {text}"), POLITICAL_LEAN.messages("x", "user")):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert judges._render(ours, judges.chat_template(ours.name), messages) == theirs
    with pytest.raises(ValueError, match="cannot render messages of tool.*no tools.*role = 'user'"):
        judges._render(ours, TEMPLATE, [{"role": "tool", "content": "x"}])


def test_a_model_without_template_reads_plain_lines(tmp_path):
    write_model(tmp_path, numbers=True, template=None)
    ours = lm.load(tmp_path)
    assert judges.chat_template(ours.name) is None
    assert judges._render(ours, None, POLITICAL_LEAN.messages("vote")) == POLITICAL_LEAN.system + "\nvote\n"


def test_long_texts_are_cut_and_small_contexts_refused(single, tmp_path):
    _, _, ours = single
    found = judge(["word " * 200_000, "short"], ours)
    assert len(found.score) == 2 and (np.isfinite(found.score) | found.unparsable | found.none).all()
    write_model(tmp_path, numbers=True, context=128)
    with pytest.raises(ValueError, match="quality prompt has .* no room for a text in the 128 tokens"):
        judge(["x"], lm.load(tmp_path))


def test_a_judgement_does_not_depend_on_the_other_texts(single):
    ours = single[2]
    texts = texts_for(6)
    together = judge(texts, ours, batch=512)
    for i, text in enumerate(texts):
        alone = judge([text], ours, batch=512)
        np.testing.assert_array_equal([alone.score[0], alone.expected[0]], [together.score[i], together.expected[i]])


def test_bad_input(single):
    ours = single[2]
    empty = judge([], ours)
    assert [len(x) for x in empty] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="texts\\[0\\] is int 3"):
        judge([3], ours)
    with pytest.raises(ValueError, match="role is 'boss'"):
        judge(["x"], ours, role="boss")


def test_prompts_are_the_papers():
    message = QUALITY.messages("{text} here")
    assert [m["role"] for m in message] == ["system"] and "Post: {text} here\n\nReply ONLY with the integer score (0-100)." in message[0]["content"]
    system, user = POLITICAL_LEAN.messages("vote")
    assert system["content"].endswith("(0-100 or -1). DO NOT reply with text. Here is the text:") and user == {"role": "user", "content": "vote"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [("85", 85), (" 0\n", 0), ("100.", 100), ("70/100", 70), ("42\nbecause", 42), ("101", None), ("-1", None), ("8 5", None), ("85 because", None), ("", None),
     ("about 70", None), ("7.5", None), ("٤٢", None), ("-5", None), ("1e2", None)],
)  # fmt: skip
def test_replies_are_parsed_and_never_guessed(reply, score):
    assert parse_reply(reply) == score


def test_minus_one_only_where_the_prompt_allows_it():
    assert parse_reply("-1", none=True) == -1 and parse_reply("-2", none=True) is None


# ---- endpoints --------------------------------------------------------------------------------------------------------


class Server:
    """An OpenAI-compatible server on the loopback: answers with `reply(body, number of the request)`, a dict, bytes, or (status, headers, bytes)."""

    def __init__(self, reply, delay=0.0):
        self.requests, self.headers, self.running, self.most = [], [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                time.sleep(delay)
                try:
                    found = reply(body, number)
                    status, headers, data = found if isinstance(found, tuple) else (200, {}, found if isinstance(found, bytes) else json.dumps(found).encode())
                    with lock:
                        outer.running -= 1
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **changes):
        return Endpoint(**dict(url=self.url, model="m", key="JAXLOOP_TEST_KEY", retries=3, longest_wait=0.05, timeout=20.0) | changes)


def completion(text, *top):
    logprobs = {"content": [{"token": top[0][0], "logprob": top[0][1], "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]} if top else None
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}]}


def length_of_last_message(body, number):
    return completion(str(min(100, len(body["messages"][-1]["content"]))))


def test_scores_come_back_in_order_and_equal_texts_are_asked_once(monkeypatch):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key\n")
    with Server(length_of_last_message, delay=0.02) as server:
        texts = ["a" * n for n in range(1, 30)] * 2
        found = judge(texts, server.endpoint(concurrency=4), POLITICAL_LEAN)
        assert found.score.tolist() == [float(len(t)) for t in texts]
        assert len(server.requests) == 29 and 1 < server.most <= 4
        path, body = server.requests[0]
        assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0.01 and body["top_logprobs"] == 20
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret-key"}


def test_no_key_no_header(monkeypatch):
    monkeypatch.delenv("JAXLOOP_TEST_KEY", raising=False)
    with Server(length_of_last_message) as server:
        complete(server.endpoint(), [QUALITY.messages("x")])
        assert "Authorization" not in server.headers[0]


def test_cache_pays_once_and_holds_neither_key_nor_text(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key")
    file = tmp_path / "new" / "replies.sqlite"
    with Server(length_of_last_message) as server:
        endpoint = server.endpoint(cache=str(file))
        first = judge(["one text", "second"], endpoint, POLITICAL_LEAN)
        again = judge(["second", "one text", "third one"], endpoint, POLITICAL_LEAN)
        assert first.score.tolist() == [8, 6] and again.score.tolist() == [6, 8, 9]
        assert len(server.requests) == 3
        judge(["second"], server.endpoint(cache=str(file), temperature=0.5), POLITICAL_LEAN)
        assert len(server.requests) == 4  # another request is another content
    data = b"".join(f.read_bytes() for f in file.parent.iterdir())
    assert b"secret-key" not in data and b"one text" not in data
    assert "secret-key" not in repr(endpoint)


def test_a_failed_run_keeps_what_was_answered(tmp_path):
    def reply(body, number):
        return completion("50") if number <= 3 else (503, {}, b"")

    with Server(reply) as server:
        endpoint = server.endpoint(cache=str(tmp_path / "c.sqlite"), concurrency=1, retries=1)
        with pytest.raises(Unreachable, match=r"m at http://127.0.0.1:\d+/v1 did not answer in 2 tries; the last one gave status 503"):
            judge(texts_for(10), endpoint)
        # One request failed twice, and none was made after it.
        assert len(server.requests) == 5
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        assert db.execute("SELECT count(*) FROM replies").fetchone() == (3,)


def test_passing_failures_are_tried_again():
    failures = [(429, {"Retry-After": "0"}, b""), (500, {}, b"x"), b"<html>not json</html>"]
    with Server(lambda body, number: failures[number - 1] if number <= 3 else completion("12")) as server:
        assert judge(["x"], server.endpoint()).score.tolist() == [12]
        assert len(server.requests) == 4


def test_retry_after_is_waited_for():
    with Server(lambda body, number: (429, {"Retry-After": "1"}, b"") if number == 1 else completion("12")) as server:
        begin = time.monotonic()
        judge(["x"], server.endpoint(longest_wait=5.0))
        assert time.monotonic() - begin >= 1.0


def test_a_date_in_retry_after():
    from email.utils import formatdate

    from jaxloop.metrics.endpoint import _retry_after

    assert 25 < _retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert [_retry_after(v) for v in (None, "soon", "-3", "nan", "inf", formatdate(0))] == [0.0] * 6


@pytest.mark.parametrize(("status", "said"), [(401, "JAXLOOP_TEST_KEY"), (404, "status 404"), (302, "status 302")])
def test_refusals_are_final_and_redirects_not_followed(monkeypatch, status, said):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key")
    with Server(length_of_last_message) as other:
        with Server(lambda body, number: (status, {"Location": other.url + "/chat/completions"}, b"secret-key?")) as server:
            with pytest.raises(Unreachable, match=said) as caught:
                judge(["x"], server.endpoint())
            assert len(server.requests) == 1 and not other.requests
            assert "secret-key" not in str(caught.value)


def test_silence_times_out():
    with Server(length_of_last_message, delay=2.0) as server:
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="in 1 tries"):
            judge(["x"], server.endpoint(timeout=0.1, retries=0))
        assert time.monotonic() - begin < 1.5


def test_a_closed_port_is_unreachable():
    with Server(length_of_last_message) as server:
        endpoint = server.endpoint(retries=1)
    with pytest.raises(Unreachable, match="did not answer in 2 tries"):
        judge(["x"], endpoint)


def test_expected_score_where_numbers_are_one_token():
    replies = {
        "a": completion("42", ("42", -0.1), ("60", -3.0), ("x", -5.0)),
        "b": completion("7", ("7", -0.2), ("80", -2.0)),
        "c": completion("I cannot", ("I", -0.1), ("70", -3.0)),
        "d": completion("-1", ("-1", -0.1), ("50", -3.0)),
    }
    with Server(lambda body, number: replies[body["messages"][-1]["content"]]) as server:
        found = judge(list("abcd"), server.endpoint(), POLITICAL_LEAN)
    weights = np.exp([-0.1, -3.0])
    assert found.score[:2].tolist() == [42, 7] and found.unparsable.tolist() == [False, False, True, False] and found.none.tolist() == [False] * 3 + [True]
    assert found.expected[0] == pytest.approx((weights * [42, 60]).sum() / weights.sum())
    assert np.isnan(found.expected[2:]).all()


def test_no_expected_score_where_numbers_are_written_digit_by_digit():
    with Server(lambda body, number: completion("42", ("4", -0.1), ("6", -3.0))) as server:
        found = judge(["a"], server.endpoint())
    assert found.score.tolist() == [42] and np.isnan(found.expected).all()


def test_one_token_replies_as_in_the_papers_code():
    """max_tokens = 1: the first of the top tokens that is a number; "-" is the beginning of -1."""
    replies = [completion("The", ("The", -0.1), ("70", -2.0), ("80", -3.0)), completion("-", ("-", -0.1), ("50", -2.0)), completion("A", ("A", -0.1), ("B", -2.0))]
    with Server(lambda body, number: replies["abc".index(body["messages"][-1]["content"])]) as server:
        found = judge(list("abc"), server.endpoint(max_tokens=1), POLITICAL_LEAN)
    assert found.score[0] == 70 and found.none.tolist() == [False, True, False] and found.unparsable.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [(dict(url="localhost:80"), "begins with http"), (dict(url="http://me:pw@host/v1"), "environment variable"), (dict(model=""), "model is empty"),
     (dict(concurrency=0), "concurrency is 0"), (dict(timeout=0), "timeout is 0"), (dict(retries=-1), "retries is -1"), (dict(temperature=float("nan")), "temperature is nan")],
)  # fmt: skip
def test_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Endpoint(**dict(url="http://host/v1", model="m") | changes)


def test_a_cache_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "c").write_text("hello, this is no database at all, not even a little one")
    with pytest.raises(ValueError, match="endpoint.cache is .* cannot be used"):
        complete(Endpoint("http://127.0.0.1:1/v1", "m", cache=str(tmp_path / "c")), [QUALITY.messages("x")])


# ---- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_of_many_chains(tmp_path):
    replies = {"left": "10", "right": "90", "cat": "-1", "zzz": "what?"}
    chains = [["left", "right", "cat", "zzz"], ["right"], ["cat", "zzz"], []]
    with Server(lambda body, number: completion(replies[body["messages"][-1]["content"]])) as server:
        options = f"url={server.url!r}, model='m', cache={str(tmp_path / 'c.sqlite')!r}"
        names = [f"judge_political_lean({options})", f"judge_not_political({options})", f"judge_unparsable(prompt='political_lean', {options})"]
        found = registry.evaluate(names, texts=chains)
        asked = len(server.requests)
        each = registry.evaluate_texts(names[:1], texts=chains)[names[0]]
    assert asked == 4  # three metrics, one judgement
    np.testing.assert_array_equal(found[names[0]], [50, 90, np.nan, np.nan])
    np.testing.assert_array_equal(found[names[1]], [1 / 3, 0, 1, np.nan])
    np.testing.assert_array_equal(found[names[2]], [0.25, 0, 0.5, 0])
    np.testing.assert_array_equal(each[0], [10, 90, np.nan, np.nan])


def test_an_endpoint_that_is_down_leaves_the_other_metrics(tmp_path, caplog):
    names = [f"judge_quality(url='http://127.0.0.1:9/v1', model='m', cache={str(tmp_path / 'c')!r})", "text_length"]
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)
        found = registry.evaluate(names, texts=[["one"], ["two", "x"]])
    assert np.isnan(found[names[0]]).all() and found["text_length"].tolist() == [3, 2]
    assert "judge_quality" in caplog.text and "did not answer" in caplog.text


def test_a_local_model_by_name(single):
    ours = single[2]
    name = f"judge_quality(model={ours.name!r}, reading='expected')"
    texts = texts_for(12)
    (found,) = registry.evaluate([name], texts=[texts])[name]
    assert found == pytest.approx(np.nanmean(judge(texts, ours).expected))


def test_a_judge_needs_a_model():
    with pytest.raises(ValueError, match="the quality judge has no model"):
        registry.evaluate(["judge_quality"], texts=[["x"]])
    with pytest.raises(ValueError, match="reading is 'median'"):
        registry.evaluate(["judge_quality(model='m', reading='median')"], texts=[["x"]])


# ---- agreement with people --------------------------------------------------------------------------------------------


def write_stories(path, stories=40, seed=0):
    rng = np.random.default_rng(seed)
    gen = lambda: {g: {"text": " told " + "very " * int(rng.integers(0, 9)), "score": rng.integers(1, 6, 5).tolist()} for g in judges.GENERATORS}  # noqa: E731
    data = {str(i): {"prompt": f"story {i}", "gold_response": "x", "gen": gen()} for i in range(stories)}
    path.write_text(json.dumps(data))
    return data


def test_validation_equals_scipy(tmp_path):
    data = write_stories(tmp_path / "mans.json")
    texts, human, story = judges.read_openmeva(tmp_path / "mans.json")
    assert len(texts) == 200 and texts[7] == data["1"]["prompt"] + data["1"]["gen"]["gpt_kg"]["text"] and human[7] == np.mean(data["1"]["gen"]["gpt_kg"]["score"])
    noise = np.random.default_rng(1).normal(0, 0.7, len(texts))
    scores = np.round(20 * (human + noise)).clip(0, 100)
    scores[[3, 50]] = np.nan
    found = judges.validate_judge(lambda t: scores, tmp_path / "mans.json", draws=500)
    ok = np.isfinite(scores)
    assert (found.n, found.unparsable) == (198, 2)
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(scores[ok], human[ok]).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(scores[ok], human[ok]).statistic, abs=1e-12)
    # The bootstrap of scipy, over stories, to the error of 500 draws.
    groups = [np.flatnonzero(ok & (story == s)) for s in range(40)]

    def statistic(chosen):
        rows = np.concatenate([groups[i] for i in chosen])
        return scipy.stats.pearsonr(scores[rows], human[rows]).statistic

    theirs = scipy.stats.bootstrap((np.arange(40),), statistic, n_resamples=500, vectorized=False, method="percentile", rng=0).confidence_interval
    assert found.pearson_interval == pytest.approx(tuple(theirs), abs=0.03)
    assert found.spearman_interval[0] < found.spearman < found.spearman_interval[1]


def test_validation_of_degenerate_judges(tmp_path):
    write_stories(tmp_path / "mans.json", 3)
    found = judges.validate_judge(lambda t: np.full(len(t), 50.0), tmp_path / "mans.json", draws=20)
    assert np.isnan([found.pearson, found.spearman, *found.pearson_interval]).all()
    found = judges.validate_judge(lambda t: np.full(len(t), np.nan), tmp_path / "mans.json", draws=20)
    assert (found.n, found.unparsable) == (0, 15) and np.isnan(found.pearson)
    with pytest.raises(ValueError, match=r"shape \[2\] for 15 texts"):
        judges.validate_judge(lambda t: np.zeros(2), tmp_path / "mans.json")


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"0": {"prompt": "x"}}', '{"0": {"prompt": "x", "gen": {"gpt": {"text": "y", "score": []}}}}'])
def test_files_of_another_form_are_refused(tmp_path, content):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(ValueError, match="OpenMEVA form|holds no stories"):
        judges.read_openmeva(tmp_path / "f.json", ["gpt"])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json cannot be read"):
        judges.read_openmeva(tmp_path / "none.json")
