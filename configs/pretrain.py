"""The four tiny base models from scratch, on docstring prose.

A tokenizer and Llama, Qwen2, GPT-2 and OPT models.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.study = "pretrain"
    c.title = "jaxloop tiny bases"

    c.data = ConfigDict()
    c.data.source = "docs"  # the libraries of data.docs.PRETRAIN; studies use the others
    c.data.held_out = 0.05

    c.bases = ConfigDict()
    for name, sizes in dict(
        llama=dict(kv_heads=5, mlp=432),
        qwen2=dict(kv_heads=1, mlp=512),
        gpt2=dict(
            kv_heads=5, mlp=640, steps=2000
        ),  # learned positions take longer than rotary ones
        opt=dict(kv_heads=5, mlp=640, steps=2000),
    ).items():
        c.bases[name] = ConfigDict(dict(architecture=name, width=160, layers=4, heads=5, **sizes))

    c.vocab = 3072
    c.context = 256

    c.fit = ConfigDict()
    c.fit.mode = "scratch"
    c.fit.steps = 1000
    c.fit.batch_size = 16  # blocks of `context` tokens
    c.fit.learning_rate = 4e-3
    c.fit.schedule = "cosine"
    c.fit.warmup_steps = 60
    c.fit.weight_decay = 0.1
    c.fit.dropout = "none"  # one pass over the text: nothing is learned by heart
    return c
