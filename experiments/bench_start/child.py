"""One start in a process of its own: `python -m experiments.bench_start.child OPTIONS`, with the options as JSON.

It prints the seconds of each part as JSON. Imports are a part, so they stand where they are timed.
"""

import json
import sys
import time
from typing import Any


def start(options: dict[str, Any]) -> dict[str, float]:
    """Takes two training steps of LoRA-MCL, and times every part of it.

    Args:
      options: base, num_hypotheses, batch, length, rank and scan.
    Returns:
      Seconds of each part, by its name.
    """
    seconds, began = {}, time.perf_counter()

    def passed(part: str) -> None:
        nonlocal began
        seconds[part] = time.perf_counter() - began
        began = time.perf_counter()

    import jax
    import numpy as np
    import optax

    import mcl_jax as mcl
    from experiments.common.smollm2 import smollm2
    from mcl_jax import language_model

    passed("import")
    module, params, _ = mcl.models.from_pretrained(options["base"] or smollm2(), scan=options["scan"])
    jax.block_until_ready(params)
    passed("read")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=options["rank"], targets=mcl.models.lora_targets(module)))
    shape = (options["batch"], options["length"])
    tokens = np.random.default_rng(0).integers(0, module.config.vocab_size, shape, dtype=np.int32)
    batch = {"tokens": tokens, "target_mask": np.ones((shape[0], shape[1] - 1), bool)}
    adapters = model.init(jax.random.key(0), params, tokens, num_hypotheses=options["num_hypotheses"])
    optimizer = optax.adamw(1e-3)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(1))
    step = mcl.make_train_step(language_model.log_likelihood_fn(model), mcl.objectives.balanced_wta(), optimizer)
    jax.block_until_ready(state)
    passed("adapters")
    for part in ("first step", "second step"):
        state, _ = jax.block_until_ready(step(state, batch))
        passed(part)
    return seconds


if __name__ == "__main__":
    print(json.dumps(start(json.loads(sys.argv[1]))))
