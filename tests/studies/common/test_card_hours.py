"""Hours of named cards against the arithmetic written out."""

import pytest

from jaxloop.accelerators import cards
from jaxloop.studies.common import card_hours
from jaxloop.studies.common.card_hours import Arithmetic, hours


def test_hours_are_the_larger_of_arithmetic_and_reading():
    h100 = cards.CARDS["h100"]
    hour = 3600 * 989.4e12
    work = Arithmetic(train_flops=2 * hour, score_flops=hour, decode_flops=hour)
    assert hours(work, h100) == pytest.approx((2, 1, 1))
    read = work._replace(decode_bytes=5 * 3600 * 3.35e12)
    assert hours(read, h100) == pytest.approx((2, 5, 1))
    assert hours(work._replace(dtype="float32"), h100) == pytest.approx((4, 2, 2))
    eight = cards.CARDS["v5e-8"]
    assert hours(work, eight).train == pytest.approx(2 * 989.4 / (8 * 197))


def test_rows_name_their_cards():
    work = Arithmetic(train_flops=36_000 * 989.4e12)
    rows = dict(card_hours.rows(work))
    assert list(rows) == ["time on one h100", "time on one h200", "time on one a100"]
    assert rows["time on one h100"] == (
        "at least 10 h by its limits (10 h to train), about 33 h at 30% of them"
    )
    assert list(dict(card_hours.rows(work, "v5e-8"))) == ["time on v5e-8, all 8 devices"]
    assert card_hours.rows(work, "cpu") == []
    assert dict(card_hours.rows(Arithmetic(1e12), "h100")) == {
        "time on one h100": "less than a minute"
    }
    with pytest.raises(ValueError, match="--for=b200 is not a target"):
        card_hours.rows(work, "b200")
