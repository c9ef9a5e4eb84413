"""Groups of options, each with the object that it makes: objective, adapters, optimizer, batches, base."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from tyro.conf import arg

from experiments.common.devices import Axes, check_axes, default_axes, mesh_of
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax import language_model, objectives
from mcl_jax.data import BatchConfig
from mcl_jax.hypotheses import scale_parts
from mcl_jax.lora import LoraConfig
from mcl_jax.models.decoder import Remat
from mcl_jax.models.narrowed import Narrow
from mcl_jax.parallel import base_sharding
from mcl_jax.tokenization import AnswerStart

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture", "random"]
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)


@dataclasses.dataclass(frozen=True)
class Objective(Options):
    """How the K hypotheses share each example."""

    name: Annotated[ObjectiveName, arg(name="objective")] = "balanced"
    """Training objective.
    wta: only the best hypothesis learns from an example.
    relaxed: the other hypotheses learn a little from it, too.
    annealed: all hypotheses learn at first, and only the best one in the end.
    balanced: as wta, with a bias that keeps every hypothesis winning.
    mixture: the likelihood of the uniform mixture.
    random: a hypothesis drawn for each example learns from it; a control without competition."""
    epsilon: float = 0.05
    """Share of the gradient that the losing hypotheses get together under the relaxed objective."""
    epsilon_steps: int | None = field(default=None, metadata=COUNT)
    """Number of steps in which --epsilon falls to 0, from where on the objective is wta. By default, it stays."""
    rate: float = 0.05
    """Step size of the bias of the balanced objective (nats per token per step)."""
    temperature: float = 0.5
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.95
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for. The default is winner if that is exact, else sampled."""
    assign: Literal["clean", "noisy"] = "clean"
    """Scores by which the hypotheses share an example, with --dropout.
    clean: those without it. They cost nothing, or one more forward pass of every hypothesis with --backward all.
    noisy: those with it, which makes winners partly random, as in the paper."""

    def make(self, name: str | None = None) -> objectives.Objective:
        """Makes the objective with this name, by default `self.name`, and these settings."""
        match name or self.name:
            case "mle":
                return objectives.mle()
            case "balanced":
                return objectives.balanced_wta(rate=self.rate)
            case "relaxed":
                steps = self.epsilon_steps
                fading = steps and optax.linear_schedule(self.epsilon, 0.0, steps)
                return objectives.relaxed_wta(fading or self.epsilon)
            case "annealed":
                return objectives.annealed(optax.exponential_decay(self.temperature, 1, self.temperature_decay))
            case "wta":
                return objectives.wta()
            case "mixture":
                return objectives.mixture()
            case "random":
                return objectives.random_wta()
            case unknown:
                raise ValueError(f"Objective.make needs a case for {unknown!r}")

    def backward_of(self, loss: objectives.Objective, num_hypotheses: int, soft: str = "sampled") -> str:
        """Returns the backward pass of an objective for K hypotheses; `soft` is the default if q is not hard."""
        return self.backward or ("winner" if loss.is_hard(num_hypotheses) else soft)


