"""OpenVINO GenAI's continuous batching as a worker of `bench_decode.py --peer=openvino`.

Runs in the peer's own environment. A setting is SEQUENCES:PRECISION: texts at the same time,
and the number format of the cache, f32 or u8.
"""

import numpy as np
import openvino
import openvino_genai
from _worker import read_work, serve

CACHE_GB = 2


def main() -> None:
    folder, work = read_work()
    ids = openvino.Tensor(np.array([work["prompt"]], np.int64))
    pipes: dict[str, openvino_genai.ContinuousBatchingPipeline] = {}

    def prepare(setting: str) -> None:
        if setting in pipes:
            return
        pipes.clear()  # one at a time: each holds a cache
        sequences, precision = setting.split(":")
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = int(sequences)
        scheduler.max_num_batched_tokens = max(256, int(sequences))
        properties = {
            "INFERENCE_NUM_THREADS": work["threads"],
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        pipes[setting] = openvino_genai.ContinuousBatchingPipeline(
            str(folder / "openvino"), scheduler, "CPU", properties
        )

    def write(job: str, setting: str) -> int:
        lengths = [n for chain in work["jobs"][job] for n in chain]
        settings = [_sampling(n) for n in lengths]
        made = pipes[setting].generate([ids] * len(lengths), settings)
        tokens = sum(len(text) for result in made for text in result.m_generation_ids)
        if tokens != sum(lengths):
            raise RuntimeError(f"{tokens} tokens were written, not {sum(lengths)}")
        return tokens

    serve(prepare, write)


def _sampling(length: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.do_sample, config.temperature, config.min_p = True, 1.5, 0.2
    config.max_new_tokens = config.min_new_tokens = length
    config.ignore_eos = True
    return config


if __name__ == "__main__":
    main()
