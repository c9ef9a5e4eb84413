"""Options of what is watched during a training."""

import dataclasses
from dataclasses import field
from typing import Annotated

from tyro.conf import FlagCreatePairsOff

from experiments.common.options import NO_INFLUENCE, VOLATILE, Options

TRACED = 5  # calls of the training step


@dataclasses.dataclass(frozen=True)
class Tracking(Options):
    """Curves elsewhere, and traces."""

    wandb: str | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Project in Weights & Biases that gets the curves and the results too (pip install 'mcl_jax[wandb]').
    With WANDB_MODE=offline, they stay in --workdir."""
    profile: Annotated[bool, FlagCreatePairsOff] = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Trace a few steps of each training with jax.profiler, after their compilation, into profile/ in --workdir."""

    @property
    def traced(self) -> int:
        """Number of steps to trace."""
        return TRACED if self.profile else 0
