"""Soft prompts: they do what tokens with these embeddings do, and hypotheses stay apart."""

from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from toys import adam, normal, randomized

import mcl_jax as mcl
from mcl_jax import objectives
from mcl_jax.generation import BeamSearch, Greedy, decode, log_likelihoods
from mcl_jax.hypotheses import count, select
from mcl_jax.language_model import evaluate, log_likelihood_fn

GOLDEN = Path(__file__).parent / "golden" / "models"
K, P, V, D = 3, 5, 13, 7
TOKENS = np.random.default_rng(1).integers(1, V, (4, 6)).astype(np.int32)
BATCH = {"tokens": TOKENS, "target_mask": np.arange(5)[None] >= np.array([[1], [2], [3], [2]])}


class Bag(nn.Module):
    """A language model that sees the mean of the embeddings so far, of which no two have the same position."""

    def setup(self):
        self.table, self.places, self.mix = nn.Embed(V, D), nn.Embed(29, D), nn.Dense(D)

    def hidden(self, tokens, mask=None):
        x = self.table(tokens)
        length = jnp.arange(1, tokens.shape[1] + 1)
        x = x + self.places(length - 1)[None]
        return x + nn.tanh(self.mix(jnp.cumsum(x, axis=1) / length[None, :, None].astype(x.dtype)))

    @staticmethod
    def unembedding(params):
        return params["table"]["embedding"].T


@pytest.fixture(scope="module")
def bag():
    module = Bag()
    params = module.init(jax.random.key(0), TOKENS, method="hidden")["params"]
    model = mcl.SoftPrompts(module, P)
    adapters = model.init(jax.random.key(1), params, TOKENS, num_hypotheses=K, method="hidden")
    return model, params, adapters


def test_vectors_start_as_embeddings_of_tokens_and_differ_between_hypotheses(bag):
    _, params, adapters = bag
    vectors = adapters["table"]["prompt"]
    assert vectors.shape == (K, P, D) and vectors.dtype == jnp.float32 and count(adapters) == K
    same = (vectors[:, :, None] == params["table"]["embedding"][None, None]).all(-1)
    assert same.any(-1).all()
    assert len({tuple(row) for row in np.asarray(same.argmax(-1))}) == K


def test_apply_all_is_a_loop_and_apply_assigned_a_choice(bag):
    model, params, _ = bag
    adapters = {"table": {"prompt": normal((K, P, D))}}
    every = np.asarray(model.apply_all(params, adapters, TOKENS, method="hidden"))
    loop = [model.apply(params, select(adapters, k), TOKENS, method="hidden") for k in range(K)]
    np.testing.assert_allclose(every, np.stack(loop), rtol=1e-5, atol=1e-6)
    assert every.shape == (K, *TOKENS.shape, D) and np.abs(every[0] - every[1]).max() > 0.1
    chosen = np.array([2, 0, 1, 2])
    of_each = model.apply_assigned(params, adapters, chosen, TOKENS, method="hidden")
    np.testing.assert_allclose(of_each, every[chosen, np.arange(4)], rtol=1e-5, atol=1e-6)
    order = np.array([2, 0, 1])
    reordered = model.apply_all(params, select(adapters, order), TOKENS, method="hidden")
    np.testing.assert_array_equal(reordered, every[order])


def test_the_likelihood_is_that_of_the_longer_input(bag):
    model, params, adapters = bag
    log_p, tokens = evaluate(model, params, adapters, [BATCH])
    np.testing.assert_array_equal(tokens, BATCH["target_mask"].sum(1))
    table = np.asarray(params["table"]["embedding"])
    for k, vectors in enumerate(adapters["table"]["prompt"]):
        front = np.abs(vectors[:, None] - table[None]).sum(-1).argmin(-1)
        longer = np.concatenate([np.broadcast_to(front, (4, P)), TOKENS], axis=1)
        hidden = model.module.apply({"params": params}, longer[:, :-1], method="hidden")[:, P:]
        scores = nn.log_softmax(hidden @ table.T)
        picked = np.take_along_axis(np.asarray(scores), TOKENS[:, 1:, None], axis=2)[..., 0]
        np.testing.assert_allclose(log_p[k], (picked * BATCH["target_mask"]).sum(1), rtol=1e-4)


