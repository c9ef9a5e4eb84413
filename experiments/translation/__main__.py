"""`python -m experiments.translation --workdir DIR`: trains K hypotheses on text with several right answers."""

from functools import partial

from experiments.common.decoding import samples
from experiments.common.experiment import Columns, draw, finish, page_of, show, write_page
from experiments.common.methods import compare
from experiments.common.recipe import save_recipe
from experiments.translation.config import Config, parse
from experiments.translation.scores import scores, training_targets
from experiments.translation.task import load_base, load_data
from mcl_jax import hosts
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.run import Run

COLUMNS = Columns(
    table={
        "test loss": "test_loss",
        "above MCL": "loss_above_mcl",
        "oracle BLEU": "oracle_bleu",
        "per reference": "oracle_bleu_per_reference",
        "mean BLEU": "mean_bleu",
        "chrF": "chrf",
        "Div-2": "div_2",
        "pairwise BLEU": "pairwise_bleu",
        "purity": "purity",
        "win rate": "win_rate",
    },
    quality=("oracle BLEU", "oracle_bleu"),
    diversity=("diversity (Div-2)", "div_2"),
)


def main(config: Config) -> None:
    """Runs the whole experiment."""
    config.hosts.start()
    with Run(config.workdir, config, volatile=config.volatile, wandb=config.tracking.wandb) as run:
        corpus = None
        if run.finished:
            run.say_finished()
        else:
            page_of(run).unlink(missing_ok=True)

            # Data and base.
            with hosts.first_before_others("load the data"):
                corpus = load_data(config)
            task = load_base(config, corpus)
            asked = task.records("test", config.evaluation.decode_items)
            known = training_targets(task.records("train"))
            score = partial(scores, records=asked, known=known, **config.evaluation.folders)

            # Train, evaluate and decode with every method.
            results, likelihoods, answers = compare(run, task, asked, score)
            save_recipe(run, task)
            finish(run, results, likelihoods, samples(asked, answers))

        # Report: figures and page if they are missing, and the table.
        if hosts.first():
            if not page_of(run).exists():
                draw(run, config, COLUMNS)
                with attempt("page.html"):
                    corpus = corpus or load_data(config)
                    write_page(run, corpus.split("test"), COLUMNS)
            show(run, COLUMNS)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
