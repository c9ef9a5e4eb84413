"""Adapters of tables of embeddings, and trained copies of parameters, on small modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toys import Tokens, adam, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import averaging, hypotheses, mesh

K, V, D = 3, 13, 7
TOKENS = np.array([[0, 12, 5, 5, 1], [3, 2, 2, 11, 0]], np.int32)


@pytest.fixture(scope="module")
def params():
    return randomized(jax.eval_shape(Tokens().init, jax.random.key(0), TOKENS)["params"], seed=1)


def hypotheses_of(targets, params, **config):
    model = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=5, targets=targets, **config))
    init = lambda: model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K)
    return model, init, randomized(jax.eval_shape(init), seed=2)


def outputs(model, params, adapters):
    return jax.jit(model.apply_all)(params, adapters, TOKENS)


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


def test_an_adapted_table_is_that_of_the_merged_model(params):
    model, _, adapters = hypotheses_of(("embed", "up"), params)
    found = outputs(model, params, adapters)
    for k in range(K):
        merged = model.merge(params, adapters, k)
        table = params["embed"]["embedding"] + 5 / 2 * adapters["embed"]["a"][k] @ adapters["embed"]["b"][k]
        close(merged["embed"]["embedding"], table)
        close(found[k], Tokens().apply({"params": merged}, TOKENS))


def test_numbers_of_tokens_are_not_dropped(params):
    model, _, adapters = hypotheses_of("embed", params, dropout=0.5)
    dropping = lambda one: model.apply(params, one, TOKENS, dropout_rng=jax.random.key(3))
    close(jax.jit(dropping)(hypotheses.select(adapters, 1)), outputs(model, params, adapters)[1])


def test_it_starts_as_the_base_with_one_input_that_is_not_zero(params):
    model, init, _ = hypotheses_of("embed", params)
    adapters = init()
    np.testing.assert_array_equal(outputs(model, params, adapters)[1], Tokens().apply({"params": params}, TOKENS))
    a = np.asarray(adapters["embed"]["a"])
    assert a.shape == (K, V, 2) and len(np.unique(a)) == a.size and 0.9 < np.abs(a).max() <= 1


def test_tables_are_adapted_only_where_a_target_names_them(params):
    assert set(hypotheses_of("all-linear", params)[2]) == {"up", "down", "head"}
    assert set(hypotheses_of(("all-linear", "emb.*"), params)[2]) == {"up", "down", "head", "embed"}
    router = mcl.MixtureOfExperts(Tokens(), mcl.LoraConfig(targets="embed"), 3)
    with pytest.raises(ValueError, match="embed is a table of embeddings, which no router can weigh"):
        router.init(jax.random.key(0), params, TOKENS)


def with_copies(params, adapters):
    """A copy of the output layer for each hypothesis, and one of the table for all."""
    copies = {"head": {"kernel": normal((K, D, V), 3)}, "embed": {"shared_embedding": normal((V, D), 4)}}
    return adapters | copies


def test_copies_take_the_place_of_parameters(params):
    model, _, adapters = hypotheses_of(("up", "down"), params)
    both = with_copies(params, adapters)
    found = outputs(model, params, both)
    for k in range(K):
        replaced = params | {"head": {"kernel": both["head"]["kernel"][k]}}
        replaced |= {"embed": {"embedding": both["embed"]["shared_embedding"]}}
        close(found[k], outputs(model, replaced, adapters)[k])
        merged = model.merge(params, both, k)
        close(found[k], Tokens().apply({"params": merged}, TOKENS))
    assert hypotheses.count(both) == K
    assert set(jax.tree.leaves(hypotheses.axes(both))) == {0}  # None, of the shared copy, is no leaf


def test_copies_learn_as_parameters_do(params):
    model, _, adapters = hypotheses_of(("up", "down"), params)
    one = hypotheses.select(with_copies(params, adapters), 1)
    of_copies = jax.grad(lambda one: jnp.sin(model.apply(params, one, TOKENS)).sum())(one)
    whole = model.base.own(params, one)
    bare = hypotheses.select(adapters, 1)
    of_parameters = jax.grad(lambda whole: jnp.sin(model.apply(whole, bare, TOKENS)).sum())(whole)
    close(of_copies["head"]["kernel"], of_parameters["head"]["kernel"])
    close(of_copies["embed"]["shared_embedding"], of_parameters["embed"]["embedding"])


def test_copies_that_fit_no_parameter_are_named(params):
    model, _, adapters = hypotheses_of("up", params)
    with pytest.raises(ValueError, match=r"the copy of head/kernel must fit .* shape \(7, 13\), got \(7, 12\)"):
        model.apply(params, hypotheses.select(adapters, 0) | {"head": {"kernel": normal((D, V - 1))}}, TOKENS)
    with pytest.raises(ValueError, match="the adapters hold elsewhere/kernel, but the parameters have no such leaf"):
        model.apply(params, hypotheses.select(adapters, 0) | {"elsewhere": {"kernel": normal((D, V))}}, TOKENS)
    with pytest.raises(
        ValueError, match="average takes low-rank adapters alone, got a trained copy of embed/embedding"
    ):
        averaging.average(model, params, with_copies(params, adapters), [0, 2])


def test_copies_are_sharded_over_the_model_axis_as_their_parameters(params):
    devices = Mesh(np.asarray(jax.devices()[:2]).reshape(1, 2), ("data", "model"))
    spec = {"head": PartitionSpec(None, "model"), "embed": PartitionSpec("data", "model")}

    def placed(path, leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(devices, spec.get(path[0].key, PartitionSpec()))
        )

    shapes = jax.tree_util.tree_map_with_path(placed, params)
    _, _, adapters = hypotheses_of("up", params)
    found = flatten_dict(mesh.adapter_shardings(devices, shapes, with_copies(params, adapters)), sep="/")
    assert found["head/kernel"].spec == PartitionSpec(None, None, "model")
    assert found["embed/shared_embedding"].spec == PartitionSpec(None, "model")
    assert found["up/a"].spec == PartitionSpec(None, None, None)


def test_a_quantized_parameter_takes_no_copy(params):
    model, _, adapters = hypotheses_of("up", params)
    quantized = params | {"head": {"kernel": object()}}  # no array
    with pytest.raises(ValueError, match="the parameter head/kernel is quantized, so it takes no trained copy"):
        model.base.own(quantized, hypotheses.select(with_copies(params, adapters), 0))


@pytest.mark.slow
def test_training_moves_the_copies_of_the_winners_alone():
    batch = token_batch()
    model = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=5, targets="up"))
    params = randomized(jax.eval_shape(Tokens().init, jax.random.key(0), TOKENS)["params"], seed=1)
    adapters = model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K)
    head = params["head"]["kernel"]
    adapters |= {"head": {"kernel": jnp.broadcast_to(head, (K, *head.shape))}}  # as docs/how-to/peft.md has it
    step = mcl.make_train_step(token_log_likelihood(model, dropout=False), mcl.objectives.wta(), adam(0.05))
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=adam(0.05), rng=jax.random.key(2))
    state, metrics = step(state, batch)
    moved = np.abs(state.adapters["head"]["kernel"] - head[None]).max((1, 2))
    np.testing.assert_array_equal(moved > 0.01, metrics["win_rate"] > 0)
    np.testing.assert_array_equal(state.params["head"]["kernel"], head)
