"""The objectives that are compared."""

import optax

from mcl_jax import objectives


def candidates(steps: int) -> dict[str, objectives.Objective]:
    """Returns the objectives by name, for a training of `steps` steps."""
    cooling, half = optax.exponential_decay(1.0, 1, 0.98), steps // 2
    return {
        "wta": objectives.wta(),
        "relaxed": objectives.relaxed_wta(0.05),
        "relaxed-fading": objectives.relaxed_wta(optax.linear_schedule(0.2, 0.0, half)),
        "relaxed-fading-small": objectives.relaxed_wta(optax.linear_schedule(0.05, 0.0, half)),
        "annealed": objectives.annealed(cooling),
        "mixture": objectives.mixture(),
        "balanced": objectives.balanced_wta(rate=0.05),
        "balanced-released": objectives.balanced_wta(rate=0.05, release_step=half),
    }
