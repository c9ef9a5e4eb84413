"""The effective number of hypotheses, and the cost of removing some, against values worked out by hand."""

import numpy as np
import pytest

from mcl_jax import metrics

# log p of 7 items under 3 hypotheses, which win 4, 1 and 2 of them. Hypotheses 0 and 2 are nearly the same.
LOG_P = np.array(
    [
        [-1.0, -2.0, -3.0, -4.0, -9.0, -2.5, -5.0],
        [-8.0, -9.0, -9.0, -9.0, -3.0, -9.0, -9.0],
        [-1.5, -2.25, -4.0, -4.5, -9.0, -2.0, -4.0],
    ]
)


@pytest.mark.parametrize(
    ("win_rate", "expected"),
    [
        ([1 / 3] * 3, 3.0),
        ([0.0, 1.0, 0.0], 1.0),
        ([0.5, 0.0, 0.5], 2.0),
        ([0.5, 0.25, 0.25], 2 * np.sqrt(2)),  # H = (1/2 + 1/4 · 2 + 1/4 · 2) log 2
        ([1.0], 1.0),
    ],
)
def test_effective_number(win_rate, expected):
    assert metrics.effective_number(win_rate) == pytest.approx(expected)


@pytest.mark.parametrize("win_rate", [[0.5, 0.4], [1.5, -0.5], [], [[1.0]], [float("nan"), 1.0]])
def test_win_rates_that_are_none_are_refused(win_rate):
    with pytest.raises(ValueError, match="win rates must be a vector of shares that sum to 1, got"):
        metrics.effective_number(win_rate)


def test_dropping_a_hypothesis_costs_what_the_second_best_loses():
    costs = [metrics.removal_cost(LOG_P, [k]) for k in range(3)]
    np.testing.assert_allclose(costs[0].per_item, [0.5, 0.25, 1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(costs[1].per_item, [0, 0, 0, 0, 6, 0, 0])
    np.testing.assert_allclose(costs[2].per_item, [0, 0, 0, 0, 0, 0.5, 1])
    assert [cost.mean for cost in costs] == pytest.approx([2.25 / 7, 6 / 7, 1.5 / 7])
    loss = lambda log_p: -log_p.max(0).mean()
    assert costs[2].mean == pytest.approx(loss(LOG_P[:2]) - loss(LOG_P))
    assert all(cost.low <= cost.mean <= cost.high and cost.low < cost.high for cost in costs)


def test_merging_a_pair_costs_what_their_mean_loses_and_may_gain():
    merged = np.array([-1.25, -2.0, -3.25, -4.25, -10.0, -2.0, -4.5])
    cost = metrics.removal_cost(LOG_P, (0, 2), merged)
    np.testing.assert_allclose(cost.per_item, [0.25, 0, 0.25, 0.25, 0, 0, 0.5])
    assert cost.mean == pytest.approx(1.25 / 7)
    assert metrics.removal_cost(LOG_P, (2, 0), merged + 2.0).mean == pytest.approx(1.25 / 7 - 2 * 6 / 7)
    assert metrics.removal_cost(LOG_P, (0, 1, 2), LOG_P.max(0)).mean == 0.0


def test_a_copy_costs_nothing_nor_does_a_hypothesis_that_never_wins():
    copied = np.concatenate([LOG_P, LOG_P[1:2], LOG_P[1:2] - 1.0])
    assert [metrics.removal_cost(copied, [k]).mean for k in (1, 3, 4)] == [0.0, 0.0, 0.0]
    assert metrics.removal_cost(copied, [1, 3]).mean == pytest.approx(1 / 7)


def test_the_interval_resamples_sources_and_the_mean_is_over_items():
    """Sources of 5 items and of 2: a resample has one of them twice, or both."""
    source = np.array([11, 11, 3, 11, 11, 3, 11])
    cost = metrics.removal_cost(LOG_P, [0], source=source)
    assert cost.mean == pytest.approx(2.25 / 7)
    assert (cost.low, cost.high) == pytest.approx((1.25 / 5, 1 / 2))
    alone = metrics.removal_cost(LOG_P, [0], source=np.full(7, 11))
    assert alone.mean == pytest.approx(2.25 / 7) and np.isnan(alone.low)


def test_what_is_not_worth_its_place_is_dropped_one_after_the_other():
    """log(5/4) = 0.22, log(4/3) = 0.29, log(3/2) = 0.41: of copies one stays, and so does one that wins far."""
    far = np.full((3, 7), -9.0)
    far[0, :3], far[1, 3:5], far[2, 5:] = -1.0, -1.0, -1.0  # without one of them, 2 or 3 of 7 lose 8 nats
    assert metrics.droppable(far) == []
    assert metrics.droppable(np.concatenate([far, far[1:2], far[:1] - 0.5])) == [1, 4]
    assert metrics.droppable(np.ones((3, 7))) == [0, 1]
    assert metrics.droppable(far[:1]) == []


@pytest.mark.parametrize(("gain", "expected"), [(2.83, [2]), (2.85, [])])
def test_the_bound_is_what_a_name_costs(gain, expected):
    """The third of three is better on one item of 7: 7 log(3/2) = 2.838. A single source has no interval."""
    log_p = np.full((3, 7), -9.0)
    log_p[0, :3], log_p[1, 3:6], log_p[2, 6] = -1.0, -1.0, gain - 9.0
    assert metrics.droppable(log_p, source=np.zeros(7, int)) == expected


def test_the_upper_end_of_the_interval_decides():
    """A mean cost of 2/7 is below log 2, and its upper end is not."""
    log_p = np.zeros((2, 7))
    log_p[0, 3], log_p[1, :3] = 2.0, 5.0
    cost = metrics.removal_cost(log_p, [0])
    assert cost.mean == pytest.approx(2 / 7) and cost.mean < np.log(2) < cost.high
    assert metrics.droppable(log_p) == [] and metrics.droppable(log_p, source=np.zeros(7, int)) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(removed=[3]), r"must be different indices from 0 to 2, got \[3\]"),
        (dict(removed=[-1]), r"must be different indices from 0 to 2, got \[-1\]"),
        (dict(removed=[1, 1]), "must be different indices"),
        (dict(removed=[]), "must be different indices"),
        (dict(removed=[0, 1, 2]), "at least one hypothesis must be left, but all 3 are removed and none is added"),
        (dict(removed=[0], added=np.zeros(5)), r"added must have one value for each of 7 items, got shape \(5,\)"),
        (dict(removed=[0], source=np.zeros(5)), r"source must have one value for each of 7 items, got shape \(5,\)"),
        (dict(removed=[0], log_likelihood=np.zeros((3, 0))), r"must have shape \[K, N\] .* got \(3, 0\)"),
        (dict(removed=[0], log_likelihood=np.zeros(3)), r"must have shape \[K, N\] .* got \(3,\)"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.removal_cost(**({"log_likelihood": LOG_P} | options))
