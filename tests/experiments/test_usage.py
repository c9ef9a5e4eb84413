"""What a run says of the use of its hypotheses: numbers by hand, the sentence, and the means of pairs."""

import math

import numpy as np
import pytest

from experiments.common import usage
from experiments.common.held_out import Likelihoods
from experiments.translation.config import Config

# Of 7 answers from 4 sources, hypotheses 0 and 1 win three each, by 8 nats; hypothesis 2 wins one, by 1 nat.
LOG_P = np.full((3, 7), -9.0)
LOG_P[0, :3] = LOG_P[1, 3:6] = -1.0
LOG_P[2, 6] = -8.0
TOKENS, RECORD = np.array([2, 4, 1, 2, 4, 1, 5]), np.array([0, 0, 1, 1, 2, 2, 3])


def found(log_p=LOG_P, merged=None, record=RECORD):
    return usage.hypotheses(Likelihoods(log_p, TOKENS, np.full(7, -1), record), merged or {})


def means(costs):
    return [cost if isinstance(cost, float) else cost["mean"] for cost in costs]


def test_numbers_by_hand():
    scores = found()
    entropy = 2 * 3 / 7 * math.log(7 / 3) + math.log(7) / 7
    assert scores["effective"] == pytest.approx(math.exp(entropy))
    assert means(scores["answer_drop_cost"]) == pytest.approx([24 / 7, 24 / 7, 1 / 7])
    assert means(scores["drop_cost"]) == pytest.approx([(4 + 2 + 8) / 7, (4 + 2 + 8) / 7, 0.2 / 7])
    first = scores["answer_drop_cost"][0]
    assert first["low"] < first["mean"] < first["high"]
    assert "merge_cost" not in scores


def test_the_least_useful_is_named_with_its_cost_if_all_are_used():
    log_p = LOG_P.copy()
    log_p[2, 6] = -1.0
    assert found(log_p, record=np.zeros(7, int))["recommendation"] == (
        "All 3 hypotheses are used: dropping the least useful, 2, costs 1.1 nats per answer."
    )
    log_p[2] = [-9.0, 0.0, -9.0, 0.0, -9.0, -9.0, 7.0]
    assert found(log_p)["recommendation"].startswith("All 3 hypotheses are used: dropping the least useful, 0, costs")


def test_what_can_be_dropped_is_named_with_the_number_to_try():
    scores = found(record=np.zeros(7, int))
    assert scores["droppable"] == [2] and scores["recommendation"] == (
        "Hypothesis 2 could be dropped: this costs 0.14 nats per answer; try --num-hypotheses 2."
    )
    equal = found(np.ones((3, 7)))
    assert equal["droppable"] == [0, 1] and means(equal["answer_drop_cost"]) == [0.0] * 3
    assert equal["recommendation"] == (
        "Hypotheses 0 and 1 could be dropped: this costs 0 nats per answer (0 to 0); try one model, --methods mle_r."
    )


def test_a_cost_that_may_be_too_small_is_said_to_be_unclear():
    """Its mean is below log(3/2), and its upper end is not, if one of 4 sources decides."""
    scores = found()
    assert scores["droppable"] == []
    assert scores["recommendation"].startswith(
        "It is unclear whether hypothesis 2 is needed: dropping it costs 0.14 nats per answer (0 to 0."
    )
    assert scores["recommendation"].endswith("; test on more sources.")


def test_a_pair_that_can_be_merged_is_named_if_none_can_be_dropped():
    log_p = LOG_P.copy()
    log_p[2, 6] = -1.0
    merged = {(0, 1): np.full(7, -5.0), (0, 2): np.where(log_p[0] > log_p[2], -1.25, -1.0), (1, 2): log_p[1] - 1}
    scores = found(log_p, merged)
    assert scores["merged_pairs"] == [(0, 1), (0, 2), (1, 2)]
    assert means(scores["answer_merge_cost"]) == pytest.approx([24 / 7, 0.75 / 7, 11 / 7])
    assert means(scores["merge_cost"]) == pytest.approx(
        [4 * (1 / 2 + 1 / 4 + 1) * 2 / 7, 0.25 * (1 / 2 + 1 / 4 + 1) / 7, (1 / 2 + 1 / 4 + 1 + 8 / 5) / 7]
    )
    assert scores["recommendation"].startswith("Hypotheses 0 and 2 could be merged: this costs 0.11 nats per answer")
    assert scores["recommendation"].endswith("; try --num-hypotheses 2.")
    single = np.zeros(7, int)
    assert found(LOG_P, merged, single)["recommendation"].startswith("Hypothesis 2 could be dropped")
    del merged[0, 2]
    assert found(log_p, merged)["recommendation"].startswith("All 3 hypotheses are used")


def test_pairs_of_more_than_five_are_refused(tmp_path):
    assert Config.from_options(workdir=tmp_path, num_hypotheses=5, merge_costs=True).evaluation.merge_costs
    with pytest.raises(ValueError, match="--merge-costs .* at most --num-hypotheses 5; got 6, which has 15 pairs"):
        Config.from_options(workdir=tmp_path, num_hypotheses=6, merge_costs=True)
