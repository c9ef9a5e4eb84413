"""Grounding, retrieval and the draws that they need, against numbers worked out by hand."""

import numpy as np
import pytest

from mcl_jax import metrics

NAN = np.nan
GROUPS = [*"aaabbcdefgh"]  # 11 records; three of them share a caption


def test_each_record_has_a_partner_of_another_group_and_is_one():
    drawn = {seed: metrics.derangement(GROUPS, seed) for seed in range(29)}
    for partner in drawn.values():
        assert sorted(partner) == list(range(11))
        assert all(GROUPS[n] != GROUPS[m] for n, m in enumerate(partner))
    np.testing.assert_array_equal(drawn[3], metrics.derangement(GROUPS, 3))
    assert len({tuple(partner) for partner in drawn.values()}) > 20


def test_a_pairing_that_is_only_just_possible():
    for seed in range(7):
        partner = metrics.derangement([7, 7, 7, 1, 2, 2], seed)
        assert sorted(partner[:3]) == [3, 4, 5] and sorted(partner[3:]) == [0, 1, 2]
    with pytest.raises(ValueError, match="at most half of the records, but one has 3 of 5"):
        metrics.derangement([7, 7, 7, 1, 2])
    with pytest.raises(ValueError, match="at least 1 record"):
        metrics.derangement([])


def test_candidates_are_the_record_and_others_of_other_groups():
    candidates = metrics.with_distractors(GROUPS, 9)
    assert candidates.shape == (11, 9)
    for n, row in enumerate(candidates):
        assert row[0] == n and len(set(row)) == 9
        assert all(GROUPS[m] != GROUPS[n] for m in row[1:])
    np.testing.assert_array_equal(candidates, metrics.with_distractors(GROUPS, 9, seed=0))
    assert (candidates != metrics.with_distractors(GROUPS, 9, seed=1)).any()
    assert metrics.num_candidates(GROUPS) == 9 and metrics.num_candidates(GROUPS, 5) == 5
    assert metrics.num_candidates(["a"] * 3) == 1
    for num in (1, 10):
        with pytest.raises(ValueError, match=f"from 2 to 9 for these records, got {num}"):
            metrics.with_distractors(GROUPS, num)


def test_grounding_is_the_loss_of_the_likeliest_hypothesis_with_another_picture_minus_its_own():
    own = np.array([[-1.0, -5.0, -4.0], [-2.0, -3.0, -9.0]])  # losses 1, 3, 4
    swapped = np.array([[-9.0, -2.0, -4.0], [-4.5, -7.0, -5.0]])  # losses 4.5, 2, 4
    score = metrics.grounding(own, swapped)
    np.testing.assert_allclose(score.per_item, [3.5, -1.0, 0.0])
    assert score.mean == pytest.approx(2.5 / 3) and score.low < score.mean < score.high
    assert metrics.grounding(own, own).mean == 0.0


def test_captions_of_a_record_are_averaged_before_records():
    own, swapped = np.zeros((1, 5)), -np.array([[1.0, 3.0, 7.0, NAN, NAN]])
    score = metrics.grounding(own, swapped, record=[4, 4, 2, 2, 9])
    np.testing.assert_allclose(score.per_item, [7.0, 2.0, NAN])  # of the records 2, 4 and 9
    assert score.mean == 4.5 and score.num_defined == 2
    with pytest.raises(ValueError, match=r"one index for each of 5 captions"):
        metrics.grounding(own, swapped, record=[4, 4])
    with pytest.raises(ValueError, match=r"same shape \[K, N\]"):
        metrics.grounding(own, swapped[:, :3])


def test_retrieval_asks_whether_the_own_picture_is_the_likeliest():
    log_p = np.full((3, 5, 4), -10.0)
    log_p[1, 0, 0] = -2.0  # found, by the second hypothesis
    log_p[2, 1, 3] = -2.0  # another is likelier
    log_p[0, 2, :2] = -3.0  # one of two
    log_p[0, 4, 2] = NAN  # unknown; the fourth does not tell them apart
    score = metrics.retrieval(log_p)
    np.testing.assert_allclose(score.per_item, [1.0, 0.0, 0.5, 0.25, NAN])
    assert score.mean == pytest.approx(1.75 / 4)
    with pytest.raises(ValueError, match=r"\[K, N, C\]"):
        metrics.retrieval(log_p[0])


def test_captions_of_the_nearest_pictures():
    known = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    captions = [["east", "l'est"], ["north"], ["north", "l'est", "between"], ["west"]]
    asked = np.array([[5.0, 0.1], [0.1, 0.5], [0.0, 0.0]])
    copied = metrics.nearest_captions(asked, known, captions, 3)
    assert copied == [["east", "l'est", "north"], ["north", "l'est", "between"], ["east", "l'est", "north"]]
    assert metrics.nearest_captions(asked[:1], known[1:2], captions[1:2], 3) == [["north"] * 3]
    with pytest.raises(ValueError, match="must fit together"):
        metrics.nearest_captions(asked, known[:3], captions, 3)
