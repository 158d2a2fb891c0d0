"""Predictions on random DAG shapes, against runs on the engines of the local Qarnot. A benchmark has 50 of them."""

from __future__ import annotations

import pytest

from benchmarks.right_size import measure_shape


@pytest.mark.parametrize("seed", [1, 4, 7, 18, 27])
def test_a_prediction_is_what_a_run_at_that_size_takes_and_costs(seed: int) -> None:
    errors = measure_shape(seed)
    assert errors.seconds < 0.10
    assert errors.node_seconds < 0.05
    assert errors.dearer < 0.10
