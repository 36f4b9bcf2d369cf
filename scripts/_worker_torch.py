"""Training in torch, transformers and peft as a worker of `bench_train.py --peer=torch`.

Runs in the peer's own environment. A setting is P:R, P processes, which share out cores and chains,
and R rows of a batch at a time, whose gradients are added up. A chain begins with a new adapter.
"""

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _worker import read_work, serve


def train(
    connection: Connection, folder: Path, work: dict[str, Any], setting: str, cores: list[int]
) -> None:
    """A process that trains chains: it receives their numbers, and sends the first losses."""
    os.sched_setaffinity(0, cores)
    import numpy as np  # the parent needs neither
    import peft
    import torch
    import transformers

    torch.set_num_threads(len(cores))
    rows = int(setting.split(":")[1])
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    lora = peft.LoraConfig(r=work["rank"], lora_alpha=work["rank"], target_modules="all-linear")
    net = peft.get_peft_model(base, lora)
    run = torch.compile(net) if work["peer"] == "torch-compile" else net
    trained = [p for p in net.parameters() if p.requires_grad]
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        losses = []
        for chain in asked["chains"]:
            for name, parameter in net.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.zeros_(parameter)
            optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
            shape = (asked["steps"], work["batch_size"], work["length"])
            tokens = np.random.default_rng(chain).integers(0, work["vocab"], shape)
            for step, batch in enumerate(torch.from_numpy(tokens)):
                optimizer.zero_grad(set_to_none=True)
                total = 0.0
                for part in batch.split(rows):
                    loss = run(input_ids=part, labels=part, use_cache=False).loss
                    loss = loss * (len(part) / len(batch))
                    loss.backward()
                    total += loss.detach()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                if step == 0:
                    losses.append(float(total))
        connection.send(losses)


def serve_processes(train: Callable[..., None]) -> None:
    """Answer requests with processes of `train`, which begin when a setting first needs them."""
    folder, work = read_work()
    cores = sorted(os.sched_getaffinity(0))
    children: dict[str, list[tuple[Any, Connection]]] = {}
    context = multiprocessing.get_context("spawn")

    def prepare(setting):
        if setting in children:
            return
        processes = int(setting.split(":")[0])
        started = []
        for i in range(processes):
            ours, theirs = context.Pipe()
            args = (theirs, folder, work, setting, cores[i::processes])
            child = context.Process(target=train, args=args, daemon=True)
            child.start()
            started.append((child, ours))
        for _, pipe in started:
            pipe.recv()
        children[setting] = started

    def write(job, setting):
        chains, steps = map(int, job.split("x"))
        started = children[setting]
        asked = [list(range(chains))[i :: len(started)] for i in range(len(started))]
        for (_, pipe), numbers in zip(started, asked, strict=True):
            pipe.send({"chains": numbers, "steps": steps})
        losses: dict[int, float] = {}
        for (_, pipe), numbers in zip(started, asked, strict=True):
            losses |= dict(zip(numbers, pipe.recv(), strict=True))
        said = [losses[chain] for chain in range(chains)]
        (folder / "losses.peer.json").write_text(json.dumps(said), encoding="utf8")
        return chains * steps * work["batch_size"] * work["length"]

    def clock():
        pids = [os.getpid()] + [child.pid for of in children.values() for child, _ in of]
        return sum(map(seconds_of, pids))

    serve(prepare, write, clock)


def seconds_of(pid: int) -> float:
    """Processor seconds that a process has spent."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    serve_processes(train)
