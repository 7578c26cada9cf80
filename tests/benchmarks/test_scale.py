"""The model of many GPUs, against what can be said by hand; the measurement itself is `python benchmarks/scale.py`."""

import sys

import pytest

from tests.workers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import scale


def test_a_ring_of_two_sends_everything_once_and_a_long_one_twice() -> None:
    assert scale.ring_bytes(100.0, 1) == 0.0
    assert scale.ring_bytes(100.0, 2) == 100.0
    assert scale.ring_bytes(100.0, 10**9) == pytest.approx(200.0)


def test_transfer_of_one_node_does_not_depend_on_the_network() -> None:
    assert scale.transfer_seconds(1e8, 1, 1.0) == scale.transfer_seconds(1e8, 1, 1e12)
    # 2 x 7/8 x 1e8 / 450e9 within the nodes, and a ring of two nodes with an eighth
    assert scale.transfer_seconds(1e8, 2, 1e9) == pytest.approx(1.75e8 / 450e9 + 1.25e7 / 1e9)


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, 0.5), (0.5, 2 / 3), (1.0, 1.0)])
def test_efficiency_of_a_transfer_as_long_as_a_step(overlap: float, expected: float) -> None:
    assert scale.efficiency(2.0, 2.0, overlap) == pytest.approx(expected)


def test_more_gpus_are_never_more_efficient() -> None:
    for network in scale.NETWORKS:
        for rate in scale.RATES:
            rows = [r for r in scale.model() if (r["network"], r["images_per_second_of_one"]) == (network, rate)]
            assert [r["gpus"] for r in rows] == [8, 64, 512]
            found = [r["efficiency_without_overlap"] for r in rows]
            assert found == sorted(found, reverse=True)
            assert all(r["efficiency"] >= r["efficiency_without_overlap"] for r in rows)
