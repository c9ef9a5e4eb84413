"""`python -m experiments.image_captioning --workdir DIR`: trains K hypotheses that caption a picture."""

from functools import partial

from experiments.common.captioning.nearest import NEAREST, nearest
from experiments.common.captioning.relevance import relevance
from experiments.common.captioning.scores import COLUMNS, scores, training_captions
from experiments.common.captioning.task import load_base, load_data
from experiments.common.decoding import samples
from experiments.common.experiment import draw, finish, page_of, show, write_page
from experiments.common.methods import compare
from experiments.common.recipe import save_recipe
from experiments.image_captioning.classes import CLASSES, has_classifier, likeliest_classes
from experiments.image_captioning.config import Config, parse
from experiments.image_captioning.images import Pictures
from mcl_jax import hosts
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.run import Run


def main(config: Config) -> None:
    """Runs the whole experiment."""
    config.hosts.start()
    with Run(config.workdir, config, volatile=config.volatile, wandb=config.tracking.wandb) as run:
        media, corpus = Pictures(config.data.padded), None
        if run.finished:
            run.say_finished()
        else:
            page_of(run).unlink(missing_ok=True)

            # Data and base.
            with hosts.first_before_others("load the data"):
                corpus = load_data(config, media)
            task = load_base(config, media, corpus)
            train_split, split = task.records("train"), task.records("test")
            tested = task.records("test", config.evaluation.test_items)
            asked = task.records("test", config.evaluation.decode_items)
            score = partial(
                scores,
                records=asked,
                split=split,
                train=train_split,
                known=training_captions(train_split),
                **config.evaluation.folders,
            )

            # Train, evaluate and decode with every method.
            seen = partial(relevance, task, run, records=tested, retrieval_items=config.evaluation.retrieval_items)
            results, likelihoods, answers = compare(run, task, asked, score, seen)

            # Baselines that need no training.
            if most := config.evaluation.nearest_items:
                answers[NEAREST] = nearest(task, asked, most)
                results[NEAREST] = score(answers[NEAREST])
            if has_classifier(task.module):
                with attempt("the baseline of class names"):
                    answers[CLASSES] = likeliest_classes(task, asked)
                    results[CLASSES] = score(answers[CLASSES])
            save_recipe(run, task)
            finish(run, results, likelihoods, samples(asked, answers))

        # Report: figures and page if they are missing, and the table.
        if hosts.first():
            if not page_of(run).exists():
                draw(run, config, COLUMNS)
                with attempt("page.html"):
                    corpus = corpus or load_data(config, media)
                    write_page(run, corpus.split("test"), COLUMNS)
            show(run, COLUMNS)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