def trained(model, params, adapters, objective, steps=3):
    step = mcl.make_train_step(log_likelihood_fn(model), objective, adam(0.1))
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=adam(0.1), rng=jax.random.key(2))
    for _ in range(steps):
        state, metrics = step(state, BATCH)
    return state, metrics


@pytest.mark.slow
def test_training_moves_the_vectors_alone_and_each_hypothesis_by_itself(bag):
    model, params, adapters = bag
    before = jax.tree.map(np.array, params)
    state, metrics = trained(model, params, adapters, objectives.wta())
    chex.assert_trees_all_equal(state.params, before)  # to the bit
    assert metrics["win_rate"].shape == (K,)
    order = np.array([2, 0, 1])
    other, _ = trained(model, params, select(adapters, order), objectives.wta())
    chex.assert_trees_all_close(other.adapters, select(state.adapters, order), rtol=1e-5, atol=1e-6)
    assert np.abs(state.adapters["table"]["prompt"] - adapters["table"]["prompt"]).max() > 0.05


@pytest.mark.slow
def test_one_soft_prompt_is_prompt_tuning_by_maximum_likelihood(bag):
    model, params, adapters = bag
    one = select(adapters, slice(1, 2))
    state, _ = trained(model, params, one, objectives.wta())

    def loss(vectors):  # written down again, without mcl_jax
        x = jnp.concatenate([jnp.broadcast_to(vectors, (4, P, D)), params["table"]["embedding"][TOKENS[:, :-1]]], 1)
        T = x.shape[1]
        x = x + params["places"]["embedding"][None, :T]
        mean = jnp.cumsum(x, axis=1) / jnp.arange(1.0, T + 1)[None, :, None]
        hidden = x + jnp.tanh(mean @ params["mix"]["kernel"] + params["mix"]["bias"][None, None])
        scores = jax.nn.log_softmax(hidden[:, P:] @ params["table"]["embedding"].T)
        picked = jnp.take_along_axis(scores, TOKENS[:, 1:, None], axis=2)[..., 0]
        mask = BATCH["target_mask"].astype(np.float32)
        return -((picked * mask).sum(1) / mask.sum(1)).mean()

    vectors, optimizer = one["table"]["prompt"][0], adam(0.1)
    opt_state, grad = optimizer.init(vectors), jax.jit(jax.grad(loss))
    for _ in range(3):
        update, opt_state = optimizer.update(grad(vectors), opt_state)
        vectors = vectors + update
    np.testing.assert_allclose(state.adapters["table"]["prompt"][0], vectors, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request):
    """A tiny model, with soft prompts that are embeddings of tokens, and these tokens [K, P]."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / request.param)
    front = np.random.default_rng(5).integers(0, 40, (K, P)).astype(np.int32)
    model = mcl.SoftPrompts(module, P)
    init = lambda: model.init(jax.random.key(0), params, np.zeros((1, 2), np.int32), num_hypotheses=K)
    embed = lambda tokens: module.apply({"params": params}, tokens, method="embed")
    vectors = {path: embed(front) for path in model.reached(params, np.zeros((1, 2), np.int32))}
    adapters = jax.tree.map(lambda _: next(iter(vectors.values())), jax.eval_shape(init))
    return model, params, adapters, front


MASK = np.arange(6)[None] >= np.array([[0], [4], [1]])
PROMPTS = {"tokens": np.random.default_rng(3).integers(0, 40, MASK.shape).astype(np.int32), "mask": MASK}


@pytest.mark.slow
def test_decoding_is_that_of_a_prompt_with_these_tokens_in_front(base):
    model, params, adapters, front = base
    decoder = BeamSearch(num_beams=3, num_return=2)
    found = decode(model, params, adapters, PROMPTS, decoder, 4, eos_token_id=2, repetition_penalty=1.0)
    scores = log_likelihoods(model, params, adapters, PROMPTS, found)
    plain = mcl.Hypotheses(model.module, mcl.LoraConfig(rank=3, alpha=7, targets="all-linear"))
    nothing = plain.init(jax.random.key(0), params, np.zeros((1, 2), np.int32), num_hypotheses=1)
    longest = P + MASK.shape[1]
    for k in range(K):
        tokens, mask = np.zeros((3, longest), np.int32), np.zeros((3, longest), bool)
        for row in range(3):
            real = PROMPTS["tokens"][row][MASK[row]]
            tokens[row, longest - P - len(real) :] = np.concatenate([front[k], real])
            mask[row, longest - P - len(real) :] = True
        prompts = {"tokens": tokens, "mask": mask}
        wanted = decode(plain, params, nothing, prompts, decoder, 4, eos_token_id=2)
        np.testing.assert_array_equal(found.tokens[k], wanted.tokens[0])
        np.testing.assert_allclose(found.scores[k], wanted.scores[0], rtol=1e-4)
        of_k = found.replace(tokens=found.tokens[k : k + 1], lengths=found.lengths[k : k + 1])
        np.testing.assert_allclose(
            scores[k, k], log_likelihoods(plain, params, nothing, prompts, of_k)[0, 0], rtol=1e-4
        )
    assert len({found.tokens[k].tobytes() for k in range(K)}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["models/qwen2_windows", "llava/mistral", "whisper/tiny"])
def test_vectors_stand_before_what_a_model_reads_sees_or_hears(family):
    module, params, _ = mcl.models.from_pretrained(GOLDEN.parent / family)
    model, front, tokens = mcl.SoftPrompts(module, P), np.arange(3, 3 + P), PROMPTS["tokens"].copy()
    options = {}
    if (width := getattr(module, "feature_size", None)) is not None:
        options["features"] = normal((3, 2, width))
    if (placeholder := getattr(module, "placeholder", None)) is not None:
        tokens[:, 4] = placeholder
    (path,) = model.reached(params, tokens, method="hidden", **options)
    table = params
    for name in path.split("/"):
        table = table[name]
    one = unflatten_dict({(*path.split("/"), "prompt"): table["embedding"][front]})
    found = model.apply(params, one, tokens, MASK, method="hidden", **options)
    longer = [np.concatenate([np.broadcast_to(row, (3, P)), x], 1) for row, x in ((front, tokens), (True, MASK))]
    wanted = module.apply({"params": params}, *longer, method="hidden", **options)[:, P:]
    np.testing.assert_allclose(found[MASK], wanted[MASK], rtol=1e-4, atol=1e-5)
    unlike = module.apply({"params": params}, tokens, MASK, method="hidden", **options)
    assert np.abs(found[MASK] - unlike[MASK]).max() > 0.01


def test_a_model_with_few_positions_counts_those_of_the_soft_prompt():
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "gpt2")
    model, most = mcl.SoftPrompts(module, P), module.max_positions
    adapters = model.init(jax.random.key(0), params, np.zeros((1, 2), np.int32), num_hypotheses=K)
    with pytest.raises(ValueError, match=f"need {most + 1} positions, but the model has only {most}"):
        decode(model, params, adapters, PROMPTS, Greedy(), most + 1 - 6 - P)


def test_refusals(bag):
    model, params, adapters = bag
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        mcl.SoftPrompts(Bag(), 0)
    with pytest.raises(ValueError, match="num_hypotheses must be at least 1"):
        model.init(jax.random.key(0), params, TOKENS, num_hypotheses=0, method="hidden")
    with pytest.raises(ValueError, match="one of the methods .* got 'unembedding'"):
        model.apply(params, select(adapters, 0), TOKENS, method="unembedding")
    with pytest.raises(ValueError, match="made for other, but table embeds the tokens"):
        model.apply(params, {"other": {"prompt": normal((P, D))}}, TOKENS, method="hidden")
    dense = nn.Dense(3)
    kernel = dense.init(jax.random.key(0), normal((2, 5)))["params"]
    with pytest.raises(ValueError, match=r"Dense needs an nn\.Embed"):
        mcl.SoftPrompts(dense, P).init(jax.random.key(0), randomized(kernel), normal((2, 5)), num_hypotheses=K)
