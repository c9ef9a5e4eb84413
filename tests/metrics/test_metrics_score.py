"""Score: means, bootstrap intervals, what NaN does."""

import numpy as np
import pytest
import scipy.stats

from mcl_jax.metrics import Bootstrap, average, difference, of_items, oracle
from mcl_jax.metrics.report import NotAvailable

VALUES = np.random.default_rng(3).gamma(2.0, size=97)


def test_mean_and_interval_of_a_small_case_by_hand():
    """Two items 0 and 1: a resample's mean is 0, 1/2 or 1 with 1/4, 1/2, 1/4, so a 40 % interval is 1/2 to 1/2."""
    score = Bootstrap(resamples=5000, level=0.4).mean([0.0, 1.0])
    assert (score.mean, score.low, score.high) == (0.5, 0.5, 0.5)
    wide = Bootstrap(resamples=5000, level=0.6).mean([0.0, 1.0])
    assert (wide.low, wide.high) == (0.0, 1.0)
    np.testing.assert_array_equal(score.per_item, [0.0, 1.0])


def test_interval_is_scipys_percentile_bootstrap():
    score = Bootstrap(resamples=20_000, level=0.9).mean(VALUES)
    expected = scipy.stats.bootstrap(
        (VALUES,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile"
    ).confidence_interval
    assert score.mean == pytest.approx(VALUES.mean())
    np.testing.assert_allclose([score.low, score.high], expected, atol=0.01)


def test_same_seed_same_interval_whatever_the_metric_and_the_blocks(monkeypatch):
    bootstrap = Bootstrap(seed=7)
    score, scaled = bootstrap.mean(VALUES), bootstrap.mean(3.0 * VALUES)
    assert bootstrap.mean(VALUES).low == score.low < score.mean < score.high
    assert scaled.low == pytest.approx(3.0 * score.low)
    assert Bootstrap(seed=8).mean(VALUES).low != score.low
    monkeypatch.setattr("mcl_jax.metrics.score.BLOCK", 5 * 97)
    blocks = list(bootstrap.counts(97))
    assert [len(block) for block in blocks[:2]] == [5, 5]
    assert all((block.sum(axis=1) == 97).all() for block in blocks)
    assert bootstrap.mean(VALUES).low == score.low


def test_items_without_a_value_are_left_out():
    score = Bootstrap().mean([np.nan, 2.0, 4.0, np.nan, 6.0])
    assert (score.mean, score.num_defined) == (4.0, 3)
    assert score.low >= 2.0
    nowhere = Bootstrap().mean([np.nan, np.nan])
    assert nowhere.num_defined == 0
    assert np.isnan([nowhere.mean, nowhere.low, nowhere.high]).all()


@pytest.mark.parametrize("values", [[0.3], [np.nan, 0.3, np.nan]])
def test_one_item_has_no_interval(values):
    score = Bootstrap().mean(values)
    assert (score.mean, score.num_defined) == (0.3, 1)
    assert np.isnan([score.low, score.high]).all()
    pooled = Bootstrap().pooled([0.3], np.array([[3.0, 10.0]]), lambda sums, _: sums[..., 0] / sums[..., 1])
    assert pooled.mean == 0.3 and np.isnan([pooled.low, pooled.high]).all()


def test_oracle_and_average_with_unequal_numbers_of_answers():
    per_answer = [np.array([1.0, 5.0, 3.0]), np.array([2.0]), np.array([0.0, 7.0])]
    np.testing.assert_array_equal(oracle(per_answer).per_item, [5.0, 2.0, 7.0])
    np.testing.assert_array_equal(average(per_answer).per_item, [3.0, 2.0, 3.5])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        Bootstrap(resamples=0)
    with pytest.raises(ValueError, match=r"level must be between 0 and 1.*got 95"):
        Bootstrap(level=95)
    with pytest.raises(ValueError, match=r"at least 1 item, got \(0,\)"):
        Bootstrap().mean([])
    with pytest.raises(ValueError, match=r"item 1 needs a vector with one value .*got shape \(0,\)"):
        oracle([np.ones(3), np.ones(0)])


def test_the_difference_of_two_methods_pairs_their_items():
    """Hard items are hard for both: the interval is narrower than those of the two scores."""
    bootstrap, gain = Bootstrap(), np.random.default_rng(5).normal(0.3, 0.1, size=97)
    a, b = bootstrap.mean(VALUES + gain), bootstrap.mean(VALUES)
    found = difference(a, b)
    assert found.mean == pytest.approx(gain.mean()) and 0.25 < found.low < found.mean < found.high < 0.35
    assert a.low < b.high  # the separate intervals overlap
    with pytest.raises(ValueError, match="same items, got 97 and 3"):
        difference(a, bootstrap.mean(VALUES[:3]))


def test_items_without_a_value_drop_out_of_a_difference():
    a, b = Bootstrap().mean([1.0, np.nan, 4.0]), Bootstrap().mean([0.5, 7.0, 1.5])
    assert difference(a, b).mean == 1.5 and np.isnan(difference(a, b).per_item[1])


def test_values_of_items_for_results():
    scores = {
        "bleu": Bootstrap().mean([1 / 3, np.nan]),
        "corpus_bleu": Bootstrap().mean([1.0]),
        "x": NotAvailable("no"),
    }
    assert of_items(scores, digits=3) == {"bleu": [0.333, None]}
