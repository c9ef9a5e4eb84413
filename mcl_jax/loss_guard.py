"""A guard against losses that are NaN: it names the step, the hypothesis and the last good checkpoint."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

CHECKED = ("loss", "log_likelihood", "gradient_norm", "step")  # metrics that a `LossGuard` looks at


class LossGuard:
    """Collects metrics on the device and checks them together. Call `check` before each log line and checkpoint.

    Attributes:
      bad_gradient: the first of the checked steps whose gradient_norm was not finite; None if there was none.
    """

    def __init__(self):
        self.bad_gradient: int | None = None
        self._steps: list[int] = []
        self._metrics: list[dict[str, Any]] = []

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remembers the loss of a step, and log_likelihood [K] and gradient_norm if they are there; waits for nothing.

        Args:
          step: number of the step; a "step" among the metrics takes precedence.
          metrics: metrics of the step.
        """
        self._steps.append(step)
        self._metrics.append({name: metrics[name] for name in CHECKED if name in metrics})

    def check(self, last_good: int | None = None) -> None:
        """Calls `check_finite` on the stored steps and forgets them."""
        steps, metrics, self._steps, self._metrics = self._steps, jax.device_get(self._metrics), [], []
        if self.bad_gradient is None:
            self.bad_gradient = _first_bad_gradient(steps, metrics)
        check_finite(steps, metrics, last_good, self.bad_gradient)


def check_finite(
    steps: Sequence[int],
    metrics: Sequence[Mapping[str, Any]],
    last_good: int | None = None,
    bad_gradient: int | None = None,
) -> None:
    """Checks that every loss is finite.

    Args:
      steps: numbers of the steps.
      metrics: the loss of each step, and log_likelihood [K] where it is known; on the device or on the host.
      last_good: step of the last checkpoint; None if there is none.
      bad_gradient: the first step whose gradient was not finite, if it is known; the loss often follows a step later.
    Raises:
      FloatingPointError: if a loss is NaN or infinite; names the first such step, the hypotheses that diverged, an
        earlier step whose gradient was not finite, and the last good checkpoint.
    """
    for step, values in zip(steps, jax.device_get(list(metrics)), strict=True):
        loss = float(np.float64(values["loss"]))
        if not math.isfinite(loss):
            step, why = int(values.get("step", step)), _diverged(values.get("log_likelihood"))
            if bad_gradient is not None and bad_gradient < step:
                why += f", after a gradient that was not finite at step {bad_gradient}"
            raise FloatingPointError(
                f"the loss is {loss} at step {step}{why}; {describe_kept(last_good)} (lower the learning rate, or clip "
                "the gradients?)"
            )


def describe_kept(last_good: int | None) -> str:
    """Says which checkpoint is the last good one, for the end of an error; None if there is none."""
    return "there is no checkpoint yet" if last_good is None else f"the last good checkpoint is step {last_good}"


def _first_bad_gradient(steps: Sequence[int], metrics: Sequence[Mapping[str, Any]]) -> int | None:
    norms = [(int(m.get("step", step)), m.get("gradient_norm", 0.0)) for step, m in zip(steps, metrics, strict=True)]
    return next((step for step, norm in norms if not np.isfinite(np.float64(norm))), None)


def _diverged(log_likelihood: Any) -> str:
    """Says which hypotheses have a log-likelihood that is not finite; log_likelihood is [K] or None."""
    values = np.atleast_1d(np.asarray([] if log_likelihood is None else log_likelihood, np.float64))
    broken = np.flatnonzero(~np.isfinite(values)).tolist()
    if not broken:
        return ""
    which = f"hypothesis {broken[0]}" if len(broken) == 1 else f"hypotheses {', '.join(map(str, broken))}"
    return f" because the log-likelihood of {which} (of K={values.size}) is {values[broken[0]]}"
