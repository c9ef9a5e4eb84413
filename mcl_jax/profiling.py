"""A trace of a few training steps by jax.profiler, taken after their compilation."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcl_jax.console import say

BEFORE = 2  # calls with the same shapes before one is traced; a second call may compile once more


class Profiler:
    """Calls a training step, and traces some of the calls.

    A call is traced if there were two with batches of the same shapes before. A trace ends early at a batch with other
    shapes, whose step would compile.

    Args:
      step: the training step (state, batch) -> (state, metrics).
      calls: number of calls to trace; 0 traces none.
      folder: folder of the trace.
    """

    def __init__(self, step: Callable[[Any, Any], Any], calls: int, folder: Path):
        self._step, self._left, self.folder = step, calls, folder
        self._seen: collections.Counter = collections.Counter()
        self._traced: list[int] = []  # the steps of the trace that is being taken
        self._result: Any = None

    def __call__(self, number: int, state: Any, batch: Any) -> Any:
        """Returns the result of the step with this number."""
        if not self._left:
            return self._step(state, batch)
        if not self._is_known(batch):
            self.stop()
            return self._step(state, batch)
        if not self._traced:
            jax.block_until_ready(state)  # so that the trace has nothing of earlier steps
            jax.profiler.start_trace(self.folder)
        self._traced.append(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = self._result = self._step(state, batch)
        if len(self._traced) == self._left:
            self.stop()
        return result

    def stop(self) -> None:
        """Ends the trace if one is being taken, and says how to open it."""
        if not self._traced:
            return
        jax.block_until_ready(self._result)
        jax.profiler.stop_trace()
        say(
            f"The trace of steps {', '.join(map(str, self._traced))} is in {self.folder}. To open it: pip install "
            f"xprof, then xprof {self.folder}; or load its *.trace.json.gz at https://ui.perfetto.dev."
        )
        self._left, self._traced, self._result = 0, [], None

    def end(self) -> None:
        """Ends the trace, or says that no step could be traced."""
        if self._seen and self._left and not self._traced:
            say(f"No step was traced, since none came after {BEFORE} with the same shapes.")
        self.stop()

    def _is_known(self, batch: Any) -> bool:
        shapes = str(jax.tree.map(np.shape, batch))
        self._seen[shapes] += 1
        return self._seen[shapes] > BEFORE
