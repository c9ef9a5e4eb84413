"""Layers that people write: subclasses, lifted ones, odd equations, boxed parameters; and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import MLP, Named, Scanned, normal, randomized

import mcl_jax as mcl
from mcl_jax import hypotheses

K, B, T = 3, 5, 4
X, SEQUENCES = normal((B, 7)), normal((B, T, 7))


def setup(module, x, targets="up", **config):
    """(model, params, adapters with both A and B random)."""
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6.0, targets=targets, **config))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K)
    return model, params, randomized(jax.eval_shape(init), seed=2)


def close(actual, expected, tolerance=3e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


# --------------------------------------------------------------------------------------------- Subclasses and wrappers


class Plain(nn.Dense):
    """Adds nothing of its own."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x)


class Around(nn.Dense):
    """Does something before and after."""

    @nn.compact
    def __call__(self, x, *, gain=2.0):
        return nn.tanh(super().__call__(gain * x))


class Twice(Around):
    """Of two generations, with two calls of the layer."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x) + super().__call__(x, gain=-0.5)


class Heads(nn.DenseGeneral):
    @nn.compact
    def __call__(self, x):
        return super().__call__(x).sum(-2)


class Equation(nn.Einsum):
    @nn.compact
    def __call__(self, inputs, einsum_str=None):
        return super().__call__(inputs, "BD,DE->BE")


class Renamed(nn.Dense):
    """Calls the layer from a method of another name."""

    def project(self, x):
        return super().__call__(x)


class Shared(nn.Module):
    """Has the scope of the layer inside."""

    @nn.compact
    def __call__(self, x):
        layer = Plain(3)
        nn.share_scope(self, layer)
        return layer(x)


def lifted_over_time(name):
    axes = {"params": 0, "lora": 0}
    lifted = nn.vmap(nn.Dense, in_axes=1, out_axes=1, variable_axes=axes, split_rngs={"params": True})
    return lifted(3, name=name)


ADAPTED = {
    "subclass": (lambda name: Plain(3, name=name), X),
    "before and after": (lambda name: Around(3, name=name), X),
    "two generations": (lambda name: Twice(3, name=name), X),
    "subclass of DenseGeneral": (lambda name: Heads((2, 3), name=name), X),
    "subclass of Einsum": (lambda name: Equation((7, 3), use_bias=False, name=name), X),
    "method of another name": (lambda name: Renamed(3, name=name).project, X),
    "shared scope": (lambda name: Shared(name=name), X),
    "rematerialised": (lambda name: nn.remat(Around)(3, name=name), X),
    "jit": (lambda name: nn.jit(Plain)(3, name=name), X),
    "vmap": (lifted_over_time, SEQUENCES),
    "sum over an axis of the input": (lambda name: nn.Einsum((7, 3), "abc,cd->ad", name=name), SEQUENCES),
    "sum over an axis of the kernel": (lambda name: nn.Einsum((7, 3, 2), "abc,cde->abd", False, name=name), SEQUENCES),
    "kernel of one axis": (
        lambda name: nn.Einsum((7,), "abc,c->ab", False, kernel_init=nn.initializers.ones, name=name),
        SEQUENCES,
    ),
    "sum over all axes but one": (lambda name: nn.Einsum((7, 3), "abc,cd->a", False, name=name), SEQUENCES),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_is_adapted_once(name):
    """Merging adds B A to the kernel, once; and there are gradients, which agree with those through merging."""
    make, x = ADAPTED[name]
    model, params, adapters = setup(Named(make), x)
    target = normal((B, 3)).sum() + 1.0
    loss = lambda out: (jnp.square(out - target) * jnp.arange(1.0, 1.0 + B).reshape(-1, *[1] * (out.ndim - 1))).sum()

    @jax.jit
    def both(adapters):
        adapted = lambda a: loss(model.apply(params, hypotheses.select(a, 2), x))
        folded = lambda a: loss(model.module.apply({"params": model.merge(params, a, 2)}, x))
        return jax.value_and_grad(adapted)(adapters), jax.value_and_grad(folded)(adapters)

    (value, gradient), (expected, expected_gradient) = both(adapters)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-3 * np.abs(e).max()),
        gradient,
        expected_gradient,
    )
    assert all(np.abs(leaf[2]).max() > 1e-3 for leaf in jax.tree.leaves(gradient))


def test_an_equation_with_an_axis_twice():
    model, params, adapters = setup(
        Named(lambda name: nn.Einsum((7, 3), "aac,cd->ad", False, name=name)), normal((B, B, 7))
    )
    x = normal((B, B, 7))
    out = model.apply(params, hypotheses.select(adapters, 1), x)
    close(out, model.module.apply({"params": model.merge(params, adapters, 1)}, x))
    with pytest.raises(ValueError, match=r"cannot factorise 'abc,cc->abc': .* each axis once"):
        setup(Named(lambda name: nn.Einsum((7, 7), "abc,cc->abc", False, name=name)), SEQUENCES)


def test_experts_of_a_subclass_are_added_once():
    make = lambda kind: mcl.MixtureOfExperts(Named(kind), mcl.LoraConfig(2, 6.0, targets="up"), num_experts=3)
    model, plain = make(lambda name: Plain(3, name=name)), make(lambda name: nn.Dense(3, name=name))
    params = randomized(jax.eval_shape(model.module.init, jax.random.key(0), X)["params"], seed=1)
    adapters = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), params, X)), seed=2)
    close(model.apply_all(params, adapters, X), plain.apply_all(params, adapters, X))


class Positive(nn.Dense):
    """Has a kernel of its own making: B A added to it would be inside the softplus when merged."""

    @nn.compact
    def __call__(self, x):
        return x @ nn.softplus(self.param("kernel", self.kernel_init, (x.shape[-1], self.features)))


class TestRefusedLayers:
    @pytest.mark.parametrize("wrap", [lambda layer: layer, nn.remat])
    def test_a_subclass_that_replaces_the_call(self, wrap):
        module = Named(lambda name: wrap(Positive)(3, name=name))
        with pytest.raises(
            ValueError, match=r"up is a \w*Positive, whose __call__ does not call that of nn.Dense, .*super"
        ):
            setup(module, X)

    def test_it_need_not_be_a_target(self):
        class Both(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3, name="up")(Positive(5, name="positive")(x))

        assert set(setup(Both(), X)[2]) == {"up"}

    @pytest.mark.parametrize(("kind", "options"), [(nn.WeightNorm, {}), (nn.SpectralNorm, {"update_stats": False})])
    def test_normalized_kernels(self, kind, options):
        module = Named(lambda name: lambda x: kind(MLP(name="mlp"))(x, **options))
        with pytest.raises(
            ValueError, match=rf"mlp/up is inside nn.{kind.__name__}, which normalizes its kernel.* targets"
        ):
            variables = jax.eval_shape(module.init, jax.random.key(0), X)
            mcl.Hypotheses(module, mcl.LoraConfig(2, targets="up")).init(
                jax.random.key(0), variables, X, num_hypotheses=K
            )

    @pytest.mark.parametrize(
        "change",
        [jnp.triu, lambda w: w - w.mean(), lambda w: 2 * w, lambda w: w[::-1], jnp.abs, lambda w: w * jnp.nan],
    )
    @pytest.mark.parametrize("stack", [False, True])
    def test_kernels_that_a_transformation_changes(self, change, stack):
        class Changed(nn.Module):
            @nn.compact
            def __call__(self, x):
                each = lambda tree: tree if self.is_initializing() else jax.tree.map(change, tree)
                changed = nn.map_variables(nn.Dense, "params", each, init=self.is_initializing())
                y = changed(7, use_bias=False, name="inner")(x)
                return (y, None) if stack else y

        axes = {"params": 0, "lora": 0}
        scanned = nn.scan(Changed, variable_axes=axes, split_rngs={"params": True}, length=3)
        module = (
            Named(lambda name: lambda x: scanned(name=name)(x)[0]) if stack else Named(lambda name: Changed(name=name))
        )
        params = randomized(jax.eval_shape(module.init, jax.random.key(0), X)["params"], seed=1)
        model = mcl.Hypotheses(module, mcl.LoraConfig(2, targets="up/inner"))
        match = "up/inner does not use its kernel as the parameters store it.*leave up/inner out of the targets"
        with pytest.raises(ValueError, match=match):
            model.init(jax.random.key(0), params, X, num_hypotheses=K)

    def test_a_transformation_that_keeps_the_kernel(self):
        class Cast(nn.Module):
            @nn.compact
            def __call__(self, x):
                cast = lambda tree: jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), tree)
                dense = nn.map_variables(nn.Dense, "params", cast, init=self.is_initializing())
                return dense(3, name="up")(x)

        module = Cast()
        params = randomized(jax.eval_shape(module.init, jax.random.key(0), X)["params"], seed=1)
        model = mcl.Hypotheses(module, mcl.LoraConfig(2, targets="up"))
        assert hypotheses.count(model.init(jax.random.key(0), params, X, num_hypotheses=K)) == K

    def test_recurrent_layers_need_the_collection(self):
        with pytest.raises(
            ValueError, match=r'cell/hi is a target.*nn.RNN, which needs variable_broadcast=\("params", "lora"\)'
        ):
            setup(nn.RNN(nn.LSTMCell(5)), SEQUENCES, targets="cell/hi")
        module = nn.RNN(nn.LSTMCell(5), variable_broadcast=("params", "lora"))
        model, params, adapters = setup(module, SEQUENCES, targets=("cell/hi", "cell/if"))
        out = model.apply(params, hypotheses.select(adapters, 1), SEQUENCES)
        close(out, module.apply({"params": model.merge(params, adapters, 1)}, SEQUENCES))
        with pytest.raises(ValueError, match=r"cell/hi is a target, but the adapters have no .* same targets"):
            model.apply(params, {"cell": {"if": hypotheses.select(adapters, 1)["cell"]["if"]}}, SEQUENCES)

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (nnx.Linear, "instances of flax.linen.Module or flax.nnx.Module, got the class flax.nnx.*Linear"),
            (nn.Dense, "instances of flax.linen.Module or .*, got the class flax.linen.linear.Dense"),
            (jnp.sin, "instances of flax.linen.Module or .*, got an instance of"),
        ],
    )
    def test_what_is_no_module(self, module, message):
        with pytest.raises(ValueError, match=message):
            mcl.Hypotheses(module, mcl.LoraConfig())
        with pytest.raises(ValueError, match="MixtureOfExperts adapts " + message):
            mcl.MixtureOfExperts(module, mcl.LoraConfig(), 3)

    def test_a_submodule_named_params(self):
        class Odd(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3, name="up")(nn.Dense(5, name="params")(x))

        params = randomized(jax.eval_shape(Odd().init, jax.random.key(0), X)["params"])
        model = mcl.Hypotheses(Odd(), mcl.LoraConfig(2, targets="up"))
        with pytest.raises(ValueError, match='named "params", which Flax cannot apply; rename it'):
            model.init(jax.random.key(0), params, X, num_hypotheses=K)
        with pytest.raises(ValueError, match='contain "params" inside "params"; .* rename it'):
            model.init(jax.random.key(0), {"params": params}, X, num_hypotheses=K)

    def test_deeper_it_may_be_named_so(self):
        inner = Named(lambda name: Named(lambda _: nn.Dense(3, name="params"), name=name))
        model, params, adapters = setup(inner, X, targets="params")
        close(model.apply_all(params, adapters, X)[1], inner.apply({"params": model.merge(params, adapters, 1)}, X))


# ---------------------------------------------------------------------------------------------------- Boxes and shapes


def boxed(logical=False):
    box = nn.with_logical_partitioning if logical else nn.with_partitioning
    kernel_init = box(nn.initializers.lecun_normal(), (None, "model"))
    return Named(lambda name: nn.Dense(3, name=name, kernel_init=kernel_init))


@pytest.mark.parametrize("logical", [False, True])
def test_boxed_parameters_stay_boxed(logical):
    module = boxed(logical=logical)
    params = module.init(jax.random.key(1), X)["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(2, 6.0, targets="up"))
    adapters = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), params, X, num_hypotheses=K)), seed=2)
    merged = model.merge(params, adapters, 1)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert nn.get_partition_spec(merged) == nn.get_partition_spec(params)
    plain = model.merge(nn.meta.unbox(params), adapters, 1)
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(merged), plain)
    close(module.apply({"params": merged}, X), model.apply_all(params, adapters, X)[1])


def test_merging_keeps_the_structure():
    model, params, adapters = setup(MLP(), X)
    frozen = nn.FrozenDict({**params, "empty": {}})
    merged = model.merge(frozen, adapters, 1)
    assert jax.tree.structure(merged) == jax.tree.structure(frozen)
    np.testing.assert_array_equal(merged["up"]["kernel"], model.merge(params, adapters, 1)["up"]["kernel"])


class TestAbstractInit:
    @pytest.mark.parametrize("module", [MLP(), Scanned()])
    @pytest.mark.parametrize("kind", [mcl.Hypotheses, lambda m, c: mcl.MixtureOfExperts(m, c, 3)])
    def test_is_that_of_arrays(self, module, kind):
        model = kind(module, mcl.LoraConfig(2, targets="up"))
        shapes = jax.eval_shape(model.module.init, jax.random.key(0), X)
        params = randomized(shapes["params"])
        expected = model.init(jax.random.key(3), params, X, num_hypotheses=K)
        x = jax.ShapeDtypeStruct(X.shape, X.dtype)
        for given in (shapes["params"], shapes):
            jax.tree.map(
                np.testing.assert_array_equal, model.init(jax.random.key(3), given, x, num_hypotheses=K), expected
            )

    def test_of_boxes_and_keywords(self):
        module = boxed()
        shapes = jax.eval_shape(module.init, jax.random.key(0), X)["params"]
        model = mcl.Hypotheses(module, mcl.LoraConfig(2, targets="up"))
        x = jax.ShapeDtypeStruct((B, 7), jnp.float32)
        assert model.init(jax.random.key(3), shapes, x=x, num_hypotheses=K)["up"]["a"].shape == (K, 7, 2)

    def test_parameters_are_no_part_of_the_program(self):
        """Of a 7B model they would be constants of it."""
        model, params, _ = setup(MLP(), X)
        init = jax.jit(lambda key: model.init(key, params, X, num_hypotheses=K))
        assert "tensor<11x11xf32>" not in init.lower(jax.random.key(0)).as_text()


class TestBatchNorm:
    @pytest.mark.parametrize("at_call", [False, True])
    def test_in_training_mode_is_refused(self, at_call):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, mean=False):
                norm = nn.BatchNorm(name="norm") if at_call else nn.BatchNorm(mean, name="norm")
                return nn.Dense(3, name="up")(norm(x, use_running_average=mean) if at_call else norm(x))

        variables = randomized(jax.eval_shape(Net().init, jax.random.key(0), X), seed=1)
        model = mcl.Hypotheses(Net(), mcl.LoraConfig(2, targets="up"))
        with pytest.raises(ValueError, match="norm is an nn.BatchNorm in training mode.*use_running_average=True"):
            model.init(jax.random.key(0), variables, X, num_hypotheses=K)
        adapters = model.init(jax.random.key(0), variables, X, True, num_hypotheses=K)
        with pytest.raises(ValueError, match="norm is an nn.BatchNorm in training mode"):
            model.apply_all(variables, adapters, X)
