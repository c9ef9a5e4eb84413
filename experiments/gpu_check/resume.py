"""A run that is killed twice ends as one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHILD = """
import sys, jax, jax.numpy as jnp, numpy as np, optax, mcl_jax as mcl
from experiments.gpu_check import models
module, params = models.base(models.TINY, jnp.float32)
model, adapters = models.hypotheses(module, params, 3)
optimizer, objective = optax.adam(1e-2), mcl.objectives.balanced_wta()
step = mcl.make_train_step(mcl.language_model.log_likelihood_fn(model), objective, optimizer)
state = mcl.TrainState.create(
    params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0), objective=objective
)
def batch(number):
    tokens = jax.random.randint(jax.random.key(number), (4, 17), 0, 97)
    if number in (60, 120): print("at", number, flush=True)
    return {"tokens": tokens, "target_mask": jnp.ones((4, 16), bool)}
fitted = mcl.fit(step, state, batch, steps=150, workdir=sys.argv[1], checkpoint_seconds=0.2)
np.savez(sys.argv[1] + "/end.npz", *jax.tree.leaves(fitted.state.adapters))
"""
DETERMINISTIC = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"}


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the outcome; raises an AssertionError if the adapters differ."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        straight, disturbed = Path(folder) / "straight", Path(folder) / "disturbed"
        started = time.monotonic()
        undisturbed = child(straight)  # meanwhile
        kills = 0
        for words in ("at 60", "at 120"):
            process = child(disturbed)
            for line in process.stdout:
                if line.strip() == words:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
            process.wait()
        assert child(disturbed).wait() == 0 and undisturbed.wait() == 0
        ends = [np.load(path / "end.npz") for path in (straight, disturbed)]
        equal = all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0].files)
        yield {"kills": kills, "bit_identical": equal, "seconds": round(time.monotonic() - started, 1)}
        assert equal and kills == 2


def child(workdir: Path) -> subprocess.Popen:
    """Starts the training."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        environment |= DETERMINISTIC
    command = [sys.executable, "-c", CHILD, str(workdir)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
