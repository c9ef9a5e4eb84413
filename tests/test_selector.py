"""The selector: hand-checked numbers, what it learns, its file, and decoding of the hypotheses that it chooses."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mcl_jax import objectives, selector
from mcl_jax.selector import Examples, Selector, choose, density_loss, fit, prior

K, D = 3, 5


def one_hot(winner):
    return np.eye(K, dtype=np.float32)[winner].T  # [K, N]


def drawn(N, seed, share=(0.2, 0.5, 0.3)):
    """Features without any information, and winners."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)).astype(np.float32), rng.choice(K, N, p=share)


def test_log_gamma_by_hand():
    kernel = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 3.0, 1.0]], np.float32))
    one = Selector(kernel, np.log(np.array([1.0, 1.0, 2.0], np.float32)))
    found = np.exp(one.log_gamma(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])))
    np.testing.assert_allclose(
        found, np.array([[2 / 5, 1 / 12, 1 / 4], [1 / 5, 9 / 12, 1 / 4], [2 / 5, 2 / 12, 1 / 2]])
    )


def test_prior_by_hand():
    one = prior(one_hot([1, 1, 2, 1]), D)
    np.testing.assert_allclose(np.exp(one.bias), [1 / 7, 4 / 7, 2 / 7], rtol=1e-6)
    found = np.exp(one.log_gamma(drawn(7, 0)[0]))
    np.testing.assert_allclose(found, np.tile(np.array([[1], [4], [2]]) / 7, 7), rtol=1e-6)
    np.testing.assert_allclose(np.exp(selector.init(D, K).log_gamma(drawn(7, 0)[0])), 1 / K, rtol=1e-6)


def test_density_loss_by_hand():
    gamma, p = np.array([[0.5, 0.25], [0.25, 0.75], [0.25, 0.0]]), np.array([[0.1, 0.2], [0.4, 0.2], [0.2, 0.9]])
    with np.errstate(divide="ignore"):
        found = density_loss(jnp.log(gamma), jnp.log(p), np.array([2, 4]))
    np.testing.assert_allclose(found, [-np.log(0.05 + 0.1 + 0.05) / 2, -np.log(0.05 + 0.15) / 4], rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_separable_features_are_learned_without_an_error(offset):
    """Features of a large mean and of unequal spread, one of them constant."""
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 4, 0, 0]])

    def examples(N):
        winner = rng.choice(K, N, p=[0.6, 0.3, 0.1])
        x = (centres[winner] + rng.uniform(-1, 1, (N, D))) * np.array([1, 10, 0.1, 1, 0]) + offset
        return x.astype(np.float32), winner

    (x, winner), (held_x, held), (test_x, test) = examples(101), examples(53), examples(211)
    one = fit(Examples(x, one_hot(winner)), Examples(held_x, one_hot(held)))
    np.testing.assert_array_equal(np.argmax(one.log_gamma(test_x), axis=0), test)
    assert float(np.exp(one.log_gamma(test_x))[test, np.arange(211)].mean()) > 0.9


def test_features_that_tell_nothing_leave_the_prior():
    x, winner = drawn(307, 1)
    held_x, held = drawn(211, 2)
    one = fit(Examples(x, one_hot(winner)), Examples(held_x, one_hot(held)))
    gamma = np.exp(one.log_gamma(drawn(1009, 3)[0]))
    np.testing.assert_allclose(gamma.mean(1), [0.2, 0.5, 0.3], atol=3 * np.sqrt(0.25 / 307))
    assert gamma.std(1).max() < 0.06  # a fit without decay spreads by 0.1
    assert (gamma.argmax(0) == 1).all()


def test_soft_weights_are_fitted_as_they_are():
    """A table of two prompts: without decay to speak of, γ is the mean of q of each."""
    x = np.repeat(np.array([[0.0], [1.0]], np.float32), 200, axis=0)
    q = np.repeat(np.array([[0.7, 0.2], [0.2, 0.2], [0.1, 0.6]], np.float32), 200, axis=1)
    one = fit(Examples(x, q), Examples(x, q), decays=(1.0, 1e-6))
    found = np.exp(one.log_gamma(np.array([[0.0], [1.0]], np.float32)))
    np.testing.assert_allclose(found, q[:, [0, 200]], atol=0.005)


