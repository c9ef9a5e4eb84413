"""`python -m experiments.translation --workdir DIR`: K hypotheses on text with several right answers."""

from experiments.common import experiment
from experiments.translation.config import Config, parse
from experiments.translation.scores import scores
from experiments.translation.task import load
from mcl_jax.command_line import errors_in_a_line

REPORT = experiment.Report(
    scores=lambda answers, records, split: scores(answers, records),
    columns={
        "test loss": "test_loss", "above MCL": "loss_above_mcl", "oracle BLEU": "oracle_bleu",
        "per reference": "oracle_bleu_per_reference", "mean BLEU": "mean_bleu", "chrF": "chrf", "Div-2": "div_2",
        "pairwise BLEU": "pairwise_bleu", "purity": "purity", "win rate": "win_rate",
    },
    quality=("oracle BLEU", "oracle_bleu"),
    diversity=("diversity (Div-2)", "div_2"),
)  # fmt: skip


def main(config: Config) -> None:
    """The whole experiment."""
    experiment.main(config, load, REPORT)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
