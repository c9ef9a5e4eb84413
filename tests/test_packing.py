"""Several examples in a row: the same likelihoods, winners and gradients as with one example in each."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import MLP, keep_gradient, randomized

import mcl_jax as mcl
from mcl_jax import language_model, objectives, packing, parallel

GOLDEN = Path(__file__).parent / "golden" / "models"
FAMILIES = ("llama", "llama_yarn", "qwen3_windows", "smollm3_windows", "gemma", "gemma2", "gemma3", "phi3", "gpt2")
K, N, T, V, LENGTH = 3, 7, 13, 41, 23
PROMPTS, ANSWERS = (2, 5, 3, 1, 4, 2, 7), (3, 4, 0, 6, 1, 2, 5)  # the third example has no target


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def examples(seed=0):
    """Examples of unequal lengths, whose padding holds tokens too."""
    tokens = np.random.default_rng(seed).integers(1, V, (N, T + 1)).astype(np.int32)
    mask = np.zeros((N, T), bool)
    for n, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        mask[n, prompt - 1 : prompt - 1 + answer] = True
    return {"tokens": tokens, "target_mask": mask}


@functools.cache
def loaded(family, kind=mcl.Hypotheses, scan=True, **config):
    """(model, params, random adapters of rank 2 with alpha 7)."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / family, scan=scan)
    targets = mcl.models.lora_targets(module)
    model = kind(module, mcl.LoraConfig(**{"rank": 2, "alpha": 7.0, "targets": targets} | config))
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 3), jnp.int32), num_hypotheses=K)
    return model, params, randomized(jax.eval_shape(init), seed=3, scale=0.2)


def unpacked(packed, values):
    """The values of packed texts [..., R, S] in the order of the examples, 0 for those that were left out."""
    out = np.zeros((*np.shape(values)[:-2], N), np.asarray(values).dtype)
    here = packed["packed"] >= 0
    out[..., packed["packed"][here]] = np.asarray(values)[..., here]
    return out


class TestPack:
    def test_by_hand(self):
        tokens = np.arange(1, 25).reshape(4, 6)
        mask = np.array([[0, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], bool)
        packed = packing.pack({"tokens": tokens, "target_mask": mask, "mode": np.array([7, 8, 9, 10])}, 7)
        assert packed["tokens"].tolist() == [[7, 8, 9, 10, 11, 12, 0, 0], [1, 2, 3, 19, 20, 21, 0, 0]]
        assert packed["texts"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 2, 2, 0, 0]]
        assert packed["target_mask"].astype(int).tolist() == [[0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0]]
        assert packed["packed"].tolist() == [[1, -1, -1, -1], [0, 3, -1, -1]]
        assert packed["mode"].tolist() == [[8, -1, -1, -1], [7, 10, -1, -1]]

    @pytest.mark.parametrize(("length", "multiple"), [(11, 1), (17, 1), (17, 3), (64, 8), (12, 5)])
    def test_each_example_with_targets_is_there_once_and_whole(self, length, multiple):
        batch = examples()
        packed = packing.pack(batch, length, multiple=multiple)
        R = len(packed["tokens"])
        assert R % multiple == 0
        assert packed["tokens"].shape == (R, length + 1) and packed["packed"].shape == (R, N)
        assert sorted(packed["packed"][packed["packed"] >= 0]) == [0, 1, 3, 4, 5, 6]
        for r in range(R):
            for s, n in enumerate(packed["packed"][r]):
                here = np.flatnonzero(packed["texts"][r] == s + 1)
                if n < 0:
                    assert not here.size
                    continue
                size = PROMPTS[n] + ANSWERS[n] - 1
                assert here.tolist() == list(range(here[0], here[0] + size))
                assert (packed["tokens"][r, here[0] : here[0] + size + 1] == batch["tokens"][n, : size + 1]).all()
                assert (packed["target_mask"][r, here] == batch["target_mask"][n, :size]).all()
        assert packed["target_mask"].sum() == batch["target_mask"].sum()

    def test_fewer_rows_than_examples(self):
        assert [len(packing.pack(examples(), length)["tokens"]) for length in (11, 17, 40)] == [4, 3, 2]

    def test_a_step_compiles_for_few_numbers_of_rows(self):
        one = {"tokens": np.ones((41, 3), np.int32), "target_mask": np.ones((41, 2), bool)}
        first = lambda n: {name: x[:n] for name, x in one.items()}
        found = [len(packing.pack(first(n), 2)["tokens"]) for n in range(1, 42)]
        assert sorted(set(found)) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48]
        assert all(n <= rows <= 1.25 * n + 1 for n, rows in enumerate(found, 1))
        assert [len(packing.pack(first(n), 2, multiple=4)["tokens"]) for n in (1, 5, 33)] == [4, 8, 40]

    @pytest.mark.parametrize(
        ("change", "length", "message"),
        [
            ({}, 10, "example 6 has 11 predicted positions, more than the 10 of a row"),
            ({}, 0, "length must be .*at least 1, got 0"),
            ({"features": np.zeros((N, 2, 3))}, 17, r"got 'features' of shape \(7, 2, 3\)"),
            ({"texts": np.zeros((N, T), np.int32)}, 17, r"got 'texts' of shape \(7, 13\)"),
        ],
    )
    def test_refused(self, change, length, message):
        with pytest.raises(ValueError, match=message):
            packing.pack(examples() | change, length)


