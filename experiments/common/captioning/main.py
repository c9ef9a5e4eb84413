"""A captioning experiment from its command line to its figures."""

from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.common import experiment
from experiments.common.captioning.config import Config
from experiments.common.captioning.modality import Modality
from experiments.common.captioning.scores import scores
from experiments.common.captioning.task import load
from mcl_jax.command_line import errors_in_a_line

COLUMNS = {
    "test loss": "test_loss", "above MCL": "loss_above_mcl", "oracle CIDEr-D": "oracle_cider_d",
    "oracle SPIDEr": "oracle_spider", "oracle BLEU-1": "oracle_bleu_1", "mean CIDEr-D": "mean_cider_d",
    "Div-2": "div_2", "mBLEU-4": "mbleu_4", "purity": "purity", "win rate": "win_rate",
}  # fmt: skip


def main(config: Config, modality: Modality) -> None:
    """The whole experiment."""
    report = experiment.Report(
        scores=partial(scores, corenlp=config.corenlp),
        columns=COLUMNS,
        quality=("oracle CIDEr-D", "oracle_cider_d"),
        diversity=("diversity (Div-2)", "div_2"),
    )
    experiment.main(config, lambda config: load(config, modality), report)


def run(parse: Callable[[], Config], modality: Callable[[Any], Modality]) -> None:
    """`main` for a command line, with its errors in a line."""
    with errors_in_a_line():
        config = parse()
        main(config, modality(config))
