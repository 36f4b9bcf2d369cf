"""Training by TRL's SFTTrainer as a worker of `bench_train.py --peer=trl`.

Runs in the peer's own environment. A setting is P:R as in `_worker_torch.py`: P processes, and R
rows of a batch at a time. A chain is a trainer of its own with a new adapter, as a script that
trains one model after another has it: data set, collator, loader and log are the trainer's.
"""

import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _worker_torch import serve_processes


def train(
    connection: Connection, folder: Path, work: dict[str, Any], setting: str, cores: list[int]
) -> None:
    """A process that trains chains: it receives their numbers, and sends the first losses."""
    os.sched_setaffinity(0, cores)
    import datasets  # the parent needs none of them
    import numpy as np
    import peft
    import torch
    import transformers
    import trl

    datasets.disable_progress_bars()
    torch.set_num_threads(len(cores))
    rows = int(setting.split(":")[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    lora = peft.LoraConfig(r=work["rank"], lora_alpha=work["rank"], target_modules="all-linear")
    connection.send("ready")
    with tempfile.TemporaryDirectory() as output:
        while (asked := connection.recv()) is not None:
            settings = trl.SFTConfig(
                output_dir=output,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                max_steps=asked["steps"],
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=work["batch_size"] // rows,
                max_length=work["length"],
                train_sampling_strategy="sequential",
                learning_rate=2e-4,
                lr_scheduler_type="constant",
                weight_decay=0.01,
                max_grad_norm=1.0,
                save_strategy="no",
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            losses = []
            for chain in asked["chains"]:
                base = transformers.AutoModelForCausalLM.from_pretrained(
                    folder / "model", dtype=torch.float32
                )
                shape = (asked["steps"] * work["batch_size"], work["length"])
                tokens = np.random.default_rng(chain).integers(0, work["vocab"], shape)
                trainer = trl.SFTTrainer(
                    base,
                    args=settings,
                    train_dataset=datasets.Dataset.from_dict({"input_ids": tokens}),
                    processing_class=tokenizer,
                    peft_config=lora,
                )
                trainer.remove_callback(transformers.PrinterCallback)
                trainer.train()
                losses.append(trainer.state.log_history[0]["loss"])
            connection.send(losses)


if __name__ == "__main__":
    serve_processes(train)
