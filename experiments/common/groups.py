"""Groups of a configuration, each with what it makes: objective, adapters, optimizer, batches, decoders."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from tyro.conf import arg

from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.generation import BeamSearch, Decoder, DiverseBeamSearch, Sampling
from mcl_jax.lora import LoraConfig

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture"]
DecoderName = Literal["beam", "diverse", "sampling", "ancestral", "top_k", "typical", "tta"]


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """n answers to n changed pictures or clips; see `Perception.augmented`."""

    decoder: Decoder
    n: int


@dataclasses.dataclass(frozen=True)
class Objective(Options):
    """How the K hypotheses share each example."""

    name: Annotated[ObjectiveName, arg(name="objective")] = "balanced"
    """wta: only the best hypothesis learns from an example. relaxed: the others learn a little from it. annealed: all
    learn at first, and only the best one in the end. balanced: as wta, with a bias that keeps every hypothesis winning.
    mixture: the likelihood of the uniform mixture."""
    epsilon: float = 0.05
    """Share of the gradient that the losing hypotheses get together under the relaxed objective."""
    rate: float = 0.05
    """Step size of the balancing bias of the balanced objective (nats per token per step)."""
    temperature: float = 0.5
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.95
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for. By default the winner where that is exact, else a sampled one."""

    def make(self, name: str | None = None) -> objectives.Objective:
        """The objective of this name, by default of `self.name`, with these settings."""
        match name or self.name:
            case "mle":
                return objectives.mle()
            case "balanced":
                return objectives.balanced_wta(rate=self.rate)
            case "relaxed":
                return objectives.relaxed_wta(self.epsilon)
            case "annealed":
                return objectives.annealed(optax.exponential_decay(self.temperature, 1, self.temperature_decay))
            case "wta":
                return objectives.wta()
            case "mixture":
                return objectives.mixture()

    def backward_of(self, loss: objectives.Objective, num_hypotheses: int, soft: str = "sampled") -> str:
        """The backward pass of an objective for K hypotheses; `soft` is the default where the winner is not enough."""
        return self.backward or ("winner" if loss.is_hard(num_hypotheses) else soft)


