"""Adapters in some layers only, and what a training step then computes once for all hypotheses."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import mcl_jax as mcl
from mcl_jax import interop
from mcl_jax.models import Llama, LlamaConfig

D, T, B = 59, 11, 3
LLAMA = LlamaConfig(
    vocab_size=37,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=5,
    num_key_value_heads=5,
    scan=False,
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jnp.tanh(nn.Dense(D, use_bias=False, name="up")(x))


class Tower(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(4):
            x = Block(name=f"layers_{i}")(x)
        return x


def flops_of(layers, num_hypotheses, module=None):
    """Counts the floating-point operations of a compiled step, in products of all rows with one matrix."""
    module, x = module or Tower(), jnp.ones((B, T, D))
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=1, alpha=3, targets="up", layers=layers))
    make = lambda params: model.init(jax.random.key(1), params, x, num_hypotheses=num_hypotheses)
    log_likelihood = lambda params, adapters, x, rng: model.apply(params, adapters, x).sum((1, 2))
    step, optimizer = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optax.sgd(0.1)), optax.sgd(0.1)
    state = mcl.TrainState.abstract(params=params, adapters=jax.eval_shape(make, params), optimizer=optimizer)
    return step.lower(state, x).compile().cost_analysis()["flops"] / (2 * B * T * D * D)


def test_what_lies_below_the_adapters_is_computed_once():
    # Each layer is one product with its matrix, and one more where a gradient flows through it. Below the adapters, and
    # in the first adapted layer, whose input does not depend on k, the product is computed once for all K and passes.
    everywhere, upper, more = flops_of(None, 5), flops_of((2, 3), 5), flops_of((2, 3), 8)
    assert everywhere > 1 + 3 * 5 + 3 + 3
    assert upper < 1.3 * (2 + 1 + 5 + 1 + 1)
    np.testing.assert_allclose(more - upper, 3, rtol=0.3)  # three further hypotheses in the last layer


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_trunk_of_a_language_model_is_computed_once(remat):
    """Each further hypothesis costs one forward pass of the adapted layers alone, with and without recomputation."""
    module, params = tiny(num_hidden_layers=4, hidden_size=60, intermediate_size=84, vocab_size=3, remat=remat)

    def further(layers):
        counts = []
        for num_hypotheses in (3, 5):
            model, adapters = adapters_of(module, params, layers, num_hypotheses)
            optimizer = optax.sgd(0.1)
            step = mcl.make_train_step(mcl.language_model.log_likelihood_fn(model), mcl.objectives.wta(), optimizer)
            state = mcl.TrainState.abstract(params=params, adapters=adapters, optimizer=optimizer)
            batch = {"tokens": jnp.ones((2, 12), jnp.int32), "target_mask": jnp.ones((2, 11), bool)}
            counts.append(step.lower(state, batch).compile().cost_analysis()["flops"])
        return counts[1] - counts[0]

    assert further((3,)) < 0.35 * further(None)


def tiny(**changes):
    module = Llama(dataclasses.replace(LLAMA, **changes))
    return module, jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def adapters_of(module, params, layers, num_hypotheses=3):
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=("q_proj", "up_proj"), layers=layers))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = lambda params: model.init(jax.random.key(0), params, tokens, num_hypotheses=num_hypotheses, method="hidden")
    return model, jax.eval_shape(init, params)


def test_adapters_of_the_upper_layers_alone(tmp_path):
    module, params = tiny()
    model, shapes = adapters_of(module, params, range(1, 3))
    layers = {"/".join(path[1:-1]) for path in flatten_dict(shapes)}
    names = ("self_attn/q_proj", "mlp/up_proj")
    assert layers == {f"layers_{i}/{name}" for i in (1, 2) for name in names}
    adapters = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    folder = interop.save_peft(tmp_path, model, adapters)[0]
    assert json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"] == [1, 2]
    _, loaded = interop.load_peft(tmp_path, module)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


class Part(nnx.Module):
    def __init__(self):
        self.up = nnx.Linear(5, 5, rngs=nnx.Rngs(0))


class Parts(nnx.Module):
    def __init__(self):
        self.layers, self.head = nnx.List([Part() for _ in range(4)]), nnx.Linear(5, 7, rngs=nnx.Rngs(1))

    def __call__(self, x):
        for part in self.layers:
            x = part.up(x)
        return self.head(x)


def test_layers_of_an_nnx_module():
    def init(layers):
        model = mcl.Hypotheses(Parts(), mcl.LoraConfig(rank=1, alpha=3, targets=("up", "head"), layers=layers))
        return model.init(jax.random.key(0), nnx.state(Parts()), jnp.ones((1, 5)), num_hypotheses=3)

    assert {"/".join(path[:-1]) for path in flatten_dict(init((0, 3)))} == {"layers/0/up", "layers/3/up"}
    with pytest.raises(
        ValueError, match=r"layers: \[5\] have no targets; the targets lie in the layers \[0, 1, 2, 3\]"
    ):
        init((0, 5))


def test_refusals():
    with pytest.raises(
        ValueError, match=r"layers: \[4, 7\] have no targets; the targets lie in the layers \[0, 1, 2\]"
    ):
        adapters_of(*tiny(), (1, 4, 7))
    with pytest.raises(ValueError, match="no target lies in a layer with a number; load the base with scan=False"):
        adapters_of(*tiny(scan=True), (1,))
    for wrong, message in [((), "at least one"), ((1, 1), "different"), ((-1,), "at least 0"), ((1.5,), "an integer")]:
        with pytest.raises(ValueError, match=message):
            mcl.LoraConfig(layers=wrong)
