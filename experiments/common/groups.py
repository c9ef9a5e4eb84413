"""Groups of options, each with the object that it makes: objective, adapters, optimizer, batches, decoders."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from tyro.conf import arg

from experiments.common.devices import Axes, check_axes, default_axes, mesh_of
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax import cluster, hosts, objectives
from mcl_jax.console import say
from mcl_jax.data import BatchConfig
from mcl_jax.generation import BeamSearch, Decoder, DiverseBeamSearch, Greedy, Sampling
from mcl_jax.hypotheses import scale_parts
from mcl_jax.lora import LoraConfig
from mcl_jax.models.decoder import Remat
from mcl_jax.parallel import base_sharding
from mcl_jax.tokenization import AnswerStart

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture", "random"]
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)  # of batches, below the longest
DecoderName = Literal["greedy", "beam", "diverse", "sampling", "ancestral", "top_k", "typical", "tta"]


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """Gives n answers, one to each of n augmented pictures or clips; see `Perception.augmented`."""

    decoder: Decoder
    n: int


@dataclasses.dataclass(frozen=True)
class ExpertsAlone:
    """Each expert of a mixture makes an answer with this decoder; see `mcl.moe.experts_alone`."""

    decoder: Decoder
    n: int


AnyDecoder = Decoder | TestTimeAugmentation | ExpertsAlone


def budget(decoder: AnyDecoder) -> tuple[int, int]:
    """Returns what one hypothesis spends on a source: rows that it decodes side by side, and answers that it makes."""
    match decoder:
        case TestTimeAugmentation(inner, n) | ExpertsAlone(inner, n):
            rows, answers = budget(inner)
            return n * rows, n * answers
        case Greedy():
            return 1, 1
        case Sampling():
            return decoder.num_samples, decoder.num_samples
        case _:
            return decoder.num_beams, decoder.num_return


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
    rate: float = 0.05
    """Step size of the bias of the balanced objective (nats per token per step)."""
    temperature: float = 0.5
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.95
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for. The default is winner if that is exact, else sampled."""

    def make(self, name: str | None = None) -> objectives.Objective:
        """Makes the objective with this name, by default `self.name`, and these settings."""
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
            case "random":
                return objectives.random_wta()
            case unknown:
                raise ValueError(f"Objective.make needs a case for {unknown!r}")

    def backward_of(self, loss: objectives.Objective, num_hypotheses: int, soft: str = "sampled") -> str:
        """Returns the backward pass of an objective for K hypotheses; `soft` is the default if q is not hard."""
        return self.backward or ("winner" if loss.is_hard(num_hypotheses) else soft)


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
    examples: Literal["sources", "answers"] = "sources"
    """Examples of an epoch.
    sources: each source once, with one of its answers, drawn anew in each epoch.
    answers: each answer of each source."""
    answer_start: AnswerStart = "alone"
    """Tokens with which an answer begins.
    alone: those of the answer by itself. For some tokenizers (Llama) the first has a space, for others (Qwen2) not.
    space: those of the answer after a space.
    direct: those of the answer directly after the prompt."""
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
        lengths = [n for n in LENGTHS if n < self.max_length]
        return BatchConfig(self.batch_size, (*lengths, self.max_length), seed)


@dataclasses.dataclass(frozen=True)
class Hosts(Options):
    """Several processes that train together. Start the same command in each.

    The processes of a TPU slice of several hosts, or of a SLURM step, train together unless --alone is given.
    """

    distributed: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Train together with the same command in other processes, usually one per host. Say how they find each other with
    the next three options. On a TPU slice or in a SLURM step, this happens by itself."""
    coordinator: str | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """HOST:PORT at which process 0 can be reached. The default is $JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = field(default=None, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Number of processes. The default is $JAX_NUM_PROCESSES."""
    process_id: int | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Number of this process, from 0. The default is $JAX_PROCESS_ID."""
    alone: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Train without the other processes of a SLURM step, each of which has a run directory of its own."""
    process_timeout: int = field(default=hosts.TIMEOUT, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Seconds without a sign of life after which a process counts as dead, and the others end."""

    def check(self) -> None:
        super().check()
        given = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed and any(value is not None for value in given):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
        if self.distributed and self.alone:
            raise ValueError("--distributed and --alone contradict each other; give one of them")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"--coordinator must be like 10.0.0.1:1234, got {self.coordinator!r}")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or math.inf):
            raise ValueError(f"--process-id must be from 0 to --num-processes - 1, got {self.process_id}")

    def start(self) -> None:
        """Connects the processes. Call it before anything uses a device.

        Raises:
          ValueError: if an environment variable is wrong, or a value is missing that the cluster does not say.
        """
        found = "" if self.distributed or self.alone else cluster.name()
        if not self.distributed and not found:
            return
        count = _environment("JAX_NUM_PROCESSES") if self.num_processes is None else self.num_processes
        index = _environment("JAX_PROCESS_ID") if self.process_id is None else self.process_id
        coordinator = self.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
        hosts.start(coordinator, count, index, timeout=self.process_timeout)
        if found:
            say(f"This is process 0 of {found}, which train together. Processes with runs of their own need --alone.")


