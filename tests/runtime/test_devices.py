"""Devices: what was asked for, or a refusal."""

import jax
import pytest

from jaxloop.runtime import devices


def test_devices_that_are_there():
    assert devices.select_devices() == jax.devices() == devices.select_devices("cpu")
    assert devices.select_devices("cpu", 2) == jax.devices()[:2]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_absent_accelerator_is_refused_and_never_the_cpu(platform):
    if any(d.platform == platform for d in jax.devices()):
        assert {d.platform for d in devices.select_devices(platform)} == {platform}
    else:
        with pytest.raises(
            ValueError,
            match=f"platform={platform}: this machine has none that JAX can use; install",
        ):
            devices.select_devices(platform)


BAD = [
    ("cuda", None, "platform='cuda': must be one of"),
    ("cpu", 9, "devices=9: .* 1 to 4 cpu"),
    ("cpu", 0, "devices=0"),
]


@pytest.mark.parametrize(("platform", "count", "message"), BAD)
def test_bad_requests_are_refused(platform, count, message):
    with pytest.raises(ValueError, match=message):
        devices.select_devices(platform, count)