class TestLikelihood:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_each_text_has_the_likelihood_of_a_row_of_its_own(self, family):
        model, params, adapters = loaded(family)
        log_p, batch = language_model.log_likelihood_fn(model, chunk_size=5), examples()
        packed = packing.pack(batch, LENGTH)
        assert (packed["packed"] >= 0).sum(1).tolist() == [2, 4]
        every = jax.jit(jax.vmap(lambda a, batch: log_p(params, a, batch, None), (0, None)))
        (expected, counts), (values, of_text) = every(adapters, batch), every(adapters, packed)
        assert values.shape == (K, 2, N)
        close(unpacked(packed, values), expected)
        assert unpacked(packed, of_text)[0].tolist() == counts[0].tolist() == list(ANSWERS)
        assert float(np.ptp(np.asarray(expected), axis=0).max()) > 0.1  # the hypotheses differ

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("config", [{}, {"shared_rank": 3, "dropout": 0.5}])
    def test_each_text_under_its_own_hypothesis(self, family, config):
        """A dropout of the config does nothing without a key."""
        model, params, adapters = loaded(family, **config)
        log_p, batch = language_model.log_likelihood_fn(model), examples()
        packed, winner = packing.pack(batch, LENGTH), np.array([2, 0, 1, 1, 2, 0, 2], np.int32)
        of_rows = jnp.asarray(np.where(packed["packed"] >= 0, winner[packed["packed"]], -1))
        values, _ = jax.jit(log_p)(params, adapters, packed | {"winner": of_rows}, None)
        every = jax.vmap(lambda a: log_p(params, a, batch, None)[0], (mcl.hypotheses.axes(adapters),))
        close(unpacked(packed, values), jax.jit(every)(adapters)[winner, np.arange(N)])

    def test_adapters_of_the_embeddings(self):
        model, params, adapters = loaded("llama", targets=("embed_tokens", "v_proj"))
        log_p, batch = language_model.log_likelihood_fn(model), examples()
        packed = packing.pack(batch, LENGTH)
        values, _ = log_p(params, adapters, packed | {"winner": jnp.asarray(packed["packed"] % K)}, None)
        every = jax.vmap(lambda a: log_p(params, a, batch, None)[0])(adapters)
        close(unpacked(packed, values), every[np.arange(N) % K, np.arange(N)])

    def test_a_layer_whose_input_does_not_begin_with_tokens(self):
        module, x = MLP(), np.ones((2, 7), np.float32)
        params = module.init(jax.random.key(0), x)["params"]
        model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, targets=("up",)))
        adapters = model.init(jax.random.key(1), params, x, num_hypotheses=K)
        with pytest.raises(ValueError, match=r"begin with the axes \[B, T\] = \(2, 5\).* got shape \(2, 7\)"):
            model.apply_by_token(params, adapters, np.zeros((2, 5), np.int32), x)

    def test_layers_of_different_ranks(self):
        ranks = {"model/layers/self_attn/q_proj": (3, 1, 2)}
        model, params, adapters = loaded.__wrapped__("llama", targets=("q_proj", "down_proj"), rank_pattern=ranks)
        log_p, batch = language_model.log_likelihood_fn(model), examples()
        packed = packing.pack(batch, LENGTH)
        winner = jnp.asarray(packed["packed"] % K)
        values, _ = log_p(params, adapters, packed | {"winner": winner}, None)
        every = jax.vmap(lambda a: log_p(params, a, batch, None)[0])(adapters)
        close(unpacked(packed, values), every[np.arange(N) % K, np.arange(N)])

    def test_rows_that_could_change_the_rotation(self):
        model, params, adapters = loaded("llama_dynamic")  # for 8 positions
        one = mcl.hypotheses.select(adapters, 0)
        with pytest.raises(ValueError, match="at most 8 positions.* 'dynamic'.*; got T=23"):
            language_model.log_likelihood_fn(model)(params, one, packing.pack(examples(), LENGTH), None)

    def test_refused(self):
        model, params, adapters = loaded("llama")
        packed, one = packing.pack(examples(), LENGTH), mcl.hypotheses.select(adapters, 0)
        refused = functools.partial(pytest.raises, ValueError)
        log_p = language_model.log_likelihood_fn(model)
        with refused(match="cannot be read: features of pictures"):
            log_p(params, one, packed | {"features": np.zeros((2, 1, 24))}, None)
        with refused(match="first_tokens needs one example in each row"):
            language_model.first_tokens(packed, 2, (17,))
        with refused(match="evaluate needs one example in each row"):
            language_model.evaluate(model, params, adapters, [packed])
        prompts = mcl.SoftPrompts(model.module, 3)
        vectors = prompts.init(jax.random.key(0), params, packed["tokens"], num_hypotheses=1)
        with refused(match="SoftPrompts adds positions before the first text only"):
            language_model.log_likelihood_fn(prompts)(params, mcl.hypotheses.select(vectors, 0), packed, None)
        sparse = mcl.MixtureOfExperts(model.module, mcl.LoraConfig(rank=2), num_experts=3, top_k=1)
        with refused(match=r"balance_weight=0.1 counts tokens by rows"):
            language_model.log_likelihood_fn(sparse, balance_weight=0.1)(params, one, packed, None)
        headed = loaded("llama", targets=("q_proj", "lm_head"))
        with refused(match="the output layer has adapters"):
            language_model.log_likelihood_fn(headed[0])(params, mcl.hypotheses.select(headed[2], 0), packed, None)
        decomposed, _, factors = loaded("llama", dora=True)
        with refused(match="DoRA and trained copies"):
            decomposed.apply_by_token(params, factors, packed["texts"], packed["tokens"][:, :-1])

    def test_a_module_that_reads_one_text_only(self):
        class OneText(mcl.models.Llama):
            takes_texts = False

        model, params, adapters = loaded("llama")
        other = mcl.Hypotheses(OneText(model.module.config), model.config)
        with pytest.raises(ValueError, match="OneText has no takes_texts"):
            language_model.log_likelihood_fn(other)(
                params, mcl.hypotheses.select(adapters, 0), packing.pack(examples(), LENGTH), None
            )


