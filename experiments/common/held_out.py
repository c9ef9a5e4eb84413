"""Held-out evaluation: log-likelihoods of answers under each hypothesis, and the numbers that come from them."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mcl_jax as mcl
from experiments.common.config import Method
from experiments.common.task import Items, Task
from mcl_jax import data, metrics, objectives


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """log p of held-out answers under each hypothesis.

    Attributes:
      log_p: Σ log p in nats [K, N].
      tokens: number of tokens of each answer [N].
      mode: index into the modes of the corpus, −1 if unknown [N].
      record: index of the source of each answer [N].
    """

    log_p: np.ndarray
    tokens: np.ndarray
    mode: np.ndarray
    record: np.ndarray

    @cached_property
    def winner(self) -> np.ndarray:
        """The likeliest hypothesis of each answer [N]."""
        return np.asarray(objectives.winners(jnp.asarray(self.log_p), jax.random.key(0)))

    @property
    def losses(self) -> np.ndarray:
        """Winner-takes-all loss of each answer, −max_k log p / tokens, in nats per token [N]."""
        return -self.log_p.max(0) / self.tokens

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())

    def mean_per_record(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of values [N] over the answers of each source, since these are not independent."""
        return np.array([values[self.record == record].mean() for record in np.unique(self.record)])


def evaluator(task: Task, method: Method):
    """Returns a function (state, items) -> `Likelihoods`, which compiles once for each length of batch.

    The items of list are those of its own task, see `Task.learned`.
    """
    task, model = task.learned(method), task.model(method)
    return lambda state, items: likelihoods_under(task, model, state.params, state.adapters, items)


def likelihoods_under(task: Task, model: Any, params: Any, adapters: Any, items: Items) -> Likelihoods:
    """Returns the likelihoods of answers under the hypotheses of a model.

    Args:
      task: the task, whose base the model adapts.
      model, params, adapters: as in `mcl.language_model.evaluate`.
      items: the answers.
    """
    batches = list(data.eval_batches(items.encoded, task.config.evaluation_batches))
    inputs, mesh = (task.inputs(items, batch) for batch in batches), task.config.training.device_mesh()
    log_p, tokens = mcl.language_model.evaluate(model, params, adapters, inputs, mesh=mesh)
    modes, records = (np.concatenate([batch[name] for batch in batches]) for name in ("mode", "index"))
    real = records != data.NO_RECORD
    return Likelihoods(log_p[:, real], tokens[real], modes[real], records[real])


def summary(likelihoods: Likelihoods, task: Task) -> dict[str, Any]:
    """Returns loss and win rates, and more if modes are known.

    Known modes give the loss of each mode and, for several hypotheses, the win matrix [mode, k]. If there are several
    modes, purity and mutual information are added.
    """
    num_hypotheses, known = len(likelihoods.log_p), likelihoods.mode != data.NO_MODE
    modes = [task.corpus.modes[mode] for mode in likelihoods.mode[known]]
    wins = np.bincount(likelihoods.winner, minlength=num_hypotheses)
    scores = {"eval_loss": likelihoods.loss, "win_rate": wins / wins.sum()}
    if modes and num_hypotheses > 1:
        winner = likelihoods.winner[known].tolist()
        wins = metrics.win_matrix(winner, modes, num_hypotheses)
        scores |= {"win_matrix": wins.counts, "modes": wins.modes}
        if len(wins.modes) > 1:  # with one mode, each hypothesis is pure whatever it wins
            scores["purity"] = metrics.purity(winner, modes, num_hypotheses).mean
            scores["mutual_information"] = metrics.normalized_mutual_information(winner, modes).mean
    if modes:
        losses, mode = likelihoods.losses[known], np.array(modes)
        scores["loss_of_mode"] = {name: float(losses[mode == name].mean()) for name in sorted(set(modes))}
    return scores


def gap(likelihoods: Likelihoods, mcl_likelihoods: Likelihoods) -> dict[str, Any]:
    """Returns how much higher the loss of a method is than that of LoRA-MCL on the same answers.

    `loss_above_mcl` is in nats per token, as the losses are, and `answer_loss_above_mcl` in nats per answer: K modes
    that one model cannot tell apart cost it log K of these. Each is a mean with its 95 % interval, which resamples
    sources. With a single source there is no interval.
    """
    above = likelihoods.losses - mcl_likelihoods.losses
    per_token, per_answer = (
        metrics.Bootstrap().mean(likelihoods.mean_per_record(values)) for values in (above, above * likelihoods.tokens)
    )
    return {"loss_above_mcl": with_interval(per_token), "answer_loss_above_mcl": with_interval(per_answer)}


def with_interval(score: metrics.Score) -> dict[str, float] | float:
    """Returns the mean of a score and the ends of its 95 % interval; only the mean if it has no interval."""
    if not np.isfinite(score.low):
        return score.mean
    return {"mean": score.mean, "low": score.low, "high": score.high}
