"""Batches of prompts and answers, their likelihood, evaluation, and modules that are and are not language models."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import randomized

import mcl_jax as mcl
from mcl_jax import hypotheses, language_model
from mcl_jax.models.decoder import Segment

K, V, D, EOS, BOS = 3, 23, 13, 1, 2
WORDS = ["the", "cat", "dog", "sat", "ran", "a", "on", "mat", ":"]


class Words:
    """A tokenizer of words that puts a token before prompts."""

    eos_token_id = EOS
    pad_token_id = None

    def encode(self, text, add_special_tokens=True):
        ids = [WORDS.index(word) + 3 for word in text.split()]
        return [BOS, *ids] if add_special_tokens else ids


class MeanOfPast(nn.Module):
    """A language model that shares no code with ours: each token sees the mean of the embeddings up to it.

    What it keeps of the past are the sums: "keys" hold the embeddings, "values" nothing.
    """

    vocab_size = V

    def setup(self):
        self.embedding = nn.Embed(V, D)
        self.mix, self.gate = nn.Dense(D), nn.Dense(D)
        self.out = nn.Dense(V, use_bias=False)

    def __call__(self, tokens, mask=None):
        return self.logits(self.hidden(tokens, mask))

    def hidden(self, tokens, mask=None):
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        positions = jnp.maximum(jnp.cumsum(mask, 1, dtype=jnp.int32) - 1, 0)
        return self.extend(tokens, mask, positions)[0]

    def extend(self, tokens, mask, positions, past=()):
        x = jnp.where(mask[..., None], self.embedding(tokens), 0.0)
        total, count = jnp.cumsum(x, axis=1), jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        for segment in past:
            repeat = len(tokens) // segment.mask.shape[0]
            kept = jnp.where(segment.mask[..., None], segment.keys[0, :, 0].swapaxes(1, 2), 0.0).sum(1)
            total = total + jnp.repeat(kept, repeat, 0)[:, None]
            count = count + jnp.repeat(segment.mask.sum(1, dtype=jnp.int32), repeat)[:, None]
        mean = total / jnp.maximum(count, 1)[..., None].astype(jnp.float32)
        keys, values = x.swapaxes(1, 2)[None, :, None], jnp.zeros((1, len(x), 1, x.shape[1], 1))
        return nn.tanh(self.mix(mean)) + mean * self.gate(x), Segment(keys, values, positions, mask)

    def logits(self, hidden):
        return self.out(hidden)

    @staticmethod
    def unembedding(params):
        return params["out"]["kernel"]


@pytest.fixture(scope="module")
def setup():
    module = MeanOfPast()
    tokens = jnp.zeros((2, 3), jnp.int32)
    params = module.init(jax.random.key(0), tokens)["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6, targets=("mix", "gate")))
    adapters = model.init(jax.random.key(1), params, tokens, num_hypotheses=K)
    noise = lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return model, params, jax.tree.map(noise, adapters)


PROMPTS, ANSWERS = ["the cat :", "a :", "dog sat on :"], ["sat on the mat", "dog", "mat a"]


class TestEncode:
    def test_by_hand(self):
        batch = language_model.encode(Words(), PROMPTS, ANSWERS, max_length=11)
        the, cat, dog, sat, _, a, on, mat, colon = range(3, 12)
        assert batch["tokens"].shape == (3, 11) and batch["tokens"].dtype == np.int32
        assert batch["tokens"][0, :9].tolist() == [BOS, the, cat, colon, sat, on, the, mat, EOS]
        assert batch["tokens"][1].tolist() == [BOS, a, colon, dog] + [EOS] * 7  # no padding token: the end token
        assert np.flatnonzero(batch["target_mask"][0]).tolist() == [3, 4, 5, 6, 7]
        assert np.flatnonzero(batch["target_mask"][1]).tolist() == [2, 3]
        assert batch["target_mask"].shape == (3, 10) and batch["target_mask"].dtype == bool

    @pytest.mark.parametrize(
        ("prompts", "answers", "max_length", "message"),
        [
            (PROMPTS, ANSWERS, 8, "example 0 has 9 tokens, more than max_length=8"),
            (PROMPTS[:2], ANSWERS, 11, "got 2 prompts and 3 answers"),
            ([], [], 11, "got 0 prompts"),
            ("the cat", ["sat"], 11, "lists of texts"),
            (PROMPTS, ["sat", "", "ran"], 11, "example 1: the target '' is empty"),
        ],
    )
    def test_refused(self, prompts, answers, max_length, message):
        with pytest.raises(ValueError, match=message):
            language_model.encode(Words(), prompts, answers, max_length)


class TestLikelihood:
    def test_equals_the_whole_logits_whatever_the_padding(self, setup):
        model, params, adapters = setup
        log_likelihood = language_model.log_likelihood_fn(model, chunk_size=4)
        short, long = (language_model.encode(Words(), PROMPTS, ANSWERS, length) for length in (9, 14))
        for k in range(K):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], adapters)
            logits = model.apply(params, one, short["tokens"][:, :-1])
            expected, counts = mcl.sequence_log_likelihood(logits, short["tokens"][:, 1:], short["target_mask"])
            for batch in (short, long | {"mode": np.zeros(3)}):
                log_p, tokens = log_likelihood(params, one, batch, None)
                np.testing.assert_allclose(log_p, expected, rtol=1e-5)
                assert tokens.tolist() == counts.tolist() == [5, 2, 3]

    def test_first_tokens_of_answers(self, setup):
        model, params, adapters = setup
        log_likelihood = language_model.log_likelihood_fn(model)
        first = language_model.by_first_tokens(log_likelihood)
        whole = language_model.encode(Words(), PROMPTS, ANSWERS, 14)
        batch = language_model.first_tokens(whole, 2, lengths=(3, 7, 9))
        assert batch["first_tokens"].shape == (3, 8) and batch["tokens"] is whole["tokens"]
        assert batch["first_target_mask"].sum(1).tolist() == [2, 2, 2]
        one = jax.tree.map(lambda leaf: leaf[1], adapters)
        log_p, tokens = first(params, one, batch, None)
        cut = whole["target_mask"] & (np.cumsum(whole["target_mask"], 1) < 3)
        expected, _ = log_likelihood(params, one, whole | {"target_mask": cut}, None)
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)
        assert tokens.tolist() == [2, 2, 2]
        np.testing.assert_allclose(log_likelihood(params, one, batch, None)[0][1], log_p[1], rtol=1e-5)  # it has two

    def test_first_tokens_that_fit_no_length(self):
        whole = language_model.encode(Words(), PROMPTS, ANSWERS, 14)
        with pytest.raises(ValueError, match=r"lengths must go up to 6 positions, got \(3, 4\)"):
            language_model.first_tokens(whole, 2, lengths=(3, 4))
        with pytest.raises(ValueError, match="number must be .*at least 1, got 0"):
            language_model.first_tokens(whole, 0, lengths=(16,))

    def test_logits_of_a_module_with_a_cap_are_capped(self, setup):
        _, params, adapters = setup

        class Capped(MeanOfPast):
            logit_cap = 0.4

        model = mcl.Hypotheses(Capped(), mcl.LoraConfig(rank=2, alpha=6, targets=("mix", "gate")))
        one, batch = jax.tree.map(lambda leaf: leaf[1], adapters), language_model.encode(Words(), PROMPTS, ANSWERS, 9)
        logits = np.asarray(model.apply(params, one, batch["tokens"][:, :-1]))
        assert np.abs(logits).max() > 0.4
        capped = 0.4 * np.tanh(logits / 0.4)
        expected, _ = mcl.sequence_log_likelihood(capped, batch["tokens"][:, 1:], batch["target_mask"])
        log_p, _ = language_model.log_likelihood_fn(model)(params, one, batch, None)
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)

    def test_evaluate_is_the_likelihood_of_every_hypothesis(self, setup):
        model, params, adapters = setup
        batches = [
            language_model.encode(Words(), PROMPTS[:2], ANSWERS[:2], 9),
            language_model.encode(Words(), PROMPTS[2:], ANSWERS[2:], 12),
        ]
        log_p, tokens = language_model.evaluate(model, params, adapters, batches)
        assert log_p.shape == (K, 3) and tokens.tolist() == [5, 2, 3]
        one = jax.tree.map(lambda leaf: leaf[2], adapters)
        expected, _ = language_model.log_likelihood_fn(model)(params, one, batches[1], None)
        np.testing.assert_allclose(log_p[2, 2:], expected, rtol=1e-5)
        with pytest.raises(ValueError, match="at least one batch"):
            language_model.evaluate(model, params, adapters, [])


class TestAnothersModel:
    """A module that keeps to the protocol, and shares no code with the library's models."""

    def test_is_one_by_the_protocol(self, setup):
        assert isinstance(setup[0].module, language_model.LanguageModel)
        assert isinstance(mcl.models.Llama(None), language_model.LanguageModel)

    def test_greedy_answers_are_those_of_whole_forward_passes(self, setup):
        model, params, adapters = setup
        prompts, mask = np.array([[0, 4, 5], [7, 8, 9]], np.int32), np.array([[False, True, True], [True] * 3])
        answers = mcl.generate(model, params, adapters, {"tokens": prompts, "mask": mask}, max_new_tokens=5)
        assert answers.shape == (K, 2, 1, 5)
        for k in range(K):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], adapters)
            for b in range(2):
                tokens = prompts[b][mask[b]].tolist()
                for t in range(5):
                    chosen = int(model.apply(params, one, np.array([tokens]))[0, -1].argmax())
                    assert answers[k, b, 0, t] == chosen
                    tokens.append(chosen)

    def test_beams_and_ranking_work(self, setup):
        model, params, adapters = setup
        prompts = np.array([[3, 4, 5]], np.int32)
        found = mcl.generation.decode(model, params, adapters, prompts, mcl.generation.BeamSearch(3), 4)
        log_p = mcl.generation.log_likelihoods(model, params, adapters, prompts, found)
        assert found.tokens.shape == (K, 1, 1, 4) and log_p.shape == (K, K, 1, 1)
        own = np.stack([log_p[k, k] for k in range(K)])
        np.testing.assert_allclose(own / 4, found.scores, rtol=1e-4)  # of beams: per token of their length

    def test_is_trained(self, setup):
        model, params, adapters = setup
        batch = language_model.encode(Words(), PROMPTS, ANSWERS, 9)
        optimizer, log_likelihood = optax.sgd(0.5), language_model.log_likelihood_fn(model)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0))
        step = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optimizer)
        losses = []
        for _ in range(100):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < 0.7 * losses[0]


