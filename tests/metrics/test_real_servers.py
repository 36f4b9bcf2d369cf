"""Judges behind real OpenAI-compatible servers on the loopback, which serve a tiny base.

`transformers serve` and the server of llama-cpp-python are started where the extra `servers` is
installed. Checked are the connection, requests at once, log-probabilities where a server has them,
and a server that is restarted while it is being asked.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import jaxloop
from jaxloop import lm
from jaxloop.metrics import judge_model, registry
from jaxloop.metrics.endpoint import Endpoint, complete
from jaxloop.metrics.judge_replies import QUALITY
from jaxloop.metrics.judges import judge
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BASE = Path(jaxloop.__file__).parent / "assets" / "bases" / "llama"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
TEXTS = [f"{word} comes {n} times." for n in range(3) for word in ("spring", "rain", "a fox", "he")]
NEEDS = {
    "transformers": ("torch", "transformers", "fastapi", "uvicorn", "openai"),
    "llama.cpp": ("llama_cpp", "gguf", "fastapi", "uvicorn", "sse_starlette"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny Llama with a chat template, which it does not have of its own."""
    folder = tmp_path_factory.mktemp("served") / "base"
    shutil.copytree(BASE, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_gguf(base, path):
    """The base as a GGUF file in float32, as llama.cpp's own converter writes Llamas."""
    import gguf

    model = lm.load(str(base))
    c = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    pieces = [model.tokenizer.backend.id_to_token(i) for i in range(c.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if i < 2 else normal for i in range(c.vocab_size)])
    writer.add_token_merges(merges(base))
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    of_layer = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i in range(c.num_layers):
        for ours, theirs in of_layer.items():
            names[f"model.layers.{i}.{ours}.weight"] = f"blk.{i}.{theirs}.weight"
    for name, tensor in torch_weights(base).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Rotated pairs stand side by side in llama.cpp, half a head apart in transformers.
            heads, width = c.num_heads, tensor.shape[0] // c.num_heads
            tensor = tensor.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names[name], np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def torch_weights(base):
    from safetensors.numpy import load_file

    tensors = load_file(base / "model.safetensors")
    return {name: t.astype(np.float32) for name, t in tensors.items() if name != "lm_head.weight"}


def merges(base):
    import json

    found = json.loads((base / "tokenizer.json").read_text())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in found]


class Served:
    """A server process; `start` returns when it answers."""

    # More threads make models of this size slower, not faster.
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def __init__(self, words, port, model, folder):
        self.words, self.port, self.model, self.folder = words, port, model, folder
        self.url = f"http://127.0.0.1:{port}/v1"
        self.health = f"{self.url}/models"
        self.process = None

    def start(self):
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                self.words, stdout=log, stderr=log, env=os.environ | self.environment
            )
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.health, timeout=5).close()
                return self
            if self.process.poll() is not None:
                pytest.fail((self.folder / "server.log").read_text()[-2000:], pytrace=False)
            time.sleep(0.5)
        pytest.fail("the server does not answer", pytrace=False)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def metric(self, cache, **options):
        words = {"model": self.model, "url": self.url, "cache": str(cache)} | options
        return f"judge_quality({', '.join(f'{k}={v!r}' for k, v in words.items())})"


def need(name):
    """Skips a test where a server is not installed."""
    lacking = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if lacking:
        pytest.skip(f"{name} cannot serve without {', '.join(lacking)} (extra `servers`)")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def transformers_serve(base, folder):
    """`transformers serve` of a directory, not started."""
    run, port = "from transformers.cli.transformers import main; main()", free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = Served(
        [sys.executable, "-c", run, "serve", str(base), *where], port, str(base), folder
    )
    server.health = server.url.removesuffix("/v1") + "/health"
    return server


def llama_cpp_server(base, folder):
    write_gguf(base, folder / "base.gguf")
    port = free_port()
    words = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "base.gguf")]
    words += ["--host", "127.0.0.1", "--port", str(port), "--model_alias", "base"]
    words += ["--logits_all", "true", "--n_ctx", "256"]
    return Served(words, port, "base", folder)


@pytest.fixture(scope="module", params=sorted(NEEDS))
def served(request, base, tmp_path_factory):
    need(request.param)
    make = transformers_serve if request.param == "transformers" else llama_cpp_server
    server = make(base, tmp_path_factory.mktemp("server"))
    server.name = request.param
    server.start()
    yield server
    server.stop()


def endpoint(served, **changes):
    return Endpoint(**dict(url=served.url, model=served.model, retries=2) | changes)


def test_it_is_reached_and_what_it_does_not_know_is_refused(served, tmp_path):
    assert registry.ask_judges([served.metric(tmp_path / "c.sqlite")]) == []
    (line,) = registry.ask_judges(
        [served.metric(tmp_path / "c.sqlite").replace(f":{served.port}/v1", f":{served.port}/v2")]
    )
    assert "refuses with status 404" in line


def test_requests_at_once_give_what_single_ones_give(served):
    conversations = [QUALITY.messages(text) for text in TEXTS]
    together = complete(endpoint(served, concurrency=8), conversations)
    alone = [complete(endpoint(served), [one])[0] for one in conversations]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert len({reply.text for reply in together}) >= 1 and all(r.text for r in together)


def test_log_probabilities_are_those_of_the_model(served, base):
    texts = TEXTS[:4]
    replies = complete(endpoint(served, max_tokens=1), [QUALITY.messages(text) for text in texts])
    if not replies[0].first:
        assert served.name == "transformers"  # it ignores `logprobs`
        return
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    model = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ours = lm.load(str(base))
    for text, reply in zip(texts, replies, strict=True):
        prompt = judge_model.render(ours, TEMPLATE, QUALITY.messages(text))
        with torch.no_grad():
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            expected = model(ids).logits[0, -1].log_softmax(-1)
        values, tokens = expected.topk(20)
        assert len(reply.first) == 20
        assert [t for t, _ in reply.first[:3]] == [tokenizer.decode([t]) for t in tokens[:3]]
        # llama.cpp keeps its cache of keys and values in float16.
        np.testing.assert_allclose([p for _, p in reply.first], values.numpy(), atol=2e-2)


@pytest.mark.parametrize("reply", ["first_token", "short"])
def test_both_readings_count_what_is_no_score(served, tmp_path, reply):
    names = registry.with_unparsable([served.metric(tmp_path / "c.sqlite", reply=reply)])
    found = registry.evaluate(names, texts=[TEXTS])
    quality, unparsable = (found[name][0] for name in names)
    assert 0 <= unparsable <= 1 and np.isnan(quality) == (unparsable == 1)


def test_a_restart_in_the_middle_loses_nothing(served, tmp_path):
    texts = [f"{text} Once more: {n}." for n in range(4) for text in TEXTS]
    asked = endpoint(
        served, cache=str(tmp_path / "c.sqlite"), concurrency=2, retries=400, longest_wait=2.0
    )
    found = []
    asking = threading.Thread(target=lambda: found.append(judge(texts, asked)))
    asking.start()
    conversations = [QUALITY.messages(text) for text in texts]
    while replies_in(asked) < 4:
        time.sleep(0.02)
    served.stop()
    kept = replies_in(asked)
    time.sleep(1.0)
    assert asking.is_alive() and kept < len(texts)
    served.start()
    asking.join(600)
    assert not asking.is_alive() and len(found[0].score) == len(texts)
    assert replies_in(asked) == len(conversations)


def replies_in(asked):
    import sqlite3

    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(asked.cache)) as db:
        return db.execute("SELECT count(*) FROM replies").fetchone()[0]
    return 0