STEPS = {
    "wta": (objectives.wta(), "winner", {}),
    "balanced": (objectives.balanced_wta(rate=0.3), "winner", {}),
    "wta, all": (objectives.wta(), "all", {}),
    "relaxed": (objectives.relaxed_wta(0.3), "all", {"hypothesis_chunk": 1}),
}


@functools.cache
def make_step(name, place=mcl.make_train_step, dropout=0.0, **options):
    objective, backward, more = STEPS[name]
    model = loaded("qwen3_windows", shared_rank=1, dropout=dropout)[0]
    log_p = language_model.log_likelihood_fn(model)
    return place(log_p, objective, keep_gradient(), backward, **more, donate=False, **options)


def start(**options):
    _, params, adapters = loaded("qwen3_windows", shared_rank=1)
    return mcl.TrainState.create(
        params=params, adapters=adapters, optimizer=keep_gradient(), rng=jax.random.key(5), **options
    )


def same(one, other, tolerance=2e-5):
    (state, metrics), (other_state, other_metrics) = one, other
    jax.tree.map(lambda x, y: close(x, y, tolerance), state.opt_state, other_state.opt_state)
    for name in ("loss", "win_rate", "log_likelihood", "weight_entropy", "examples", "tokens"):
        close(metrics[name], other_metrics[name], tolerance)