@dataclasses.dataclass(frozen=True)
class Choosing(Options):
    """Cheaper ways to choose the winners of mcl."""

    refresh: int | None = field(default=None, metadata=COUNT)
    """Number of visits of an example after which its winner is chosen again; the default is every visit.
    A step between costs as much as a step of one model. It comes where all winners of the batch are known, so it takes
    several --epochs, and --examples answers if sources have several answers. It needs a hard objective."""
    choose_tokens: int | None = field(default=None, metadata=COUNT)
    """Number of tokens of each answer that choose its winner; the default is all of them."""
    choose_dtype: Narrow | None = None
    """Dtype of the products that choose winners; the default is --dtype. The hypothesis that won learns in --dtype.
    bfloat16 saves time where --dtype is float32 and the device is faster in 16 bits, int8 where it is faster in 8."""

    @property
    def chooses_apart(self) -> bool:
        """Whether winners are chosen by other scores than the likelihood of the training."""
        return self.choose_tokens is not None or self.choose_dtype is not None

    def inputs(self, batch: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
        """Adds what choosing needs to the inputs of the likelihood."""
        if self.choose_tokens is None:
            return batch
        return language_model.first_tokens(batch, self.choose_tokens, lengths)

    def options(self, log_likelihood: Any) -> dict[str, Any]:
        """Returns the arguments of the train step.

        Args:
          log_likelihood: the likelihood in the dtype that chooses.
        """
        if not self.chooses_apart:
            return {"refresh": self.refresh}
        of_all = self.choose_tokens is None
        return {
            "refresh": self.refresh,
            "choose_fn": log_likelihood if of_all else language_model.by_first_tokens(log_likelihood),
        }


@dataclasses.dataclass(frozen=True)
class Lora(Options):
    """The low-rank adapters."""

    rank: int = field(default=8, metadata=COUNT)
    """Rank r of the adapters of each hypothesis."""
    shared_rank: int = 0
    """Number S of rank components that all hypotheses of mcl have in common and that learn from every example.
    Each hypothesis then has r - S/K of its own, so that all K together still have rank r·K, as mle_rk has."""
    alpha: float | None = None
    """Scale α of the adapters, which are multiplied by α/r. The default is α = r."""
    dropout: float = 0.0
    """Dropout probability for the inputs of the adapters in training."""
    targets: tuple[str, ...] = ()
    """Linear layers that get adapters, by name or regular expression; all-linear is all but the output layer.
    The default is the projections of queries, keys and values and those of the MLP (`mcl.models.lora_targets`)."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers that get adapters, from 0; all by default. With the upper layers only, what lies below
    them is computed once for all hypotheses."""

    @property
    def base_options(self) -> dict[str, bool]:
        """The arguments that `mcl.models.from_pretrained` needs so that the layers have numbers, if these are asked."""
        return {"scan": False} if self.layers else {}

    def adapters(self, factor: int = 1, default_targets: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Returns adapters with `factor` times the rank and the same α/r, on `targets` or the default ones."""
        return self._config(factor * self.rank, 0, default_targets)

    def shared_adapters(self, num_hypotheses: int, default_targets: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Returns the adapters of mcl: rank r·K in all, of which `shared_rank` is shared, and the same α/r."""
        own, rest = divmod(self.rank * num_hypotheses - self.shared_rank, num_hypotheses)
        if self.shared_rank < 0 or rest or own < 1:
            raise ValueError(
                f"--shared-rank must be 0 or a multiple of --num-hypotheses {num_hypotheses} below --rank times "
                f"--num-hypotheses {self.rank * num_hypotheses}, got {self.shared_rank}"
            )
        return self._config(own, self.shared_rank, default_targets)

    def _config(self, rank: int, shared_rank: int, default_targets: Sequence[str]) -> LoraConfig:
        alpha = self.rank if self.alpha is None else self.alpha
        return LoraConfig(
            rank=rank,
            shared_rank=shared_rank,
            alpha=alpha * (rank + shared_rank) / self.rank,
            dropout=self.dropout,
            targets=self.targets or default_targets,
            layers=self.layers or None,
        )


@dataclasses.dataclass(frozen=True)
class Experts(Options):
    """The mixture of experts of the method moe."""

    experts_per_token: int | None = field(default=None, metadata=COUNT)
    """Number of experts that each token goes to; training then balances their use. The default is all K."""
    balance_weight: float = 0.01
    """Weight of the balance loss."""
    experts_alone: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Also answer with each of the K experts of moe alone, as if they were hypotheses; its name is moe/experts."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Options):
    """AdamW, with gradients clipped to norm 1, and its learning rate."""

    learning_rate: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    adam_epsilon: float = 1e-8
    """Epsilon of AdamW."""
    beta2: float = 0.98
    """β2 of AdamW, the decay of its second moments."""
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """Learning rate after a warm-up of w steps.
    cosine: it falls to --final-rate at the last step.
    inverse_sqrt: it is proportional to √(w / step)."""
    final_rate: float = 0.1
    """Share of the highest learning rate that is left at the last step of the cosine schedule."""
    warmup: float = 5
    """Number of steps of linear warm-up. A value below 1 is a fraction of all steps, rounded up."""
    own_rate: float = 1.0
    """Factor of the learning rate of what the hypotheses of mcl do not share, with --shared-rank."""
    own_after: int = 0
    """Number of steps after which the hypotheses of mcl begin to learn what they do not share, with --shared-rank.
    Until then they are one model."""
    shared_after: int = 0
    """Number of steps after which the hypotheses of mcl begin to learn what they share, with --shared-rank. Until then
    they find their modes apart."""

    def check(self) -> None:
        super().check()
        if not self.own_rate > 0:
            raise ValueError(f"--own-rate must be positive, got {self.own_rate}")
        for name in ("own_after", "shared_after"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {value}")
        if self.own_after and self.shared_after:
            raise ValueError("--own-after and --shared-after exclude each other, since no part would learn at first")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"--beta2 must be at least 0 and below 1, got {self.beta2}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"--final-rate must be from 0 to 1, got {self.final_rate}")
        if self.warmup < 0 or (self.warmup > 1 and self.warmup % 1):
            raise ValueError(f"--warmup must be a number of steps or a fraction below 1, got {self.warmup}")
        if self.schedule == "inverse_sqrt" and not self.warmup:
            raise ValueError("--schedule inverse_sqrt needs a --warmup above 0, got 0")

    def learning_rates(self, steps: int) -> optax.Schedule:
        """Returns the schedule of the learning rate for a training of `steps` steps."""
        warmup = math.ceil(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, warmup, max(steps, warmup + 1), self.final_rate * self.learning_rate
            )
        return lambda step: (
            self.learning_rate * jnp.minimum(step / warmup, jnp.sqrt(warmup / jnp.maximum(step, warmup)))
        )

    def make(self, steps: int) -> optax.GradientTransformation:
        """Makes the optimizer for a training of `steps` steps."""
        rates = self.learning_rates(steps)
        adamw = optax.adamw(rates, b2=self.beta2, eps=self.adam_epsilon, weight_decay=self.weight_decay)
        chain = [optax.clip_by_global_norm(1.0), adamw]
        if self.treats_parts_differently:
            from_step = lambda start, factor: lambda step: jnp.where(step < start, 0.0, factor)
            own, shared = from_step(self.own_after, self.own_rate), from_step(self.shared_after, 1.0)
            chain.append(scale_parts(own, shared))
        return optax.chain(*chain)

    @property
    def treats_parts_differently(self) -> bool:
        """Whether the shared part learns at another time, or at another rate, than the rest."""
        return (self.own_rate, self.own_after, self.shared_after) != (1.0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """Length of the training, batches and devices."""

    steps: int | None = field(default=None, metadata=COUNT)
    """Number of training steps. The default is 100 if --epochs is not given."""
    epochs: int | None = field(default=None, metadata=COUNT)
    """Number of passes over the training sources. If --steps is given too, training ends with the first of the two."""
    batch_size: int = field(default=8, metadata=COUNT)
    """Number of examples per step."""
    max_length: int = field(default=192, metadata=COUNT)
    """Longest example in tokens, prompt and answer together. Longer ones are left out, and their number is printed."""
    lengths: tuple[int, ...] = field(default=LENGTHS, metadata=NO_INFLUENCE)
    """Lengths below --max-length to which batches are padded, ascending. The step compiles once for each that occurs.
    Batches are of examples of similar length, so more lengths save more padding. Only the noise of --dropout depends on
    them."""
    train_items: int | None = field(default=None, metadata=COUNT)
    """Number of training sources, evenly spread over all of them; all by default."""
    examples: Literal["sources", "answers"] = "sources"
    """Examples of an epoch.
    sources: each source once, with one of its answers, drawn anew in each epoch.
    answers: each answer of each source."""
    answer_start: AnswerStart = "alone"
    """Tokens with which an answer begins.
    alone: those of the answer by itself. For some tokenizers (Llama) the first has a space, for others (Qwen2) not.
    space: those of the answer after a space.
    direct: those of the answer directly after the prompt."""
    pack: bool = False
    """Put several short examples into each row of --max-length tokens, in place of --lengths, to save padding.
    Each has the likelihood and the winner that it would have in a row of its own."""
    keep: Literal["last", "best"] = "last"
    """State that is tested.
    last: that after the last step.
    best: that with the lowest validation loss, at one of the evaluations of --eval-every."""
    patience: int | None = field(default=None, metadata=COUNT)
    """Number of evaluations in a row without a lower validation loss after which the training ends; needs --keep best.
    By default, it takes all steps."""
    accumulate: int = field(default=1, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Number of micro-batches per batch; more of them save memory. The result is the same."""
    remat: Remat = field(default="none", metadata=VOLATILE | NO_INFLUENCE)
    """What the backward pass computes again to save memory. The result is the same.
    none: nothing.
    full: each layer, from its input.
    dots: each layer except its products with matrices, which is faster than full and needs more memory."""
    mesh: str | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Devices to use, such as data=4,model=2: data divides each batch, and model shards the matrices of the base.
    By default, data has all accelerators, as many as divide the batch. The result is the same."""
    fsdp: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Shard the matrices of the base over data, too, and gather each layer when it runs.
    This saves memory and takes time; use it with --remat. The result is the same."""

    def check(self) -> None:
        super().check()
        if self.patience is not None and self.keep != "best":
            raise ValueError(f"--patience {self.patience} needs --keep best, got {self.keep}")
        if not all(a < b for a, b in itertools.pairwise((0, *self.lengths))):
            raise ValueError(f"--lengths must be positive and ascending, got {list(self.lengths)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--batch-size must be a multiple of --accumulate, got {self.batch_size} for {self.accumulate}"
            )
        data = Axes.parse(self.mesh).data if self.mesh else 1
        if self.batch_size > data and self.batch_size % (data * self.accumulate):
            raise ValueError(
                f"--batch-size must be a multiple of data in --mesh times --accumulate, got {self.batch_size} for "
                f"{data} times {self.accumulate}"
            )

    @property
    def each_answer(self) -> bool:
        """Whether each answer of a source is an example."""
        return self.examples == "answers"

    @property
    def axes(self) -> Axes:
        """Sizes of the mesh."""
        return Axes.parse(self.mesh) if self.mesh else default_axes(self.batch_size // self.accumulate)

    def check_devices(self) -> None:
        """Raises a ValueError if --mesh does not fit the devices."""
        check_axes(self.axes, self.batch_size // self.accumulate)

    def device_mesh(self) -> Mesh | None:
        """Returns the mesh; None for one device."""
        return mesh_of(self.axes)

    def batches(self, seed: int) -> BatchConfig:
        """Returns the shapes and the order of batches."""
        if self.pack:  # rows fill better if long and short examples come together
            return BatchConfig(self.batch_size, (self.max_length,), seed, window=1)
        lengths = [n for n in self.lengths if n < self.max_length]
        return BatchConfig(self.batch_size, (*lengths, self.max_length), seed)

    @property
    def rows_multiple(self) -> int | None:
        """What divides the number of rows of a batch, with --pack."""
        return self.axes.data * self.accumulate if self.pack else None


@dataclasses.dataclass(frozen=True)
class Base(Options):
    """The frozen base model."""

    path: Annotated[Path | None, arg(name="base")] = None
    """Base model: a Hugging Face folder of a supported model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights of the base and of its computations."""
    quantization: Literal["int8", "nf4"] | None = None
    """Store the kernels of the frozen base in 8 or 4 bits, which saves memory and costs a little likelihood."""

    def options(self, training: Training) -> dict[str, object]:
        """Returns the arguments of `mcl.models.from_pretrained`: it reads the base straight into its shards."""
        dtype, mesh = jnp.dtype(self.dtype), training.device_mesh()
        sharding = None if mesh is None else base_sharding(mesh, fully=training.fsdp)
        return {
            "dtype": dtype,
            "param_dtype": dtype,
            "remat": training.remat,
            "sharding": sharding,
            "quantization": self.quantization,
        }
