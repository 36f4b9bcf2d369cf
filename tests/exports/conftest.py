"""A finished run of tiny models: two ratios, adapters and whole weights, two generations."""

import pytest

from jaxloop import cli, main
from tests import drawings
from tests.studies.conftest import place  # noqa: F401  the fixture


@pytest.fixture(scope="package")
def run(place):  # noqa: F811
    argv = [
        "jaxloop",
        f"--config={place / 'study.py'}",
        f"--workdir={place / 'exported'}",
        "--config.chain.factors.fit.mode=lora,full",
        "--config.fit.learning_rate=0.05",
        "--config.fit.lora.alpha=24",
        "--config.fit.lora.rank=8",
        "--config.metrics=text_length",
    ]
    with pytest.MonkeyPatch.context() as patch:
        drawings.leave_out(patch)
        assert cli.guarded(main.main, cli.parse(argv)) == 0
    return place / "exported"