@dataclasses.dataclass(frozen=True)
class Lora(Options):
    """The low-rank adapters."""

    rank: int = field(default=8, metadata=COUNT)
    """Rank r of the adapters of each hypothesis."""
    alpha: float | None = None
    """Scale α of the adapters: they are multiplied by α/r. By default α = r."""
    dropout: float = 0.0
    """Share of the inputs of the adapters that is dropped in training."""
    targets: tuple[str, ...] = ()
    """Linear layers that get adapters, by name or regular expression. By default the projections of queries, keys and
    values and those of the MLP, whatever the family calls them (`mcl.models.lora_targets`)."""

    def adapters(self, factor: int = 1, of_family: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Adapters of `factor` times the rank, on `targets` or those of the family; α/r does not change."""
        alpha = self.rank if self.alpha is None else self.alpha
        return LoraConfig(
            rank=factor * self.rank, alpha=factor * alpha, dropout=self.dropout, targets=self.targets or of_family
        )


@dataclasses.dataclass(frozen=True)
class Experts(Options):
    """The method moe."""

    experts_per_token: int | None = field(default=None, metadata=COUNT)
    """Experts that each token goes to; training then balances their use. All K by default."""
    balance_weight: float = 0.01
    """Weight of the balance in the loss."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Options):
    """AdamW, with gradients clipped to norm 1, and its learning rate."""

    learning_rate: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    adam_epsilon: float = 1e-8
    """Epsilon of AdamW."""
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """How the learning rate falls after a warm-up of w steps. cosine: to a tenth at the last step. inverse_sqrt: in
    proportion to √(w / step)."""
    warmup: float = 5
    """Steps of linear warm-up. Below 1 it is a fraction of all steps, rounded up."""

    def check(self) -> None:
        super().check()
        if self.warmup < 0 or (self.warmup > 1 and self.warmup % 1):
            raise ValueError(f"--warmup must be a number of steps or a fraction below 1, got {self.warmup}")
        if self.schedule == "inverse_sqrt" and not self.warmup:
            raise ValueError("--schedule inverse_sqrt needs a --warmup above 0: its unit of time")

    def learning_rates(self, steps: int) -> optax.Schedule:
        """The learning rate at each of the steps."""
        warmup = math.ceil(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, warmup, max(steps, warmup + 1), self.learning_rate / 10
            )
        return lambda step: (
            self.learning_rate * jnp.minimum(step / warmup, jnp.sqrt(warmup / jnp.maximum(step, warmup)))
        )

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimizer for a training of so many steps."""
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(self.learning_rates(steps), b2=0.98, eps=self.adam_epsilon, weight_decay=self.weight_decay),
        )


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """How long, in which batches and on which devices."""

    steps: int | None = field(default=None, metadata=COUNT)
    """Training steps. 100 by default, if --epochs is not given."""
    epochs: int | None = field(default=None, metadata=COUNT)
    """Passes over the training sources. With --steps too, training ends with the first of the two."""
    batch_size: int = field(default=8, metadata=COUNT)
    """Examples per step."""
    max_length: int = field(default=192, metadata=COUNT)
    """Longest example in tokens, prompt and answer together. Longer ones are left out, and their number is printed."""
    accumulate: int = field(default=1, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Micro-batches that each batch is cut into, to save memory. The result is the same."""
    remat: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Recompute each layer in the backward pass, to save memory. The result is the same."""
    devices: int = field(default=1, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Devices of this machine that each batch is spread over. The result is the same."""

    def check(self) -> None:
        super().check()
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"--batch-size {self.batch_size} does not divide over --devices {self.devices} and --accumulate "
                f"{self.accumulate}"
            )

    def check_devices(self) -> None:
        """Raises ValueError where there are fewer devices than asked for."""
        if self.devices > 1 and self.devices > (here := len(jax.local_devices())):
            raise ValueError(f"--devices {self.devices}, but there are {here} here")

    def batches(self, seed: int) -> BatchConfig:
        """Shapes and order of batches."""
        lengths = [n for n in (64, 96, 128) if n < self.max_length]
        return BatchConfig(self.batch_size, (*lengths, self.max_length), seed)


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """What is evaluated, and how often."""

    eval_every: int = field(default=20, metadata=COUNT | NO_INFLUENCE)
    """Steps between two evaluations while training."""
    eval_items: int = field(default=24, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Held-out sources that are evaluated while training, with every answer of each."""
    test_items: int = field(default=100, metadata=COUNT | VOLATILE)
    """Test sources of the final loss and win matrix, with every answer of each."""
    decode_items: int = field(default=40, metadata=COUNT | VOLATILE)
    """Test sources that the methods answer."""


@dataclasses.dataclass(frozen=True)
class Decoding(Options):
    """How the methods answer."""

    max_new_tokens: int = field(default=80, metadata=COUNT | VOLATILE)
    """Longest answer in tokens."""
    num_beams: int | None = field(default=None, metadata=VOLATILE)
    """Beams of a method with one hypothesis, a multiple of K; each of K hypotheses has 1/K of them. 2 K by default."""
    repetition_penalty: float = field(default=1.0, metadata=VOLATILE)
    """Above 1, tokens of the prompt and of the answer so far become less likely, in every decoder."""
    mle_decoders: tuple[DecoderName, ...] = field(
        default=("beam", "diverse", "sampling"), metadata=VOLATILE | NO_INFLUENCE
    )
    """How a method with one hypothesis makes K answers, with as many beams in all as the K hypotheses have. sampling:
    top-p 0.95. ancestral: from the whole distribution. top_k: from the 50 likeliest tokens. typical: from the typical
    set, 0.95. tta: answers to K changed pictures or clips, with 1/K of the beams each."""
    diversity_penalty: float = field(default=0.8, metadata=VOLATILE)
    """Penalty λ of diverse beam search."""

    def check(self) -> None:
        super().check()
        if not self.repetition_penalty > 0:
            raise ValueError(f"--repetition-penalty must be above 0, got {self.repetition_penalty}")

    def beams(self, num_hypotheses: int) -> int:
        """Beams in all, for every method."""
        return 2 * num_hypotheses if self.num_beams is None else self.num_beams

    def decoder(self, name: DecoderName, num_hypotheses: int) -> "Decoder | TestTimeAugmentation":
        """How one hypothesis makes K answers."""
        K, beams = num_hypotheses, self.beams(num_hypotheses)
        match name:
            case "beam":
                return BeamSearch(num_beams=beams, num_return=K)
            case "diverse":
                return DiverseBeamSearch(
                    num_beams=beams, num_groups=K, num_return=K, diversity_penalty=self.diversity_penalty
                )
            case "sampling":
                return Sampling(num_samples=K, top_p=0.95)
            case "ancestral":
                return Sampling(num_samples=K)
            case "top_k":
                return Sampling(num_samples=K, top_k=50)
            case "typical":
                return Sampling(num_samples=K, typical_p=0.95)
            case "tta":
                return TestTimeAugmentation(self.decoder_of_hypothesis(K), K)

    def decoder_of_hypothesis(self, num_hypotheses: int) -> Decoder:
        """How each of K hypotheses makes one answer."""
        return BeamSearch(num_beams=self.beams(num_hypotheses) // num_hypotheses)


@dataclasses.dataclass(frozen=True)
class Base(Options):
    """The frozen base model."""

    path: Annotated[Path | None, arg(name="base")] = None
    """Base model: a Hugging Face folder of a supported model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights of the base and of what it computes."""

    def options(self, remat: bool) -> dict[str, object]:
        """Arguments of `mcl.models.from_pretrained`."""
        dtype = jnp.dtype(self.dtype)
        return {"dtype": dtype, "param_dtype": dtype, "remat": remat}
