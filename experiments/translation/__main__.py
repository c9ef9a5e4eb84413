"""`python -m experiments.translation --workdir DIR`: trains K hypotheses on text with several right answers."""

from functools import partial

from experiments.common.config import LIST
from experiments.common.decoding import answer, samples
from experiments.common.experiment import Columns, draw, finish, merged, on_test, page_of, show, write_page
from experiments.common.held_out import evaluator
from experiments.common.lists import NO_LIKELIHOOD
from experiments.common.recipe import save_recipe
from experiments.common.selection import Selection, select
from experiments.common.training import costs, train
from experiments.common.usage import merged_pairs
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
            test = task.encode(task.records("test", config.evaluation.test_items))
            asked = task.records("test", config.evaluation.decode_items)

            known = training_targets(task.records("train"))
            score = partial(scores, records=asked, known=known, **config.evaluation.folders)

            results, likelihoods, answers = {}, {}, {}
            for method in config.methods:
                # Train, and evaluate on the test split.
                evaluate = evaluator(task, method)
                state, seconds = train(run, task, method, evaluate)
                held_out, selection = NO_LIKELIHOOD, Selection()
                if method != LIST:
                    likelihoods[method] = evaluate(state, test)
                    of_pairs = merged_pairs(task, method, state, test)
                    held_out = on_test(likelihoods[method], task, of_pairs)
                    of_items = partial(evaluate, state)
                    selection = select(task, run, method, of_items, (test, likelihoods[method]), asked)

                # Decode, and score the answers.
                for name, decoder in config.decoders(method).items():
                    answers[name] = selection.marked(answer(task, run, name, state, asked, decoder))
                    spent = costs(state, seconds) | answers[name].costs
                    results[name] = merged(held_out, score(answers[name]), spent, selection.results(answers[name]))

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
