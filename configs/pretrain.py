"""The tiny base models from scratch, on docstring prose, with their tokenizer.

`:tiny` makes a Llama, a Qwen2 and a GPT-2 model, `:longer` the Llama of the quickstart, and
`:shapes` the short runs that chose its shape.
"""

from ml_collections import ConfigDict


def get_config(scale="tiny"):
    """`tiny`: three architectures, in an hour of a core each; `longer`: one model, trained with
    Muon on six passes over the text, in an hour and three quarters; `shapes`: as many parameters
    in three, four and six layers, half a pass each, in 25 minutes.
    """
    if scale not in ("tiny", "longer", "shapes"):
        raise ValueError(f"scale {scale!r} is not allowed; choose tiny, longer or shapes")
    c = ConfigDict()
    c.study = "pretrain"
    c.title = "jaxloop tiny bases"

    c.data = ConfigDict()
    c.data.source = "docs"  # the libraries of data.docs.PRETRAIN; studies use the others
    c.data.held_out = 0.05

    bases = dict(
        llama=dict(kv_heads=5, mlp=432),
        qwen2=dict(kv_heads=1, mlp=512),
        # Learned positions take longer than rotary ones.
        gpt2=dict(kv_heads=5, mlp=640, steps=2000),
    )
    if scale == "longer":
        bases = dict(llama_longer=dict(architecture="llama", kv_heads=1, mlp=512))
    if scale == "shapes":
        bases = dict(
            deep=dict(width=128, layers=6, heads=4, mlp=472),
            middle=dict(mlp=512),
            wide=dict(width=192, layers=3, heads=6, mlp=504),
        )
        for base in bases.values():
            base.update(architecture="llama", kv_heads=1)
    c.bases = ConfigDict()
    for name, sizes in bases.items():
        common = dict(architecture=name, width=160, layers=4, heads=5)
        c.bases[name] = ConfigDict(common | sizes)

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
    c.fit.dropout = "none"  # few passes over the text: little is learned by heart
    if scale != "tiny":
        c.optimizer = "muon"
        c.fit.steps = 2400 if scale == "longer" else 200
        c.fit.learning_rate = 8e-3
        c.fit.schedule = "linear"
    return c
