"""Train on a mesh of devices: `python examples/mesh.py`, which makes 8 devices out of one CPU.

The mesh has 4 x 2 devices. Batches are cut over the first axis, "data", and the matrices of the frozen base over the
second, "model", so that a base which does not fit on one device can be trained on two. The numbers are those of one
device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from mcl_jax.models import Llama, LlamaConfig

NUM_HYPOTHESES, BATCH, LENGTH, VOCABULARY = 3, 8, 12, 97


def main() -> dict[str, object]:
    """Runs the same three steps on one device and on the mesh, and prints both losses."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    module = Llama(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    tokens = jax.random.randint(jax.random.key(0), (BATCH, LENGTH), 0, VOCABULARY)
    params = module.init(jax.random.key(1), tokens)["params"]
    one_device = losses(module, params, tokens, mesh=None)

    # `mcl.models.from_pretrained(folder, sharding=mcl.parallel.base_sharding(mesh))` reads weights in place like this.
    cut = mcl.parallel.base_sharding(mesh)
    params = jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(x, cut(path, x.shape)), params)
    on_mesh = losses(module, params, tokens, mesh=mesh)

    kernel = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]  # of all layers
    print(
        f"a matrix {kernel.shape} of the base, of which each device holds {kernel.sharding.shard_shape(kernel.shape)}"
    )
    print(f"one device  {np.round(one_device, 5).tolist()}")
    print(f"mesh 4 x 2  {np.round(on_mesh, 5).tolist()}")
    return {"one_device": one_device, "mesh": on_mesh}


def losses(module, params, tokens, mesh) -> list[float]:
    """The losses of three training steps."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=4, alpha=8))
    adapters = model.init(jax.random.key(2), params, tokens, num_hypotheses=NUM_HYPOTHESES)

    def log_likelihood(params, adapters_k, batch, rng):
        logits = model.apply(params, adapters_k, batch[:, :-1], dropout_rng=rng)
        return mcl.sequence_log_likelihood(logits, batch[:, 1:], jnp.ones_like(batch[:, 1:], bool))

    objective, optimizer = mcl.objectives.wta(), optax.adam(1e-2)
    step = mcl.make_train_step(log_likelihood, objective, optimizer, backward="winner", mesh=mesh)
    state = mcl.TrainState.create(
        params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(3), objective=objective
    )
    found = []
    for _ in range(3):
        state, metrics = step(state, tokens)
        found.append(float(metrics["loss"]))
    return found


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # leave out these two lines where there are 8 real devices
    jax.config.update("jax_num_cpu_devices", 8)
    main()
