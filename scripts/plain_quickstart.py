"""The quickstart as a script of torch, transformers and peft, as one writes it without jaxloop.

    python scripts/plain_quickstart.py --texts=FILE [--generations=10] [--out=FILE.json]

Four chains: a synthetic share of 1/8 and of 1, two seeds each. In every generation the base gets a
fresh adapter, trained for 20 steps of 16 texts on 256 texts drawn from the pool of the chain; it
writes the next synthetic texts, and 96 of what it writes are measured as the quickstart measures
them: semantic diversity, self-BLEU, distinct words and word pairs, length, and the loss on 64
held-out texts. Settings are those of configs/quickstart.py; the draws are this script's own, so the
texts are others.

FILE holds a JSON list of texts; those of 16 to 96 tokens are used. `bench_plain_quickstart.py`
writes it and runs both. Needs torch, transformers, peft, sacrebleu. Two processes of one thread, a
chain after another in each, take less time on two cores than one process of two threads.
"""

import argparse
import json
import multiprocessing
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _flags import whole

PROMPT = "### User:\nWrite a paragraph of documentation.\n### Assistant:\n"
SIZE, EVAL, HELD_OUT = 256, 96, 64
STEPS, BATCH, RATE, MIN_LENGTH, MAX_LENGTH = 20, 16, 8e-3, 16, 96
RANK, NEW_TOKENS, TEMPERATURE, MIN_P = 16, 64, 1.5, 0.2
CHAINS = ((1 / 8, 0), (1 / 8, 1), (1.0, 0), (1.0, 1))
Torch = Any  # the module, which the parent does not import


