"""A small diversity study on disk: ROCStories and NarrativeQA columns, a random one-layer model, an
endpoint that answers what is asked.
"""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np

from jaxloop import lm
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init

NOUNS = (
    "dog cat ship tree king river book lamp coat horse apple field tower wind stone bird".split()
)
VERBS = "saw found lost kept moved opened called carried painted washed".split()


def sentence(rng):
    return (
        f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} {rng.choice(VERBS)} "
        f"by the {rng.choice(NOUNS)}."
    )


def write(folder):
    """Data files, a tokenizer and a random model; returns the config's text."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        rows = [
            {"storytitle": "t", **{f"sentence{i + 1}": sentence(rng) for i in range(5)}}
            for _ in range(count)
        ]
        (folder / f"stories-{split}.jsonl").write_text(
            "\n".join(json.dumps(row | {"split": split}) for row in rows)
        )
    everything = (
        (folder / "stories-train.jsonl").read_text()
        + "\n"
        + (folder / "stories-test.jsonl").read_text()
    )
    (folder / "stories.jsonl").write_text(everything)
    rows = []
    for d in range(8):
        document = {"id": f"d{d}", "summary": {"text": sentence(rng)}, "text": "no"}
        for _ in range(6):
            question, answer = (
                sentence(rng).replace(".", "?"),
                f"{rng.choice(NOUNS)} {rng.choice(NOUNS)}",
            )
            rows.append(
                {
                    "document": document,
                    "question": {"text": question},
                    "answers": [{"text": answer}],
                    "split": "test" if d > 5 else "train",
                }
            )
    (folder / "qa.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tokenizer = bpe.train([everything, " ".join(VERBS)], 320)
    model_config = ModelConfig(
        "llama",
        vocab_size=320,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=192,
    )
    lm.save(Model(model_config, init(jax.random.key(0), model_config), tokenizer), folder / "base")
    return f'''"""A small diversity study."""
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.study = "diversity"
    c.title = "Two <small> tasks"
    c.models = ConfigDict(dict(pool=("{folder}/base",)))
    c.story = ConfigDict(dict(split_column="split", train=24, test=6))
    c.story.sources = ("{folder}/stories.jsonl",)
    c.story.outside = ("{folder}/stories-test.jsonl",)
    c.qa = ConfigDict(dict(split_column="split", per_context=6, train=24, test=6))
    c.qa.source = "{folder}/qa.jsonl"
    c.qa.outside = "{folder}/plain.jsonl"
    c.generator = ConfigDict(dict(url="URL", served="fake", block=8, versions=3, retries=1))
    c.generator.replaced = (6, 6, 6, 3, 3, 3, 0)
    c.generator.topic_sizes = (1, 2, 3, 4, 5, 6, 8)
    c.generator.timeout = 10.0
    c.generated = ConfigDict(dict(levels=(0, 6), ratios=(0.0, 1.0), qa=(12,), story=(12,)))
    c.fixed = ConfigDict(dict(levels=(6,), ratios=(0.5,), qa=(12,), story=(12,)))
    c.variable = ConfigDict(dict(levels=(0,), ratios=(0.5,), qa=(6,), story=(6,)))
    c.variable.mixing = "variable"
    c.control = ConfigDict(dict(qa=8, story=8, duplicates=(0.0, 1.0), shifts=(0.0, 1.0)))
    c.seeds = (0, 1)
    c.fit = ConfigDict(dict(steps=2, batch_size=4, max_length=160, length_buckets=1))
    c.distances = ConfigDict(dict(points=8))
    c.together = 5
    c.run = ConfigDict(dict(keep_compiled=False))
    return c
'''


class Answers:
    """What the endpoint has been asked, and how it answers: as asked, or the text `always`."""

    def __init__(self, always=None, status=200):
        self.prompts, self.always, self.status = [], always, status

    def reply(self, prompt):
        self.prompts.append(prompt)
        if self.always is not None:
            return self.always
        # The same answer to the same request, whenever it is made.
        rng = np.random.default_rng([ord(c) for c in prompt])
        if found := re.search(r"List (\d+) topics", prompt):
            return "\n".join(f"{i + 1}. Topic {i}" for i in range(int(found[1])))
        if found := re.search(r"about the topic: (.*)\.", prompt):
            return " ".join(f"{found[1]} {sentence(rng)}" for _ in range(5))
        if found := re.search(r"Say the following pair in (\d+) other ways", prompt):
            question = re.findall(r"Question: (.*)", prompt)[-1]
            return "\n\n".join(
                f"Question: Again {i} {question}\nAnswer: so {i}" for i in range(int(found[1]))
            )
        count = int(re.search(r"Write (\d+) new questions", prompt)[1])
        # One too few: the rest is asked for again.
        return "\n".join(
            f"Question: {sentence(rng)[:-1]}?\nAnswer: the {rng.choice(NOUNS)}"
            for _ in range(max(1, count - 1))
        )


@contextmanager
def endpoint(answers):
    """The address of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (message,) = body["messages"]
            assert message["role"] == "user"
            text = answers.reply(message["content"])
            data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
