"""Methods, objectives, decoders, optimisation: what a run is made of whatever its data, and presets of it."""

import argparse
import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
import tyro

from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.generation import BeamSearch, Decoder, DiverseBeamSearch, Sampling
from mcl_jax.lora import LoraConfig

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture"]
Method = Literal["mcl", "mle_r", "mle_rk", "moe"]
SHORT: dict[str, tuple[Method, ...]] = {"mle": ("mle_r", "mle_rk")}
DecoderName = Literal["beam", "diverse", "sampling", "ancestral", "top_k", "typical", "tta"]
STEPS = 100  # where neither steps nor epochs are given


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """n answers to n changed pictures or clips; see `Perception.augmented`."""

    decoder: Decoder
    n: int


@dataclasses.dataclass(frozen=True)
class Config:
    """K hypotheses of a language model against one."""

    workdir: Path
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    methods: Annotated[tuple[Method | Literal["mle"], ...], tyro.conf.arg(aliases=("--method",))] = (
        "mcl", "mle_r", "mle_rk",
    )  # fmt: skip
    """mcl: K hypotheses of rank r. mle_r, mle_rk: one, of rank r and r·K; mle is both. moe: one with K experts of rank
    r in every layer, mixed by a router."""
    num_hypotheses: int = 2
    """K, also the number of answers of the other methods."""
    objective: ObjectiveName = "balanced"
    epsilon: float = 0.05
    """Of the relaxed objective."""
    rate: float = 0.05
    """Of the balanced objective, in nats a token and step."""
    temperature: float = 0.5
    """τ(0) of the annealed objective."""
    temperature_decay: float = 0.95
    """ρ of τ(t) = τ(0) ρ^t."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """winner where it is exact, else sampled, by default."""
    experts_per_token: int | None = None
    """Of moe: a token goes to so many experts, and training balances their use; all, by default."""
    balance_weight: float = 0.01
    """Of that balance in the loss."""
    rank: int = 8
    alpha: float | None = None
    """r by default."""
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Linear layers that get adapters, by name or regular expression; by default the projections of queries, keys and
    values and those of the MLP, whatever the family calls them (`mcl.models.lora_targets`)."""
    steps: int | None = None
    """100 by default, if no epochs are given."""
    epochs: int | None = None
    """Passes over the training sources. With steps too, a run ends with the first of the two."""
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """After a warm-up of w steps. cosine: to a tenth at the last step. inverse_sqrt: in proportion to √(w / step)."""
    warmup: float = 5
    """Steps of linear warm-up; below 1, a fraction of all steps, rounded up."""
    seed: int = 0
    eval_every: int = 20
    eval_items: int = 24
    """Held-out sources (every answer of each) that are evaluated while training."""
    test_items: int = 100
    """Test sources (every answer of each) of the final loss and win matrix."""
    decode_items: int = 40
    """Test sources that are answered."""
    max_new_tokens: int = 80
    max_length: int = 192
    """Longest example in tokens, prompt and answer; longer ones are left out, with a count."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base."""
    num_beams: int | None = None
    """Beams of the methods of one hypothesis, a multiple of K; each of K hypotheses has 1/K of them. 2 K by default."""
    repetition_penalty: float = 1.0
    """Of every decoder: above 1, tokens of the prompt and of the answer so far become less likely."""
    mle_decoders: tuple[DecoderName, ...] = ("beam", "diverse", "sampling")
    """How the methods of one hypothesis make K answers, with as many beams in all as the K hypotheses have. sampling:
    top-p 0.95. ancestral: of the whole distribution. top_k: of the 50 likeliest. typical: of the typical set, 0.95.
    tta: K changed pictures or clips, 1/K of the beams each."""
    diversity_penalty: float = 0.8
    """λ of diverse."""
    accumulate: int = 1
    """Micro-batches that a batch is cut into, to save memory; the result is the same."""
    remat: bool = False
    """Recompute each layer in the backward pass, to save memory; the result is the same."""
    devices: int = 1
    """Devices that a batch is spread over, of those of this machine; the result is the same."""

    # Fields that must be at least 1, and those that say where things are and how much is reported, not what is trained.
    COUNTS: ClassVar[tuple[str, ...]] = (
        "steps", "epochs", "batch_size", "eval_every", "eval_items", "test_items", "decode_items", "max_new_tokens",
        "max_length", "rank", "accumulate", "devices", "experts_per_token",
    )  # fmt: skip
    VOLATILE: ClassVar[tuple[str, ...]] = (
        "workdir", "methods", "eval_items", "test_items", "decode_items", "mle_decoders", "num_beams",
        "max_new_tokens", "repetition_penalty", "diversity_penalty", "devices", "accumulate", "remat",
    )  # fmt: skip

    def __post_init__(self):
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        for name in self.COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        methods = [method for name in self.methods for method in SHORT.get(name, (name,))]
        object.__setattr__(self, "methods", tuple(dict.fromkeys(methods)))
        if not methods or ({*methods} - {"mcl"} and not self.mle_decoders):
            raise ValueError("needed at least one of --methods and, for others than mcl, of --mle-decoders; got none")
        if self.num_hypotheses < 2:
            raise ValueError(f"--num-hypotheses must be at least 2, got {self.num_hypotheses}: mle_r is K=1")
        if (self.experts_per_token or 0) > self.num_hypotheses:
            raise ValueError(f"--experts-per-token {self.experts_per_token} is more than --num-hypotheses")
        if self.beams % self.num_hypotheses or self.beams < 1:
            raise ValueError(
                f"--num-beams must be a multiple of --num-hypotheses {self.num_hypotheses}, so that all methods have "
                f"as many beams in all; got {self.num_beams}"
            )
        if self.warmup < 0 or (self.warmup > 1 and self.warmup % 1):
            raise ValueError(f"--warmup must be a number of steps or a fraction below 1, got {self.warmup}")
        if self.schedule == "inverse_sqrt" and not self.warmup:
            raise ValueError("--schedule inverse_sqrt needs a --warmup above 0: its unit of time")
        if not self.repetition_penalty > 0:
            raise ValueError(f"--repetition-penalty must be above 0, got {self.repetition_penalty}")
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"--batch-size {self.batch_size} does not divide over --devices {self.devices} and --accumulate "
                f"{self.accumulate}"
            )
        if self.devices > 1 and self.devices > (here := len(jax.local_devices())):
            raise ValueError(f"--devices {self.devices}, but there are {here} here")
        self.lora("mcl")  # refuses a dropout or targets that cannot be
        if "mcl" in self.methods:
            loss = self.loss("mcl")
            loss.check(self.num_hypotheses)
            if self.backward == "winner" and not loss.is_hard(self.num_hypotheses):
                raise ValueError(f"--backward winner is not exact for --objective {self.objective}: sampled or all is")

    @property
    def beams(self) -> int:
        """Beams in all, of every method."""
        return 2 * self.num_hypotheses if self.num_beams is None else self.num_beams

    def for_epochs_of(self, batches: int) -> "Config":
        """The same with `steps` only, for training data of so many batches an epoch."""
        if self.epochs is None:
            return self
        steps = self.epochs * batches
        return dataclasses.replace(self, steps=min(steps, self.steps or steps), epochs=None)

    @property
    def batches(self) -> BatchConfig:
        """Shapes and order of batches."""
        lengths = [n for n in (64, 96, 128) if n < self.max_length]
        return BatchConfig(self.batch_size, (*lengths, self.max_length), self.seed)

    def hypotheses_of(self, method: Method) -> int:
        """K of a method."""
        return self.num_hypotheses if method == "mcl" else 1

    def lora(self, method: Method, of_family: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Adapters of a method, on `targets` or those of the family; α/r is the same for all methods."""
        factor = self.num_hypotheses if method == "mle_rk" else 1
        alpha = self.rank if self.alpha is None else self.alpha
        targets = self.targets or of_family
        return LoraConfig(rank=factor * self.rank, alpha=factor * alpha, dropout=self.dropout, targets=targets)

    def loss(self, method: Method) -> objectives.Objective:
        """The objective of a method."""
        if method != "mcl":
            return objectives.mle()
        match self.objective:
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

    def backward_of(self, loss: objectives.Objective, num_hypotheses: int) -> str:
        """How the step of an objective goes backward for K hypotheses."""
        return self.backward or ("winner" if loss.is_hard(num_hypotheses) else "sampled")

    def learning_rates(self) -> optax.Schedule:
        """The learning rate of each step; `steps` must be known."""
        warmup = math.ceil(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, warmup, max(self.steps, warmup + 1), self.learning_rate / 10
            )
        return lambda step: (
            self.learning_rate * jnp.minimum(step / warmup, jnp.sqrt(warmup / jnp.maximum(step, warmup)))
        )

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW on the adapters, clipped."""
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(self.learning_rates(), b2=0.98, eps=self.adam_epsilon, weight_decay=self.weight_decay),
        )

    def decoders(self, method: Method) -> dict[str, "Decoder | TestTimeAugmentation"]:
        """Decoders of a method by the name of its results, all of the same budget and number of answers.

        The name is that of the method and, where there are several, of the decoder: mle_rk, or mle_rk/beam.
        """
        K, few = self.num_hypotheses, BeamSearch(num_beams=self.beams // self.num_hypotheses)
        if method == "mcl":
            return {"mcl": few}
        decoders = {
            "beam": BeamSearch(num_beams=self.beams, num_return=K),
            "diverse": DiverseBeamSearch(
                num_beams=self.beams, num_groups=K, num_return=K, diversity_penalty=self.diversity_penalty,
            ),
            "sampling": Sampling(num_samples=K, top_p=0.95),
            "ancestral": Sampling(num_samples=K),
            "top_k": Sampling(num_samples=K, top_k=50),
            "typical": Sampling(num_samples=K, typical_p=0.95),
            "tta": TestTimeAugmentation(few, K),
        }  # fmt: skip
        several = len(self.mle_decoders) > 1
        return {f"{method}/{name}" if several else method: decoders[name] for name in self.mle_decoders}


C = TypeVar("C", bound=Config)


def parse(
    config: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    needed: Mapping[str, Mapping[str, str]],
    args: Sequence[str] | None = None,
    *,
    default: str | None = None,
) -> C:
    """The configuration that a command line asks for, with a `--preset` whose values the other options override.

    Args:
      config: class of the experiment.
      presets: values of its fields, by the name of the preset.
      needed: fields that a preset cannot do without, and what each must be, for the message.
      args: the command line without the program; `sys.argv` if None.
      default: the preset where the command line has none.
    Raises:
      ValueError: for options that do not fit together, or one that the preset needs.
      SystemExit: for an unknown option or preset, and after `--help`.
    """
    names = Annotated[Literal[tuple(presets)] | None, tyro.conf.arg(help="A recipe that the other options override.")]
    given = Annotated[config, tyro.conf.arg(name="")]
    line = dataclasses.make_dataclass("CommandLine", [("config", given), ("preset", names, default)], frozen=True)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default=default)
    preset = parser.parse_known_args(args)[0].preset
    if preset not in presets:
        return tyro.cli(line, args=args, description=inspect.getdoc(config)).config
    recipe = line(config(workdir=tyro.MISSING, **presets[preset]), preset)
    found = tyro.cli(line, args=args, description=inspect.getdoc(config), default=recipe).config
    for name, what in needed.get(preset, {}).items():
        if getattr(found, name) is None:
            raise ValueError(f"--preset {preset} needs --{name}: {what}")
    return found