def adapted(folder: str, torch: Torch) -> tuple[Any, Any]:
    """(model with a fresh adapter on every linear layer, its tokenizer)."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(base, config), tokenizer


def batch_of(texts: Sequence[str], tokenizer: Any, torch: Torch) -> dict[str, Any]:
    """Token ids, mask and labels of prompt, text and end; only text and end are learned."""
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    rows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((prompt + ids + [tokenizer.eos_token_id])[:MAX_LENGTH])
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : len(prompt)] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(
    model: Any, tokenizer: Any, texts: Sequence[str], rng: random.Random, torch: Torch
) -> None:
    """20 steps of AdamW, linear decay after one step of warm-up."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    model.train()
    order = [i for _ in range(2) for i in rng.sample(range(len(texts)), len(texts))]
    for step in range(STEPS):
        rows = [texts[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - max(step - 1, 0) / (STEPS - 1))
        loss = model(**batch_of(rows, tokenizer, torch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def write(model: Any, tokenizer: Any, count: int, torch: Torch, batch: int = 64) -> list[str]:
    """`count` texts, sampled with temperature and min_p from the merged model."""
    model.eval()
    texts: list[str] = []
    prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        while len(texts) < count:
            rows = prompt.expand(min(batch, count - len(texts)), -1)
            out = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=TEMPERATURE,
                min_p=MIN_P,
                top_k=0,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts += tokenizer.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)
    return texts


def held_out_loss(model: Any, tokenizer: Any, texts: Sequence[str], torch: Torch) -> float:
    """Mean over tokens, in nats."""
    total = count = 0.0
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            batch = batch_of(texts[start : start + 32], tokenizer, torch)
            tokens = int((batch["labels"] != -100).sum())
            total += float(model(**batch).loss) * tokens
            count += tokens
    return total / count


def measured(texts: list[str], encoder: tuple[Any, Any], torch: Torch) -> dict[str, float]:
    """The quickstart's metrics of texts."""
    import sacrebleu

    tokenizer, model = encoder
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        points = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    total, n = points.sum(0), len(texts)
    bleu = sacrebleu.BLEU(effective_order=True)
    scores = [bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)]
    words = [text.split() for text in texts]
    ones = [word for row in words for word in row]
    pairs = [pair for row in words for pair in zip(row, row[1:], strict=False)]
    return {
        "cosine_diversity": float(1 - (total @ total - n) / (n * (n - 1))),
        "self_bleu": sum(scores) / n,
        "distinct_1": len(set(ones)) / max(len(ones), 1),
        "distinct_2": len(set(pairs)) / max(len(pairs), 1),
        "text_length": sum(map(len, texts)) / n,
    }


def chain(
    ratio: float,
    seed: int,
    args: argparse.Namespace,
    human: list[str],
    encoder: tuple[Any, Any],
    torch: Torch,
) -> list[dict[str, float]]:
    """One chain: its metrics by generation."""
    rng = random.Random(f"{ratio}-{seed}")
    torch.manual_seed(rng.randrange(2**31))
    human = rng.sample(human, len(human))
    held_out, human = human[:HELD_OUT], human[HELD_OUT:]
    made = round(SIZE * ratio)
    pool: list[str] = []
    synthetic: list[str] = []
    rows = []
    for generation in range(args.generations):
        fresh = SIZE if generation == 0 else SIZE - made
        new, human = human[:fresh] + synthetic, human[fresh:]
        pool = new if generation < 2 else pool + new
        model, tokenizer = adapted(args.base, torch)
        train(model, tokenizer, rng.sample(pool, SIZE), rng, torch)
        loss = held_out_loss(model, tokenizer, held_out, torch)
        texts = write(model.merge_and_unload(), tokenizer, max(made, EVAL), torch)
        synthetic = texts[:made]
        scores = measured(texts[:EVAL], encoder, torch) | {"held_out_loss": loss}
        rows.append({"ratio": ratio, "seed": seed, "generation": generation} | scores)
        print(f"r={ratio:g} seed {seed} generation {generation}: {texts[0][:70]!r}", flush=True)
    return rows


def work(job: tuple[argparse.Namespace, Sequence[tuple[float, int]]]) -> list[dict[str, float]]:
    """A process of one thread: its chains, one after another."""
    args, chains = job
    import torch
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    human = json.loads(Path(args.texts).read_text(encoding="utf-8"))
    human = random.Random(0).sample(human, min(len(human), 8000))
    count = AutoTokenizer.from_pretrained(args.base)
    human = [text for text in human if MIN_LENGTH <= len(count(text)["input_ids"]) <= MAX_LENGTH]
    encoder = AutoTokenizer.from_pretrained(args.encoder), AutoModel.from_pretrained(args.encoder)
    encoder[1].eval()
    found = [chain(ratio, seed, args, human, encoder, torch) for ratio, seed in chains]
    return [row for rows in found for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", required=True)
    parser.add_argument("--base", default="jaxloop/assets/bases/llama_longer")
    parser.add_argument("--encoder", required=True, help="the directory of MiniLM")
    parser.add_argument("--generations", type=whole(1), default=10)
    parser.add_argument("--processes", type=whole(1), default=2)
    parser.add_argument("--threads", type=whole(1), default=1, help="of every process")
    parser.add_argument("--out", help="file for the metrics, JSON")
    args = parser.parse_args()
    # A chain of each ratio for every process, which makes their work alike.
    jobs = [(args, CHAINS[i :: args.processes]) for i in range(args.processes)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        rows = [row for rows in pool.map(work, jobs) for row in rows]
    if args.out:
        Path(args.out).write_text(json.dumps(rows))
    first = {r: [x for x in rows if x["ratio"] == r and x["generation"] == 0] for r, _ in CHAINS}
    last = {
        r: [x for x in rows if x["ratio"] == r and x["generation"] == args.generations - 1]
        for r, _ in CHAINS
    }
    for ratio in first:
        for name in ("cosine_diversity", "self_bleu", "distinct_2", "held_out_loss", "text_length"):
            change = sum(x[name] for x in last[ratio]) / sum(x[name] for x in first[ratio])
            print(f"r={ratio:g} {name}: last / first generation {change:.3f}")


if __name__ == "__main__":
    main()
