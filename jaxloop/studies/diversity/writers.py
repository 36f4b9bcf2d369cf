"""Who writes the generated sets: a language model of ours or an OpenAI-compatible endpoint.

Requests are answered in blocks. Each block is stored as soon as it is answered, so that a run that
was killed asks for nothing twice.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.config import FitConfig, SampleConfig
from jaxloop.core.keys import chain_key
from jaxloop.lm import family
from jaxloop.lm.generation.prompt import render
from jaxloop.metrics.endpoint import Endpoint, Unreachable, complete
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop
from jaxloop.studies.common import models as base_models
from jaxloop.studies.diversity.config import DiversityConfig

FOLDER = "generated"


class Writer(NamedTuple):
    """Answers prompts.

    name: for messages; write: (request numbers [n], prompts [n]) -> replies [n].
    """

    name: str
    write: Callable[[Sequence[int], Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True)
class ReplyStore:
    """Asks a writer for the replies of one task and stores them in the run directory.

    block: requests that are stored together; attempts: times that lacking results are asked for.
    """

    root: Path
    writer: Writer
    block: int
    attempts: int
    stop: Stop

    def ask(self, name: str, prompts: Sequence[str]) -> list[str]:
        """Return the reply to each prompt. Blocks that are stored already are read."""
        replies: list[str] = []
        for number, at in enumerate(range(0, len(prompts), self.block)):
            part = list(prompts[at : at + self.block])
            stem = f"{FOLDER}/{name}/block={number:05d}"
            about = {"requests": zlib.crc32(repr(part).encode("utf-8", "backslashreplace"))}
            answers = stored_replies(self.root, stem, about)
            if answers is None:
                numbers = [zlib.crc32(f"{name} {at + i}".encode()) for i in range(len(part))]
                answers = self.writer.write(numbers, part)
                (self.root / stem).parent.mkdir(parents=True, exist_ok=True)
                tables.write_parquet(
                    self.root / f"{stem}.parquet", {"prompt": part, "reply": answers}
                )
                checkpoint.write_manifest(self.root, f"{stem}.json", [f"{stem}.parquet"], about)
                LOGGER.info(
                    "%s: %s of %s replies", name, f"{at + len(part):,}", f"{len(prompts):,}"
                )
                self.stop.check()
            replies += answers
        return replies

    def collect(
        self, name: str, wanted: Sequence[int], prompt: Callable, parse: Callable
    ) -> list[list]:
        """Return `wanted[i]` results for every item i, and ask again for those that are lacking.

        prompt(item, missing, attempt) -> text; parse(item, reply) -> results.

        Raises ValueError where something is lacking after all attempts, naming the writer and what
        it answered last.
        """
        results: list[list] = [[] for _ in wanted]
        last = ""
        for attempt in range(self.attempts):
            open_ = [i for i, count in enumerate(wanted) if len(results[i]) < count]
            if not open_:
                return results
            replies = self.ask(
                f"{name}/attempt={attempt}",
                [prompt(i, wanted[i] - len(results[i]), attempt) for i in open_],
            )
            for i, reply in zip(open_, replies, strict=True):
                results[i] += parse(i, reply)[: wanted[i] - len(results[i])]
                last = reply or last
        lacking = sum(count - len(answers) for count, answers in zip(wanted, results, strict=True))
        if lacking:
            last_reply = (
                f"the last reply was {' '.join(last.split())[:80]!r}"
                if last.strip()
                else "every reply was empty"
            )
            raise ValueError(
                f"generator: {self.writer.name} gave {lacking} of {sum(wanted)} results of "
                f"{name} not in {self.attempts} tries; {last_reply}"
            )
        return results


def stored_replies(root: Path, stem: str, about: Mapping) -> list[str] | None:
    """Return the replies of a stored block, or None if it is absent or of other requests."""
    if not (root / f"{stem}.json").exists():
        return None
    try:
        manifest = checkpoint.verify(root, f"{stem}.json")
    except checkpoint.CorruptCheckpointError as error:
        LOGGER.warning("%s; its requests are made again", error)
        return None
    if manifest["about"] != about:
        return None
    return list(tables.read_parquet(root / f"{stem}.parquet")["reply"])


def endpoint_writer(settings: DiversityConfig, root: Path) -> Writer:
    """Return a writer that asks an endpoint for chat completions.

    Each reply is in `replies.sqlite` of the run directory as soon as it arrives.
    """
    g = settings.generator
    endpoint = Endpoint(
        g.url or "",
        g.served,
        key=g.key,
        concurrency=g.concurrency,
        timeout=g.timeout,
        retries=g.retries,
        temperature=g.temperature,
        max_tokens=g.max_tokens,
        top_logprobs=0,
        cache=str(root / "replies.sqlite"),
    )

    def write(numbers, prompts):
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        try:
            # The number keeps two draws of the same prompt apart.
            return [reply.text for reply in complete(endpoint, messages, draws=numbers)]
        except Unreachable as error:
            raise ValueError(
                f"generator: {str(error).rstrip('.')}; what it answered is kept, the same "
                "command goes on"
            ) from None

    return Writer(f"{g.served} at {g.url}", write)


def model_writer(
    settings: DiversityConfig,
    root: Path,
    task: str,
    pairs: Callable[[], tuple[list[str], list[str]]],
) -> Writer:
    """Return a writer that samples from a model of jaxloop.lm, loaded when first needed.

    Where the config says so, it is first trained on `pairs()` (texts, instructions).
    """
    g = settings.generator
    name, to_prompt = g.model or "", _verbatim if continues_openings(settings, task) else render
    loaded: list = []

    def load():
        if not loaded:
            model = base_models.load_model(settings.models, settings.run, name)
            loaded.extend(
                (
                    model,
                    _adapted(settings, root, task, model, pairs, to_prompt) if g.adapt else None,
                )
            )
        return loaded

    # A program holds the caches of as many prompts as it has places for: no more of them than a
    # block asks for.
    sampling = writer_sampling(settings).replace(texts_per_call=g.block, chains_per_call=1)
    options = family.GenerateOptions(dtype=settings.fit.dtype)

    def write(numbers, prompts):

        model, weights = load()
        job = family.GenerateTask(
            chain_key(zlib.crc32(task.encode())),
            weights,
            [to_prompt(p) for p in prompts],
            np.asarray(numbers, np.uint32),
        )
        (result,) = family.generate(model, [job], sampling, options)
        return list(result.texts)

    return Writer(name, write)


def continues_openings(settings: DiversityConfig, task: str) -> bool:
    """Return whether replies continue texts whose openings were the topics."""
    return task == "story" and settings.generator.topics == "openings"


def _verbatim(prompt: str) -> str:
    """The prompt without a template, for a model that follows no instruction."""
    return prompt


def _adapted(
    settings: DiversityConfig,
    root: Path,
    task: str,
    model: Any,
    pairs: Callable[[], tuple[list[str], list[str]]],
    to_prompt: Callable[[str], str],
) -> Any:
    """Return the writer's weights after training on real records, stored in the run directory."""

    stem = f"{FOLDER}/writer-{task}"
    about = {"model": settings.generator.model, "epochs": settings.generator.adapt}
    try:
        if (root / f"{stem}.json").exists() and checkpoint.verify(root, f"{stem}.json")[
            "about"
        ] == about:
            return weights_io.load_tree(root, stem)
    except checkpoint.CorruptCheckpointError as error:
        LOGGER.warning("%s; the writer is trained again", error)
    g, f = settings.generator, settings.fit
    texts, asks = pairs()
    fit = FitConfig(
        mode="full",
        epochs=g.adapt,
        batch_size=f.batch_size,
        learning_rate=g.adapt_rate,
        max_length=min(f.max_length, model.config.max_seq_len),
        dtype=f.dtype,
        length_buckets=f.length_buckets,
    )
    job = family.FitTask(chain_key(zlib.crc32(b"writer")), texts, [to_prompt(a) for a in asks])
    weights = family.fit(model, [job], fit)[0].weights
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.write_manifest(
        root, f"{stem}.json", weights_io.save_tree(root, stem, weights), about
    )
    return weights


def writer_sampling(settings: DiversityConfig) -> SampleConfig:
    """Return how a local writer samples."""
    g = settings.generator
    return SampleConfig(
        temperature=g.temperature, min_p=0.0, top_p=g.top_p, max_new_tokens=g.max_tokens
    )
