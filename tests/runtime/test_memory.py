"""Which errors mean that a device is full, in the words of XLA (jax 0.10.2)."""

import pytest

from jaxloop.runtime.memory import halve_after_out_of_memory, is_out_of_memory

FULL = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 85899345920 bytes.",
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 2.00G.",
    "INTERNAL: CUDA error: out of memory",
)
# See findings/large_kernel_reads_as_a_full_gpu.sh.
LARGE_KERNEL = (
    "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 262144, available: 232448"
)


@pytest.mark.parametrize("said", FULL)
def test_a_full_device_is_told(said):
    assert is_out_of_memory(RuntimeError(said))


@pytest.mark.parametrize("said", [LARGE_KERNEL, "INVALID_ARGUMENT: rank 2", "NOT_FOUND: memory"])
def test_other_errors_are_not_answered_with_less_work(said):
    assert not is_out_of_memory(RuntimeError(said))


def test_work_is_halved_and_the_last_piece_refused_in_one_line():
    error = RuntimeError(FULL[0])
    assert halve_after_out_of_memory(error, 9, "sample.slots", "use shorter texts") == 4
    with pytest.raises(
        ValueError, match=r"sample\.slots = 1 .* \(85899345920 bytes asked for\); use"
    ):
        halve_after_out_of_memory(error, 1, "sample.slots", "use shorter texts")
