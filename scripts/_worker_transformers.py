"""Padded `transformers.generate` as a worker of `bench_decode.py --peer=transformers`.

Runs in the peer's own environment. A setting is the number of texts of a batch; a batch runs to its
longest text.
"""

from typing import Any

import torch
import transformers
from _worker import read_work, serve


def main() -> None:
    folder, work = read_work()
    torch.set_num_threads(work["threads"])
    load: Any = transformers.AutoModelForCausalLM.from_pretrained  # its types deny `generate`
    net = load(folder / "model", dtype=torch.float32)
    net.generation_config.eos_token_id = None
    prompt = torch.tensor([work["prompt"]])

    def write(job: str, setting: str) -> int:
        lengths = [n for chain in work["jobs"][job] for n in chain]
        for start in range(0, len(lengths), int(setting)):
            batch = lengths[start : start + int(setting)]
            ids = prompt.expand(len(batch), -1)
            with torch.no_grad():
                net.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.5,
                    min_p=0.2,
                    top_k=0,
                    max_new_tokens=max(batch),
                    min_new_tokens=max(batch),
                    pad_token_id=0,
                )
        return sum(lengths)

    serve(lambda setting: None, write)


if __name__ == "__main__":
    main()