def test_a_tied_output_matrix_stays_as_it_is_stored():
    table, kernel = jnp.ones((11, 7)), jnp.ones((7, 11))
    tied = {"model": {"embed_tokens": {"embedding": table}}}
    for params, expected in [(tied, (table.shape, True)), (tied | {"lm_head": {"kernel": kernel}}, ((7, 11), False))]:
        matrix, transposed = language_model._output_matrix(mcl.models.Llama, params)
        assert (matrix.shape, transposed) == expected


class OnlyLogits(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(V, name="out")(nn.Embed(V, D)(tokens))


def test_other_modules_are_refused_by_what_they_lack():
    model = mcl.Hypotheses(OnlyLogits(), mcl.LoraConfig(targets="out"))
    with pytest.raises(TypeError, match=r"OnlyLogits must have .* but lacks hidden, unembedding. .*sequence_log_lik"):
        language_model.log_likelihood_fn(model)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = OnlyLogits().init(jax.random.key(0), tokens)["params"]
    adapters = model.init(jax.random.key(0), params, tokens, num_hypotheses=K)
    with pytest.raises(TypeError, match="OnlyLogits must have .* but lacks hidden, logits, extend, unembedding"):
        mcl.generate(model, params, adapters, tokens)


class OwnProduct(MeanOfPast):
    def logits(self, hidden):
        return hidden @ self.out.variables["params"]["kernel"]


def test_adapters_of_the_output_layer_are_those_of_the_merged_model(setup):
    """log p and its gradient, from logits of 3 tokens at a time; and refused where the layer is not called."""
    params, tokens = setup[1], jnp.zeros((2, 4), jnp.int32)
    config = mcl.LoraConfig(rank=2, alpha=5, targets=("mix", "out"))
    model = mcl.Hypotheses(setup[0].module, config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), params, tokens, num_hypotheses=K))
    one = hypotheses.select(randomized(shapes, seed=3), 1)
    batch = language_model.encode(Words(), PROMPTS, ANSWERS, 9)

    def merged(one):
        weights = model.merge(params, jax.tree.map(lambda x: x[None], one), 0)
        logits = model.module.apply({"params": weights}, batch["tokens"][:, :-1])
        return mcl.sequence_log_likelihood(logits, batch["tokens"][:, 1:], batch["target_mask"])[0]

    ours = lambda one: language_model.log_likelihood_fn(model, chunk_size=24)(params, one, batch, None)[0]
    found, wanted = (jax.jit(jax.value_and_grad(lambda one, f=f: f(one).sum()))(one) for f in (ours, merged))
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"adapters of \['out'\] have no part in the hidden states, and none in the log"
    ):
        language_model.log_likelihood_fn(mcl.Hypotheses(OwnProduct(), config))(params, one, batch, None)


def test_a_balance_weight_needs_sparse_experts(setup):
    with pytest.raises(ValueError, match="needs a MixtureOfExperts with top_k"):
        language_model.log_likelihood_fn(setup[0], balance_weight=0.01)
