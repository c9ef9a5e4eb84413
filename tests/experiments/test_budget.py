"""Curves of quality and diversity against the rows that are decoded: the points and the figure."""

import pytest

from experiments.common import budget
from experiments.common.budget import Options, beams, configs, decoders
from experiments.common.decoders import budget as budget_of
from experiments.common.experiment import Columns
from experiments.translation.config import Config

COLUMNS = Columns({}, ("oracle BLEU", "oracle_bleu"), ("Div-2", "div_2"))


@pytest.mark.parametrize(("K", "numbers"), [(3, (3, 6, 9, 12, 15, 18, 21, 24)), (5, (5, 10, 15, 20, 25)), (29, (29,))])
def test_the_budgets_are_all_multiples_up_to_25(K, numbers):
    assert beams(Options(), K) == numbers
    assert beams(Options(budgets=(K, 7 * K)), K) == (K, 7 * K)


def test_each_decoder_has_a_point_for_each_budget_that_it_can_spend(tmp_path):
    config = Config.from_options(
        workdir=tmp_path, num_hypotheses=3, mle_decoders=("beam", "sampling"), mcl_decoders=("beam",)
    )
    at = configs(config, Options(budgets=(3, 9)))
    spent = {
        method: [
            (name, config.hypotheses_of(method) * budget_of(decoder)[0]) for name, _, decoder in decoders(at, method)
        ]
        for method in ("mcl", "mle_rk")
    }
    assert spent == {
        "mcl": [("mcl", 3), ("mcl", 9)],
        "mle_rk": [("mle_rk/beam", 3), ("mle_rk/sampling", 3), ("mle_rk/beam", 9)],
    }
    assert [config.decoding.num_beams for _, config, _ in decoders(at, "mcl")] == [3, 9]
    with pytest.raises(ValueError, match="--num-beams must be a multiple of --num-hypotheses 3"):
        configs(config, Options(budgets=(4,)))


def test_the_figure_and_the_table(capsys):
    point = lambda rows, quality, diversity: dict(
        decode_rows=rows, decode_seconds=1.0, oracle_bleu=quality, div_2=diversity
    )
    found = {"mcl": [point(9, 30.0, 0.7), point(3, 25.0, 0.8)], "mle_rk/diverse-0.5": [point(3, None, 0.5)]}
    figure = budget.draw(found, COLUMNS)
    lines = [[(line.get_label(), *map(list, line.get_data())) for line in axes.get_lines()] for axes in figure.axes]
    assert lines[0][0] == ("LoRA-MCL", [3, 9], [25.0, 30.0])
    assert lines[1] == [("LoRA-MCL", [3, 9], [0.8, 0.7]), ("LoRA-MLE, rank r·K diverse-0.5", [3], [0.5])]
    budget.show(found, COLUMNS)
    assert "n/a" in capsys.readouterr().out