class TestStep:
    @pytest.mark.parametrize("name", STEPS)
    def test_the_gradient_is_that_of_one_example_per_row(self, name):
        step, batch = make_step(name), examples()
        expected = step(start(), batch)
        assert float(expected[1]["examples"]) == 6 and (np.asarray(expected[1]["win_rate"]) > 0).sum() > 1
        same(step(start(), packing.pack(batch, LENGTH)), expected)

    @pytest.mark.parametrize("place", [mcl.make_train_step, parallel.pmap_step])
    @pytest.mark.parametrize("devices", [1, 2])
    def test_over_devices_and_micro_batches(self, place, devices):
        if place is mcl.make_train_step:
            mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices])[:, None], ("data", "model"))
            step = make_step("balanced", place, accumulate=2, mesh=mesh)
        else:
            step = make_step("balanced", place, accumulate=2, devices=tuple(jax.devices()[:devices]))
        batch = examples()
        same(step(start(), packing.pack(batch, LENGTH, multiple=2 * devices)), make_step("balanced")(start(), batch))

    def test_with_dropout_winner_equals_all(self):
        packed = packing.pack(examples(), LENGTH)
        one, other = (make_step(name, dropout=0.4)(start(), packed) for name in ("wta", "wta, all"))
        same(one, other)
        without = make_step("wta")(start(), packed)[0].opt_state
        apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), one[0].opt_state, without)
        assert min(jax.tree.leaves(apart)) > 1e-3

    def test_ties_are_broken_for_each_example(self):
        equal = jax.tree.map(jnp.zeros_like, start().adapters)
        _, metrics = make_step("wta")(start().replace(adapters=equal), packing.pack(examples(), 40, multiple=2))
        assert (np.asarray(metrics["win_rate"]) > 0).sum() > 1

    def test_winners_that_are_kept(self):
        """They are kept by example, wherever the example is; examples without targets are left out."""
        numbers = {"example": np.array([4, 9, 2, 0, 7, 5, 1], np.int32)}
        first, second = (packing.pack(examples() | numbers, length) for length in (17, 40))
        step = make_step("wta", refresh=2)
        chosen, metrics = step(start(num_examples=11), first)
        scores = language_model.evaluate(
            loaded("qwen3_windows", shared_rank=1)[0], start().params, start().adapters, [examples()]
        )
        means = scores[0] / np.maximum(scores[1], 1)
        kept = [n for n in range(N) if ANSWERS[n]]
        assert chosen.winners.winner[numbers["example"][kept]].tolist() == means.argmax(0)[kept].tolist()
        assert chosen.winners.winner[np.array([2, 3, 6, 8, 10])].tolist() == [-1] * 5
        again, of_kept = step(chosen, second)
        close(of_kept["loss"], metrics["loss"])
        jax.tree.map(close, again.opt_state, chosen.opt_state)
        assert again.winners.age[numbers["example"][kept]].tolist() == [2] * 6

    def test_numbers_of_examples_that_the_state_does_not_have(self):
        packed = packing.pack(examples() | {"example": np.arange(N, dtype=np.int32) + 3}, LENGTH)
        with pytest.raises(ValueError, match="from 0 to 8, .* got 3 to 9"):
            make_step("wta", refresh=2)(start(num_examples=9), packed)

    def test_a_likelihood_of_rows_is_refused(self):
        step = mcl.make_train_step(lambda *_: jnp.zeros(1), objectives.wta(), keep_gradient(), donate=False)
        with pytest.raises(ValueError, match=r"shape \(1, 7\) for this batch of one row, got shape \(1,\)"):
            step(start(), packing.pack(examples(), LENGTH))
