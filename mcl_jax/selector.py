"""A selector tells from the prompt alone which hypothesis will win: γ_k(c) = softmax_k(W h(c) + b).

    features = mcl.generation.prompt_features(model, params, prompts)                 # h [N, D], of the frozen base
    weights = objectives.wta().weights(log_p, rng=key)                                # q [K, N]: winners; or mixture()
    selector = fit(Examples(features, weights), validation=Examples(...))
    selector.log_gamma(features)                                                      # log γ [K, N]

With it, K hypotheses are a proper density, Σ_k γ_k(c) p_k(y|c), and an answer needs only one of them (`choose`). Scores
of hypotheses that are trained on winners come from rMCL (Letzelter et al., arXiv 2311.01052).

The head is linear and is trained after the adapters, on fixed arrays. Then the loss is convex, so there is one optimum,
which L-BFGS finds without a learning rate; it costs a forward pass of each prompt and K of each answer, and no model is
in memory while it is fitted. A strong weight decay makes W zero and leaves b, which is not decayed: that is the prior
of the training set, the right answer where the prompt tells nothing. The decay is chosen on held-out examples. A head
trained beside the adapters would learn from winners that still change, and needs a further loss, optimizer and state in
the train step, so there is none. Everything here is a function of arrays, whatever the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mcl_jax import hosts, objectives
from mcl_jax.json_io import write_bytes

FILE = "selector.safetensors"
DECAYS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of standardised features; each starts from the one before it
PATIENCE = 3


class Examples(NamedTuple):
    """Prompts, and what each hypothesis is worth on their answers.

    Attributes:
      features: h(c), one row for each answer.
      weights: q of each answer, from `Objective.weights`: 1 for the winner, or soft ones. Each column sums to 1.
    """

    features: Float[np.ndarray, "N D"]
    weights: Float[np.ndarray, "K N"]


@flax.struct.dataclass
class Selector:
    """γ_k(c) = softmax_k(W h(c) + b).

    Attributes:
      kernel: W.
      bias: b.
    """

    kernel: Float[Array, "D K"]
    bias: Float[Array, " K"]

    @property
    def num_hypotheses(self) -> int:
        """K."""
        return len(self.bias)

    def log_gamma(self, features: Float[Array, "B D"]) -> Float[Array, "K B"]:
        """Returns log γ of each prompt, in nats.

        Raises:
          ValueError: if the features have another width than those of the training.
        """
        if jnp.ndim(features) != 2 or features.shape[1] != len(self.kernel):
            raise ValueError(
                f"the selector needs features [B, {len(self.kernel)}] of the base that it was trained with, got "
                f"{jnp.shape(features)}"
            )
        logits = jnp.asarray(features, jnp.float32) @ jnp.asarray(self.kernel) + jnp.asarray(self.bias)[None]
        return jax.nn.log_softmax(logits, axis=1).T

    def save(self, folder: Path | str) -> Path:
        """Writes selector.safetensors into a run directory, or beside PEFT folders. The first process does it.

        Args:
          folder: an existing folder.
        Returns:
          The path of the file.
        """
        path = Path(folder) / FILE
        content = save({"kernel": np.array(self.kernel, np.float32), "bias": np.array(self.bias, np.float32)})
        hosts.on_first(lambda: write_bytes(path, content), f"write {path}")
        return path

    @classmethod
    def load(cls, folder: Path | str) -> "Selector":
        """Reads what `save` wrote.

        Raises:
          ValueError: if the file holds something else; names it.
        """
        path = Path(folder) / FILE
        try:
            tensors = load(path.read_bytes())
        except (SafetensorError, AttributeError, KeyError, TypeError) as error:  # the others for float8 and the like
            raise ValueError(f"{path} must be a safetensors file, but it cannot be read: {error}") from None
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        kernel, bias = shapes.get("kernel", ()), shapes.get("bias", ())
        if len(shapes) != 2 or len(kernel) != 2 or kernel[1:] != bias:
            raise ValueError(f"{path} must have kernel [D, K] and bias [K], got {shapes}")
        if not all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError(f"{path} must hold finite numbers in float32, got other numbers")
        return cls(**tensors)


def init(width: int, num_hypotheses: int) -> Selector:
    """Returns the selector that knows nothing: γ_k = 1/K for every prompt.

    Args:
      width: D, the width of the features.
      num_hypotheses: K.
    """
    return Selector(np.zeros((width, num_hypotheses), np.float32), np.zeros(num_hypotheses, np.float32))


def prior(weights: Float[Array, "K N"], width: int) -> Selector:
    """Returns the selector that does not look at the prompt: γ_k = (Σ_n q_kn + 1) / (N + K).

    One added example for each hypothesis (Laplace) keeps γ above 0 for those that never won.

    Args:
      weights: q of the training examples.
      width: D, the width of the features.
    """
    return init(width, len(weights)).replace(bias=np.log(_smoothed(weights).mean(1)).astype(np.float32))


def fit(train: Examples, validation: Examples, *, decays: Sequence[float] = DECAYS, iterations: int = 200) -> Selector:
    """Fits −(1/N) Σ_n Σ_k q_kn log γ_k(c_n) + (λ/2) ‖W‖² for each λ, and returns the best on the validation examples.

    W is that of features with mean 0 and variance 1. The `prior` is a candidate too (λ = ∞), and no weaker λ is tried
    after three that did not improve. Weights are smoothed as in `prior`, so that the optimum is finite even if a plane
    separates the winners.

    Args:
      train: examples to fit.
      validation: examples whose loss, −(1/N) Σ_n Σ_k q_kn log γ_k(c_n), chooses λ.
      decays: values of λ, from strong to weak.
      iterations: most iterations of L-BFGS for each λ.
    Raises:
      ValueError: if the shapes do not fit, there are no examples, or a number is not finite.
    """
    _check(train, "train")
    _check(validation, "validation")
    x, q = np.asarray(train.features, np.float64), _smoothed(train.weights).T
    mean, spread = x.mean(0), x.std(0)
    spread[spread < 1e-6 * (1.0 + np.abs(mean))] = np.inf  # a constant tells nothing
    x, best = (x - mean) / spread, prior(train.weights, x.shape[1])
    kernel, bias = np.zeros((x.shape[1], q.shape[1])), np.log(q.mean(0))
    lowest, waited = _cross_entropy(best, validation), 0
    for decay in decays:
        kernel, bias = _minimum(x, q, kernel, bias, decay, iterations)
        raw = kernel / spread[:, None]
        candidate = Selector(raw.astype(np.float32), (bias - mean @ raw).astype(np.float32))
        loss, waited = _cross_entropy(candidate, validation), waited + 1
        if loss < lowest:
            best, lowest, waited = candidate, loss, 0
        if waited == PATIENCE:
            break
    return best


def choose(
    log_gamma: Float[Array, "K B"], top: int, rng: Key[Array, ""] | Key[Array, " B"] | None = None
) -> Int[Array, "m B"]:
    """Returns the m likeliest hypotheses of each prompt, the likeliest first.

    Args:
      log_gamma: log γ, from `Selector.log_gamma`.
      top: m.
      rng: one key, or one key for each prompt. With it, the m hypotheses are drawn from γ without replacement instead,
        in the order of the draws (Gumbel-top-k; Kool et al., arXiv 1903.06059); top=1 draws k ~ γ.
    Raises:
      ValueError: if m is outside [1, K].
    """
    K, B = log_gamma.shape
    if not 1 <= top <= K:
        raise ValueError(f"top_hypotheses must be in [1, K = {K}], got {top}")
    if rng is not None:
        draws = jax.vmap(lambda key: jax.random.gumbel(key, (K,), jnp.float32))(objectives.example_keys(rng, B))
        log_gamma = log_gamma + draws.T
    return jax.lax.top_k(log_gamma.T, top)[1].T.astype(jnp.int32)


def density_loss(
    log_gamma: Float[Array, "K N"], log_p: Float[Array, "K N"], tokens: Int[Array, " N"]
) -> Float[Array, " N"]:
    """Computes −log Σ_k γ_k(c) p_k(y|c), divided by the number of tokens, of each answer.

    It is never below the winner-takes-all loss −max_k log p_k, and exceeds it by at most −log γ of the winner.

    Args:
      log_gamma: log γ; −log K everywhere is the uniform mixture.
      log_p: log-likelihoods of the answers in nats, not divided by their lengths.
      tokens: number of tokens of each answer.
    Returns:
      Losses in nats per token.
    """
    return -jax.nn.logsumexp(log_gamma + log_p, axis=0) / tokens.astype(jnp.float32)


def _smoothed(weights: Float[Array, "K N"]) -> Float[np.ndarray, "K N"]:
    """Mixes a uniform distribution into each column, whose mean is then that with one more example per hypothesis."""
    q = np.asarray(weights, np.float64)
    K, N = q.shape
    return (N * q + 1.0) / (N + K)


def _check(examples: Examples, name: str) -> None:
    features, weights = (np.asarray(part) for part in examples)
    if features.ndim != 2 or weights.ndim != 2 or len(features) != weights.shape[1] or not len(features):
        raise ValueError(
            f"{name} needs features [N, D] and weights [K, N] of at least one example, got {features.shape} and "
            f"{weights.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(weights).all()):
        raise ValueError(f"{name} needs finite features and weights, but some are NaN or infinite")


def _minimum(x, q, kernel, bias, decay, iterations):
    """Returns W [D, K] and b [K] at the minimum, from a start; x is [N, D] and q [N, K], all in float64."""
    from scipy.optimize import minimize  # takes half a second to import
    from scipy.special import log_softmax

    def loss(flat):
        W, b = flat[: kernel.size].reshape(kernel.shape), flat[kernel.size :]
        log_gamma = log_softmax(x @ W + b, axis=1)
        residual = (np.exp(log_gamma) - q) / len(x)
        value = -(q * log_gamma).sum() / len(x) + decay / 2 * (W**2).sum()
        return value, np.concatenate([(x.T @ residual + decay * W).ravel(), residual.sum(0)])

    start = np.concatenate([kernel.ravel(), bias])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations}).x
    return found[: kernel.size].reshape(kernel.shape), found[kernel.size :]


def _cross_entropy(selector: Selector, examples: Examples) -> float:
    log_gamma = np.asarray(selector.log_gamma(np.asarray(examples.features)))
    return -float((np.asarray(examples.weights) * log_gamma).sum() / log_gamma.shape[1])