def _environment(name: str) -> int | None:
    """Returns an integer of the environment. Raises a ValueError if it is something else."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"${name} must be an integer, got {text!r}")
    return None if text is None else int(text)


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """Evaluation during and after the training."""

    eval_every: float = field(default=20, metadata=NO_INFLUENCE)
    """Number of steps between two evaluations during training. A value below 1 is a fraction of all steps."""
    eval_items: int | None = field(default=24, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Number of validation sources to evaluate during training, each with all its answers; None is all of them."""
    test_items: int | None = field(default=100, metadata=COUNT | VOLATILE)
    """Number of test sources for the final loss and win matrix, each with all its answers; None is all of them."""
    decode_items: int | None = field(default=40, metadata=COUNT | VOLATILE)
    """Number of test sources that the methods answer; None is all of them."""

    def check(self) -> None:
        super().check()
        if self.eval_every <= 0 or (self.eval_every > 1 and self.eval_every % 1):
            raise ValueError(f"--eval-every must be a number of steps or a fraction below 1, got {self.eval_every}")

    def every(self, steps: int) -> int:
        """Returns the number of steps between two evaluations of a training of `steps` steps."""
        return math.ceil(self.eval_every * steps) if self.eval_every < 1 else int(self.eval_every)


@dataclasses.dataclass(frozen=True)
class Decoding(Options):
    """How the methods answer."""

    max_new_tokens: int = field(default=80, metadata=COUNT | VOLATILE)
    """Longest answer in tokens."""
    decode_batch: int = field(default=8, metadata=COUNT | VOLATILE)
    """Number of sources that are answered at the same time. Fewer need less memory."""
    num_beams: int | None = field(default=None, metadata=VOLATILE)
    """Number of beams of a method with one hypothesis, a multiple of K. The default is 2 K.
    Each of K hypotheses has 1/K of them."""
    repetition_penalty: float = field(default=1.0, metadata=VOLATILE)
    """A value above 1 makes tokens of the prompt and of the answer so far less likely, in every decoder."""
    mle_decoders: tuple[DecoderName, ...] = field(
        default=("beam", "diverse", "sampling"), metadata=VOLATILE | NO_INFLUENCE
    )
    """Decoders with which a method with one hypothesis makes K answers. The default of the captioning experiments has
    greedy as well.
    greedy: one answer, of the likeliest token at each step.
    beam, diverse: beam search and diverse beam search, with the same number of beams in all as the K hypotheses.
    sampling: samples with top-p 0.95.
    ancestral: samples from the whole distribution.
    top_k: samples from the 50 likeliest tokens.
    typical: samples from the typical set, 0.95.
    tta: answers to K augmented pictures or clips, with 1/K of the beams for each."""
    mcl_decoders: tuple[DecoderName, ...] = field(default=("beam",), metadata=VOLATILE | NO_INFLUENCE)
    """Decoders with which each of K hypotheses makes one answer, with 1/K of what a method with one hypothesis has.
    diverse: the best of its beams, each of which is a group.
    tta: an augmented picture or clip, the same for all hypotheses."""
    diversity_penalty: tuple[float, ...] = field(default=(0.8,), metadata=VOLATILE)
    """Penalties λ of diverse beam search; several give a result for each, such as mle_r/diverse-0.5."""

    def check(self) -> None:
        super().check()
        if not self.repetition_penalty > 0:
            raise ValueError(f"--repetition-penalty must be above 0, got {self.repetition_penalty}")
        if not self.diversity_penalty or len(set(self.diversity_penalty)) < len(self.diversity_penalty):
            raise ValueError(f"--diversity-penalty needs at least one λ, each once, got {self.diversity_penalty}")

    def beams(self, num_hypotheses: int) -> int:
        """Returns the number of beams of every method in all."""
        return 2 * num_hypotheses if self.num_beams is None else self.num_beams

    def decoders(self, names: Sequence[DecoderName], num_hypotheses: int, share: int) -> "dict[str, AnyDecoder]":
        """Returns decoders by name; diverse-0.5 and the like if there are several penalties.

        Args:
          names: names of decoders.
          num_hypotheses: K, the number of answers that a method makes in all.
          share: number of hypotheses that share beams and answers: 1, or K for the decoders of mcl.
        """
        made = {}
        for name in names:
            penalties = self.diversity_penalty if name == "diverse" else self.diversity_penalty[:1]
            for penalty in penalties:
                key = f"{name}-{penalty:g}" if len(penalties) > 1 else name
                made[key] = self.decoder(name, num_hypotheses, share=share, penalty=penalty)
        return made

    def decoder(
        self, name: DecoderName, num_hypotheses: int, *, share: int = 1, penalty: float | None = None
    ) -> "AnyDecoder":
        """Returns the decoder with this name, with which one of `share` hypotheses makes K / share answers.

        Args:
          name: the name.
          num_hypotheses: K.
          share: see `decoders`.
          penalty: λ of diverse beam search; the first of `diversity_penalty` if None.
        """
        n, beams = num_hypotheses // share, self.beams(num_hypotheses) // share
        match name:
            case "greedy":
                return Greedy()
            case "beam":
                return BeamSearch(num_beams=beams, num_return=n)
            case "diverse":
                penalty = self.diversity_penalty[0] if penalty is None else penalty
                groups = num_hypotheses if share == 1 else beams
                return DiverseBeamSearch(num_beams=beams, num_groups=groups, num_return=n, diversity_penalty=penalty)
            case "sampling":
                return Sampling(num_samples=n, top_p=0.95)
            case "ancestral":
                return Sampling(num_samples=n)
            case "top_k":
                return Sampling(num_samples=n, top_k=50)
            case "typical":
                return Sampling(num_samples=n, typical_p=0.95)
            case "tta":
                return TestTimeAugmentation(BeamSearch(num_beams=self.beams(num_hypotheses) // num_hypotheses), n)
            case _:
                raise ValueError(f"Decoding.decoder needs a case for {name!r}")


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
