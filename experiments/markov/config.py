"""Configuration of the Markov experiment: the recipe of the paper (section 5), and what may be changed."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import optax
from tyro.conf import arg

from experiments.common import groups
from experiments.common.options import COUNT, VOLATILE, Options
from experiments.markov import theory
from mcl_jax.json_io import read_json
from mcl_jax.lora import LoraConfig
from mcl_jax.models import GPTNeoConfig

SETTINGS = {1: ((0.2, 0.9), (0.8, 0.25)), 2: ((0.7, 0.8), (0.8, 0.25))}
NUM_LAYERS = 2
RECIPES = {1: "wta", 2: "relaxed"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A frozen random base, and what suits it.

    Attributes:
      embedding_std, position_std: of its token and position embeddings.
      learning_rate, steps, batch_size: of the training of its adapters.
    """

    embedding_std: float
    position_std: float
    learning_rate: float
    steps: int
    batch_size: int


BASES = {
    # Embeddings large enough that the tied head can put any probability on a symbol and that a head of attention can
    # tell positions apart: with positions of std 0.02 one model (K=1) learns far slower. More, smaller steps than the
    # paper's reach further in the same time.
    "reachable": Recipe(embedding_std=0.2, position_std=0.4, learning_rate=1e-3, steps=800, batch_size=32),
    "paper": Recipe(embedding_std=0.02, position_std=0.02, learning_rate=1e-4, steps=501, batch_size=128),
}

ObjectiveName = Literal["mle", "wta", "relaxed", "annealed", "mixture", "balanced"]


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """The mixture of Markov chains, and the sequences drawn from it."""

    setting: Literal[1, 2] = 1
    """Which of the paper's two mixtures of two chains over two symbols."""
    transitions: Path | None = None
    """JSON file with a list of row-stochastic matrices of any size, instead of a setting."""
    seq_len: int = 32
    """Symbols T per sequence; the first is given, T − 1 are predicted."""

    def check(self) -> None:
        super().check()
        if self.seq_len < 2:
            raise ValueError(f"--seq-len must be at least 2 (one symbol given, one predicted), got {self.seq_len}")

    @property
    def recipe(self) -> ObjectiveName:
        """The objective that suits the chains."""
        return "balanced" if self.transitions else RECIPES[self.setting]


@dataclasses.dataclass(frozen=True)
class Base(Options):
    """The frozen base model, with random weights."""

    name: Annotated[Literal["reachable", "paper"], arg(name="base")] = "reachable"
    """Recipe of the base. "paper": the authors', whose tied head caps the reachable probabilities, with their training.
    "reachable": larger embeddings, so that the optimum is within reach, and more, smaller steps."""
    window: int = 5
    """Symbols that each layer sees."""


@dataclasses.dataclass(frozen=True)
class Objective(groups.Objective):
    """How the K hypotheses share each example."""

    name: Annotated[ObjectiveName | None, arg(name="objective")] = None
    """By default the recipe of the setting (1: wta, 2: relaxed), and balanced for --transitions. mle: for K = 1."""
    temperature: float = 1.0
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.98
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t. The paper's 0.999 is for longer runs: here it
    would still be soft at the last step."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for. By default the winner where that is exact, else all."""


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """How long, in which batches and on which devices."""

    steps: int | None = field(default=None, metadata=COUNT)
    """Training steps. By default 800 for the reachable base, 501 for the paper's."""
    batch_size: int | None = field(default=None, metadata=COUNT)
    """Sequences per step. By default 32 for the reachable base, 128 for the paper's."""
    learning_rate: float | None = None
    """Highest learning rate. By default 1e-3 for the reachable base, 1e-4 for the paper's."""
    devices: int = field(default=1, metadata=COUNT | VOLATILE)
    """Devices that each batch is spread over."""

    def check(self) -> None:
        super().check()
        if self.batch_size is not None and self.batch_size % self.devices:
            raise ValueError(f"--batch-size must be a multiple of --devices, got {self.batch_size} for {self.devices}")

    def resolved(self, recipe: Recipe) -> "Training":
        """With the values of a recipe for those that are not given."""
        names = ("steps", "batch_size", "learning_rate")
        absent = {name: getattr(recipe, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **absent)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with a cosine schedule after a warm-up of a tenth of the steps."""
        warmup = max(self.steps // 10, 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        return optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=1e-3)


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """How often, and on how many fresh sequences, the models are evaluated."""

    eval_every: int = field(default=20, metadata=COUNT)
    """Steps between two evaluations."""
    eval_sequences: int = field(default=1000, metadata=COUNT)
    """Sequences per evaluation while training."""
    final_sequences: int = field(default=16_000, metadata=COUNT)
    """Sequences of the last evaluation."""


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """K hypotheses against one on a mixture of Markov chains, with the exact bounds of the theory."""

    workdir: Path = field(metadata=VOLATILE)
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    num_hypotheses: int | None = field(default=None, metadata=COUNT)
    """Number K of hypotheses. By default as many as there are chains."""
    seed: tuple[int, ...] = (1235,)
    """One seed, or several: then results are means, with spread and the single runs beside them."""
    data: Data = Data()
    base: Base = Base()
    objective: Objective = Objective()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self):
        object.__setattr__(self, "training", self.training.resolved(BASES[self.base.name]))
        if self.objective.name is None:
            object.__setattr__(self, "objective", dataclasses.replace(self.objective, name=self.data.recipe))
        self.check()

    def check(self) -> None:
        super().check()
        if not self.seed:
            raise ValueError("--seed needs at least one seed")

    @property
    def chains(self) -> np.ndarray:
        """The true transition matrices [N, V, V].

        Raises:
          ValueError: for a file that is absent, not JSON, or not a list of row-stochastic matrices.
        """
        if self.data.transitions is None:
            return np.array([[[1 - p, p], [q, 1 - q]] for p, q in SETTINGS[self.data.setting]])
        try:
            matrices = read_json(self.data.transitions)
        except (OSError, ValueError) as error:
            raise ValueError(f"--transitions needs a JSON list of row-stochastic matrices; {error}") from error
        return theory.validate_transitions(matrices)

    @property
    def k(self) -> int:
        """Number of hypotheses."""
        return len(self.chains) if self.num_hypotheses is None else self.num_hypotheses

    @property
    def memory(self) -> int:
        """Symbols that a prediction can depend on through the local attention of all layers."""
        return NUM_LAYERS * (self.base.window - 1) + 1

    def model(self) -> GPTNeoConfig:
        """The paper's GPT-Neo: 2 layers of local attention, tied head."""
        return GPTNeoConfig(
            vocab_size=self.chains.shape[-1],
            hidden_size=64,
            num_layers=NUM_LAYERS,
            num_heads=2,
            max_position_embeddings=self.data.seq_len,
            window_size=self.base.window,
            attention_layers=("local",) * NUM_LAYERS,
            embedding_std=BASES[self.base.name].embedding_std,
            position_std=BASES[self.base.name].position_std,
        )

    def lora(self) -> LoraConfig:
        return LoraConfig(rank=64, alpha=64, targets=("q_proj", "k_proj", "v_proj", "out_proj"))
