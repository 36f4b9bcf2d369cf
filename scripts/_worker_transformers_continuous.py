"""transformers' continuous batching: a worker of `bench_decode.py --peer=transformers-continuous`.

Runs in the peer's own environment. A setting is the most texts of a batch.
"""

from typing import Any

import torch
import transformers
from _worker import read_work, serve
from transformers.generation.configuration_utils import ContinuousBatchingConfig

PAGE = 32  # tokens of a page of its cache


def main() -> None:
    folder, work = read_work()
    torch.set_num_threads(work["threads"])
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    net = load(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    longest = max(n for job in work["jobs"].values() for chain in job for n in chain)
    pages = -(-(len(work["prompt"]) + longest) // PAGE)
    sampling = transformers.GenerationConfig(
        do_sample=True, temperature=1.5, min_p=0.2, top_k=0, eos_token_id=-1, pad_token_id=0
    )

    def write(job: str, setting: str) -> int:
        lengths = [n for chain in work["jobs"][job] for n in chain]
        batch = int(setting)
        batching = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=batch * pages,
            max_batch_tokens=batch * len(work["prompt"]),
            max_requests_per_batch=batch,
        )
        with net.continuous_batching_context_manager(
            generation_config=sampling, continuous_batching_config=batching
        ) as manager:
            for n in lengths:
                manager.add_request(work["prompt"], max_new_tokens=n, eos_token_id=-1)
            written = [manager.get_result() for _ in lengths]
        total = sum(len(result.generated_tokens) for result in written)
        if total != sum(lengths):
            raise RuntimeError(f"{total} tokens were written where {sum(lengths)} were asked for")
        return total

    serve(lambda setting: None, write)


if __name__ == "__main__":
    main()
