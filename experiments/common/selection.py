"""The selector of a run: γ_k(c), the probability that hypothesis k answers a source best, told from the prompt alone.

It is trained after the adapters on training and validation sources, tested on the test split, and saved beside
answer.json.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.config import Method
from experiments.common.decoding import Answers
from experiments.common.held_out import Likelihoods, with_interval
from experiments.common.task import Items, Task, prompts_of
from mcl_jax import data, generation, metrics, selector
from mcl_jax.metrics.calibration import BINS, calibration_error
from mcl_jax.run import Run
from mcl_jax.selector import Examples, Selector

Evaluate = Callable[[Items], Likelihoods]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a selector says of the sources that the methods answer; nothing if there is none.

    Attributes:
      scores: its scores on the test split.
      log_gamma: log γ of the sources [K, N].
      asked: likelihoods of the right answers to the sources.
    """

    scores: dict[str, Any] | None = None
    log_gamma: np.ndarray | None = None
    asked: Likelihoods | None = None

    def marked(self, answers: Answers) -> Answers:
        """Returns answers that know which of them the likeliest hypothesis of each source gave: its best one."""
        if self.log_gamma is None:
            return answers
        each = len(answers.texts[0]) // len(self.log_gamma)
        return dataclasses.replace(answers, selected=(self.log_gamma.argmax(0) * each).tolist())

    def results(self, answers: Answers) -> dict[str, Any]:
        """Returns {"selector": scores}.

        The scores have the accuracies for the sources that were answered, too: that of the selector, and that of the
        hypothesis whose answer has the highest likelihood under all (`mixture_scores`), which needs all K answers.
        """
        if self.scores is None:
            return {}
        each, record = len(answers.texts[0]) // len(self.log_gamma), self.asked.record
        chosen = {
            "answered_accuracy": self.log_gamma.argmax(0),
            "mixture_accuracy": np.array([np.argmax(scores) // each for scores in answers.log_likelihoods]),
        }
        found = {name: float((k[record] == self.asked.winner).mean()) for name, k in chosen.items()}
        return {"selector": self.scores | found}


def select(
    task: Task,
    run: Run,
    method: Method,
    evaluate: Evaluate,
    test: tuple[Items, Likelihoods],
    asked: tuple[data.Record, ...],
) -> Selection:
    """Trains the selector of the hypotheses, saves it in the run directory, and tests it. Other methods have none.

    Args:
      task: the task.
      run: the run.
      method: the method.
      evaluate: evaluates items with the trained state.
      test: items of the test split, and their likelihoods.
      asked: the records that the methods answer.
    """
    most = task.config.evaluation.selector_items
    if method != "mcl" or not most:
        return Selection()
    items = [task.encode(task.records(split, most)) for split in ("train", "validation")]
    likelihoods = [*map(evaluate, items), test[1]]
    items = [*items, test[0], task.encode(asked)]
    likelihoods.append(test[1] if asked == test[0].records else evaluate(items[-1]))
    features = _features(task, [one.records for one in items])
    train, validation = (_examples(*of) for of in zip(features[:2], likelihoods[:2], strict=True))
    fitted, prior = selector.fit(train, validation), selector.prior(train.weights, train.features.shape[1])
    fitted.save(run.workdir)
    scores = {"examples": len(train.features)} | scores_on(fitted, prior, features[2], likelihoods[2])
    return Selection(scores, np.asarray(fitted.log_gamma(features[3])), likelihoods[3])


def scores_on(fitted: Selector, prior: Selector, features: np.ndarray, likelihoods: Likelihoods) -> dict[str, Any]:
    """Returns how well γ tells the winners of answers, and the loss of the density Σ_k γ_k p_k.

    `accuracy` is the share of answers whose winner has the highest γ, and `density_loss` is −log Σ_k γ_k p_k in nats
    per token. `prior_` and `uniform_` are the same for the win rates of the training answers, and for γ = 1/K.
    `calibration_error` is that of the highest γ, in `calibration_bins` bins of equal width. `accuracy_above_prior` and
    `density_loss_below_prior` are differences with their 95 % intervals, which resample sources.

    Args:
      fitted: the selector.
      prior: that of the training answers alone.
      features: features of the records [M, D].
      likelihoods: likelihoods of answers to these records.
    """
    K, record, mean = len(likelihoods.log_p), likelihoods.record, lambda values: float(values.mean())
    of = {"": fitted, "prior_": prior, "uniform_": selector.init(features.shape[1], K)}
    log_gamma = {name: np.asarray(one.log_gamma(features))[:, record] for name, one in of.items()}
    right = {name: log_gamma[name].argmax(0) == likelihoods.winner for name in ("", "prior_")}
    log_p = likelihoods.log_p.astype(np.float32)
    losses = {name: np.asarray(selector.density_loss(log_gamma[name], log_p, likelihoods.tokens)) for name in of}
    difference = lambda a, b: with_interval(
        metrics.Bootstrap().mean(likelihoods.mean_per_record(a.astype(np.float64) - b.astype(np.float64)))
    )
    return (
        {f"{name}accuracy": mean(values) for name, values in right.items()}
        | {f"{name}density_loss": mean(values) for name, values in losses.items()}
        | {
            "accuracy_above_prior": difference(right[""], right["prior_"]),
            "density_loss_below_prior": difference(losses["prior_"], losses[""]),
            "calibration_error": calibration_error(np.exp(log_gamma[""].max(0)), right[""]),
            "calibration_bins": BINS,
        }
    )


def _examples(features: np.ndarray, likelihoods: Likelihoods) -> Examples:
    """Returns an example for each answer, with its winner."""
    winners = np.eye(len(likelihoods.log_p), dtype=np.float32)[likelihoods.winner]
    return Examples(features[likelihoods.record], winners.T)


def _features(task: Task, splits: Sequence[tuple[data.Record, ...]]) -> list[np.ndarray]:
    """Returns the features [M, D] of the prompts of some sets of records, which share one program."""
    records, model, mesh = sum(splits, ()), task.model("mcl"), task.config.training.device_mesh()
    batches = prompts_of(task, records, min(task.config.decoding.decode_batch, len(records)))
    rows = np.concatenate(
        [
            np.asarray(generation.prompt_features(model, task.params, prompts, mesh=mesh))[:real]
            for _, prompts, real in batches
        ]
    )
    return np.split(rows, np.cumsum([len(split) for split in splits])[:-1])