def test_a_hypothesis_that_never_won_stays_possible():
    x, winner = drawn(101, 4, share=(0.4, 0.6, 0.0))
    one = fit(Examples(x, one_hot(winner)), Examples(x, one_hot(winner)))
    gamma = np.exp(one.log_gamma(x))
    assert (gamma[2] > 0).all() and gamma[2].mean() < 0.05


def test_weights_of_objectives_are_weights_of_examples():
    log_p = jnp.log(jnp.array([[0.1, 0.2], [0.4, 0.2], [0.2, 0.8]]))
    np.testing.assert_array_equal(objectives.wta().weights(log_p), one_hot([1, 2]))
    np.testing.assert_allclose(objectives.mixture().weights(log_p).sum(0), 1.0, rtol=1e-6)


def test_the_likeliest_are_chosen_in_order():
    log_gamma = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.3], [0.1, 0.3, 0.4]]))
    assert choose(log_gamma, 2).tolist() == [[1, 0, 2], [0, 2, 0]]
    assert choose(log_gamma, 3).T.tolist() == [[1, 0, 2], [0, 2, 1], [2, 0, 1]]
    with pytest.raises(ValueError, match=r"top_hypotheses must be in \[1, K = 3\], got 4"):
        choose(log_gamma, 4)


def test_hypotheses_are_drawn_from_gamma_without_replacement():
    gamma = np.array([0.2, 0.5, 0.3])
    first, second = choose(jnp.log(jnp.tile(gamma[:, None], 4003)), 2, jax.random.key(0))
    assert not np.any(first == second)
    np.testing.assert_allclose(np.bincount(first) / 4003, gamma, atol=4 * np.sqrt(0.25 / 4003))
    pairs = np.histogram2d(first, second, bins=K)[0] / 4003
    np.testing.assert_allclose(pairs[1], [0.5 * 0.2 / 0.5, 0, 0.5 * 0.3 / 0.5], atol=4 * np.sqrt(0.25 / 4003))
    keys = jax.random.split(jax.random.key(0), 7)
    whole = choose(jnp.log(jnp.tile(gamma[:, None], 7)), 1, keys)
    np.testing.assert_array_equal(choose(jnp.log(jnp.tile(gamma[:, None], 2)), 1, keys[3:5]), whole[:, 3:5])


def test_a_selector_comes_back_from_its_file(tmp_path):
    one = Selector(np.arange(D * K, dtype=np.float32).reshape(D, K), np.arange(K, dtype=np.float32))
    assert one.save(tmp_path) == tmp_path / "selector.safetensors"
    jax.tree.map(np.testing.assert_array_equal, Selector.load(tmp_path), one)
    (tmp_path / "selector.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="selector.safetensors must be a safetensors file"):
        Selector.load(tmp_path)
    Selector(one.kernel, one.bias[:2]).save(tmp_path)
    with pytest.raises(ValueError, match=r"must have kernel \[D, K\] and bias \[K\], got"):
        Selector.load(tmp_path)
    (one.replace(bias=np.float32([0, np.nan, *one.bias[2:]]))).save(tmp_path)
    with pytest.raises(ValueError, match="selector.safetensors must hold finite numbers in float32"):
        Selector.load(tmp_path)
    tensors = {"kernel": one.kernel.astype(ml_dtypes.float8_e4m3fn), "bias": one.bias}
    (tmp_path / "selector.safetensors").write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(ValueError, match="selector.safetensors must"):
        Selector.load(tmp_path)


@pytest.mark.parametrize(
    ("x", "q", "message"),
    [
        (np.zeros((4, D)), np.ones((K, 5)) / K, r"train needs features \[N, D\] and weights \[K, N\]"),
        (np.zeros((0, D)), np.ones((K, 0)), "of at least one example"),
        (np.full((4, D), np.nan), np.ones((K, 4)) / K, "train needs finite features and weights"),
    ],
)
def test_refusals(x, q, message):
    with pytest.raises(ValueError, match=message):
        fit(Examples(x, q), Examples(np.zeros((2, D)), np.ones((K, 2)) / K))
    with pytest.raises(ValueError, match=r"features \[B, 5\] of the base that it was trained with, got \(2, 3\)"):
        selector.init(D, K).log_gamma(np.zeros((2, 3)))
