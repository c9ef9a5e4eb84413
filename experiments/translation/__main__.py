"""`python -m experiments.translation --workdir DIR`: K hypotheses on text with several right answers."""

import dataclasses
from typing import Any

import rich
import rich.markup

from experiments.translation import answers as decoding
from experiments.translation import figures
from experiments.translation.config import Config, parse
from experiments.translation.task import Task, evaluator
from experiments.translation.training import gap, summary, train
from mcl_jax.console import table
from mcl_jax.run import Run

# Fields that say where things are and how much is reported, not what a run trains.
VOLATILE = (
    "workdir", "cache", "methods", "eval_items", "test_items", "decode_items", "mle_decoders", "num_beams",
    "max_new_tokens", "devices", "accumulate", "remat",
)  # fmt: skip
SHOWN = 5


def evaluate(task: Task, run: Run) -> dict[str, Any]:
    """Trains and scores every method: the `methods` of results.json. Samples are in the first, mcl if it is there."""
    config = task.config
    test, asked = task.encode(task.records("test", config.test_items)), task.records("test", config.decode_items)
    found, answers, likelihoods = {}, {}, {}
    for method in config.methods:
        state, seconds = train(run, task, method)
        likelihoods[method] = evaluator(task, method)(state, test)
        held_out = summary(likelihoods[method], task)
        held_out["test_loss"] = held_out.pop("eval_loss")
        for name, decoder in config.decoders(method).items():
            rich.print(f"[dim]{name}: answering {len(asked)} sources[/]")
            answers[name] = decoding.answer(task, method, state, asked, decoder)
            found[name] = held_out | decoding.scores(answers[name], asked) | decoding.rates(answers[name])
            found[name] |= {"seconds": seconds, "decode_seconds": answers[name].seconds}
    for name in found if "mcl" in likelihoods else ():
        if (method := name.partition("/")[0]) != "mcl":
            found[name] |= gap(likelihoods[method], likelihoods["mcl"])
    found["mcl" if "mcl" in found else next(iter(found))]["samples"] = decoding.samples(asked, answers)
    return {"methods": found}


def show(results: dict[str, Any]) -> None:
    """Prints a few sources with the answers of every method, and the table."""
    for sample in next(of["samples"] for of in results["methods"].values() if "samples" in of)[:SHOWN]:
        rich.print(f"\n[bold]{rich.markup.escape(sample['source'])}[/]")
        for name, texts in sample["answers"].items():
            for k, text in enumerate(texts):
                rich.print(f"  [cyan]{name} {k}[/]  {rich.markup.escape(text)}")
    columns = {
        "test loss": "test_loss", "above MCL": "loss_above_mcl", "oracle BLEU": "oracle_bleu",
        "per reference": "oracle_bleu_per_reference", "mean BLEU": "mean_bleu", "chrF": "chrf", "Div-2": "div_2",
        "pairwise BLEU": "pairwise_bleu", "purity": "purity", "win rate": "win_rate",
    }  # fmt: skip
    rows = [[name, *[_shown(of.get(key)) for key in columns.values()]] for name, of in results["methods"].items()]
    table("Held-out answers", ["", *columns], rows)


def _shown(value: Any) -> str:
    """A number, a list of them, or a mean with its interval."""
    match value:
        case None:
            return ""
        case {"mean": mean, "low": low, "high": high}:
            return f"{mean:.3f} ({low:.3f} to {high:.3f})"
        case list():
            return " ".join(f"{v:.2f}" for v in value)
        case _:
            return f"{value:.3f}"


def main(config: Config) -> None:
    """The whole experiment."""
    with Run(config.workdir, dataclasses.asdict(config), volatile=VOLATILE) as run:
        if run.finished:
            run.say_finished()
        else:
            results = evaluate(Task.load(config), run)
            figures.draw(run, config, results)
            run.finish(results)
        show(run.results())
        rich.print(f"Figures and results.json are in {config.workdir}.")


if __name__ == "__main__":
    try:
        main(parse())
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
