"""Makes tiny base models from scratch: one tokenizer, and one model for each entry of `bases`.

Each base is a directory in Hugging Face format with a model card (README.md).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxloop.config import FitConfig
from jaxloop.lm import Model
from jaxloop.lm.io import bpe, huggingface
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import count_parameters
from jaxloop.lm.training import pretrain
from jaxloop.lm.training.step import TrainOptions
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.common.run import Outcome, RunContext, Steps, run_study
from jaxloop.studies.pretrain import cost, report
from jaxloop.studies.pretrain.config import CONFIG, PretrainConfig
from jaxloop.studies.pretrain.prepare import Prepared, prepare

__all__ = ["CONFIG", "check", "plan", "run"]

# Steps between two progress lines.
PROGRESS_STEPS = 100


def check(config: PretrainConfig, workdir: Path | None = None) -> list[str]:
    """Read the data and return a line that says how much of it there is."""
    prepared = prepare(config)
    texts = prepared.train_texts + prepared.heldout_texts
    return [
        f"data: {len(prepared.train_texts):,} texts to train on, {len(prepared.heldout_texts):,} "
        f"held out, {sum(map(len, texts)):,} characters"
    ]


def plan(config: PretrainConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return the sizes of what a run would make."""
    return cost.table(config)


def run(config: PretrainConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Make every base that is not in `workdir` yet, as `workdir`/bases/NAME, and return 0."""
    steps = Steps(prepare, cost.disk_bytes, _make_bases, shared=False)
    return run_study(steps, config, workdir, argv=argv)


def _make_bases(context: RunContext[PretrainConfig, Prepared]) -> Outcome:
    config, prepared = context.config, context.prepared
    tokenizer = bpe.train(prepared.train_texts, config.vocab)
    for number, name in enumerate(config.bases):
        folder = context.root / "bases" / name
        # Written last: without it the base is not complete.
        card = folder / "README.md"
        if card.exists():
            continue
        model = _trained(config, prepared, name, tokenizer, config.seed + number)
        model = _with_dtype(model, config.dtype)
        # Measured with the weights as they are stored, rounded to `config.dtype`.
        bits = pretrain.bits_per_character(_with_dtype(model, "float32"), prepared.heldout_texts)
        folder.parent.mkdir(exist_ok=True)
        huggingface.save(model, folder)
        text = report.card(
            config, prepared, name, parameters=count_parameters(model.config), bits=bits
        )
        write_atomic(card, text.encode())
        LOGGER.info("%s: %.3f bits per character held out; written to %s", name, bits, folder)
    return Outcome()


def _trained(
    config: PretrainConfig, prepared: Prepared, name: str, tokenizer: Tokenizer, seed: int
) -> Model:
    base = prepared.bases[name]
    options = TrainOptions(optimizer=config.optimizer, adam_betas=(0.9, config.adam_b2))
    return pretrain.pretrain(
        base.model_config,
        tokenizer,
        prepared.train_texts,
        prepared.groups,
        base.fit,
        options,
        seed=seed,
        block=config.context,
        on_progress=_progress(name, base.fit, config.context, options.steps_per_call),
    )


def _progress(
    name: str, fit: FitConfig, block: int, steps_per_call: int
) -> Callable[[int, float], None]:
    """A function(step, loss) that logs a line about every `PROGRESS_STEPS` steps."""
    start = time.monotonic()

    def log(step: int, loss: float) -> None:
        if step % PROGRESS_STEPS < steps_per_call or step == fit.steps:
            rate = step * fit.batch_size * block / (time.monotonic() - start)
            LOGGER.info(
                "%s: step %d of %d, loss %.3f, %.0f tokens/s", name, step, fit.steps, loss, rate
            )

    return log


def _with_dtype(model: Model, dtype: str) -> Model:
    return model._replace(
        params=jax.tree.map(lambda weight: weight.astype(jnp.dtype(dtype)), model.params)
    )
