"""Configuration of the Markov experiment: the recipe of the paper (section 5), and the options that change it."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import optax
from tyro.conf import arg

from experiments.common import groups
from experiments.common.options import COUNT, VOLATILE, Options
from experiments.common.tracking import Tracking
from experiments.markov import theory
from mcl_jax.json_io import read_json
from mcl_jax.lora import LoraConfig
from mcl_jax.models import GPTNeoConfig

SETTINGS = {1: ((0.2, 0.9), (0.8, 0.25)), 2: ((0.7, 0.8), (0.8, 0.25))}
NUM_LAYERS = 2
RECIPES = {1: "wta", 2: "relaxed"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A frozen random base, and a training that suits it.

    Attributes:
      embedding_std, position_std: standard deviation of its token and position embeddings.
      learning_rate, steps, batch_size: settings for the training of its adapters.
    """

    embedding_std: float
    position_std: float
    learning_rate: float
    steps: int
    batch_size: int


BASES = {
    # The embeddings are so large that the tied head can give a symbol any probability, and that an attention head can
    # tell positions apart: with a position_std of 0.02, one model (K=1) learns far more slowly. More and smaller steps
    # than in the paper reach a lower loss in the same time.
    "reachable": Recipe(embedding_std=0.2, position_std=0.4, learning_rate=1e-3, steps=800, batch_size=32),
    "paper": Recipe(embedding_std=0.02, position_std=0.02, learning_rate=1e-4, steps=501, batch_size=128),
}

ObjectiveName = Literal["mle", groups.ObjectiveName]


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """The mixture of Markov chains, and the sequences drawn from it."""

    setting: Literal[1, 2] = 1
    """One of the paper's two mixtures; each has two chains over two symbols."""
    transitions: Path | None = None
    """JSON file with a list of row-stochastic matrices of any size, in place of --setting."""
    seq_len: int = 32
    """Number T of symbols per sequence. The first symbol is given, and T − 1 are predicted."""

    def check(self) -> None:
        super().check()
        if self.seq_len < 2:
            raise ValueError(f"--seq-len must be at least 2 (the first symbol is given), got {self.seq_len}")

    @property
    def recipe(self) -> ObjectiveName:
        """The default objective for the chains."""
        return "balanced" if self.transitions else RECIPES[self.setting]


@dataclasses.dataclass(frozen=True)
class Base(Options):
    """The frozen base model, with random weights."""

    name: Annotated[Literal["reachable", "paper"], arg(name="base")] = "reachable"
    """Recipe of the base and of its training.
    paper: the authors' recipe, whose tied head limits the probabilities that the model can reach.
    reachable: larger embeddings, so that the model can reach the optimum, and more, smaller steps."""
    window: int = 5
    """Number of symbols that each layer sees."""


@dataclasses.dataclass(frozen=True)
class Objective(groups.Objective):
    """How the K hypotheses share each example."""

    name: Annotated[ObjectiveName | None, arg(name="objective")] = None
    """Training objective; mle suits one hypothesis.
    The default is wta for --setting 1, relaxed for --setting 2, and balanced for --transitions."""
    temperature: float = 1.0
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.98
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t.
    The paper's 0.999 is for longer runs; here it would leave the weights soft at the last step."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """Hypotheses that the backward pass runs for. The default is winner if that is exact, else all."""


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """Length of the training, batches and devices."""

    steps: int | None = field(default=None, metadata=COUNT)
    """Number of training steps. The default is 800 with --base reachable and 501 with --base paper."""
    batch_size: int | None = field(default=None, metadata=COUNT)
    """Number of sequences per step. The default is 32 with --base reachable and 128 with --base paper."""
    learning_rate: float | None = None
    """Highest learning rate. The default is 1e-3 with --base reachable and 1e-4 with --base paper."""
    devices: int = field(default=1, metadata=COUNT | VOLATILE)
    """Number of devices that share each batch."""

    def check(self) -> None:
        super().check()
        if self.batch_size is not None and self.batch_size % self.devices:
            raise ValueError(f"--batch-size must be a multiple of --devices, got {self.batch_size} for {self.devices}")

    def resolved(self, recipe: Recipe) -> "Training":
        """Returns the same settings with values from a recipe for those that are not given."""
        names = ("steps", "batch_size", "learning_rate")
        absent = {name: getattr(recipe, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **absent)

    def optimizer(self) -> optax.GradientTransformation:
        """Makes AdamW with a cosine schedule after a warm-up of a tenth of the steps."""
        warmup = max(self.steps // 10, 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        return optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=1e-3)


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
    """Evaluation on fresh sequences."""

    eval_every: int = field(default=20, metadata=COUNT)
    """Number of steps between two evaluations."""
    eval_sequences: int = field(default=1000, metadata=COUNT)
    """Number of sequences per evaluation during training."""
    final_sequences: int = field(default=16_000, metadata=COUNT)
    """Number of sequences in the last evaluation."""


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Compares K hypotheses with one model and with exact theory, on a mixture of Markov chains."""

    workdir: Path = field(metadata=VOLATILE)
    """Run directory for results, figures and checkpoints. The same command again resumes the run."""
    num_hypotheses: int | None = field(default=None, metadata=COUNT)
    """Number K of hypotheses. The default is the number of chains."""
    shared_rank: int = 0
    """Number S of rank components that all hypotheses have in common and that learn from every sequence.
    Each hypothesis then has 64 - S/K of its own, so that all K together still have rank 64 K."""
    dropout: float = 0.0
    """Dropout probability for the inputs of the adapters in training. The paper has none here."""
    seed: tuple[int, ...] = (1235,)
    """One or several random seeds.
    With several, results are means, and results.json also has the standard deviations and the single runs."""
    data: Data = Data()
    base: Base = Base()
    objective: Objective = Objective()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = field(default=Tracking())

    def __post_init__(self):
        object.__setattr__(self, "training", self.training.resolved(BASES[self.base.name]))
        if self.objective.name is None:
            object.__setattr__(self, "objective", dataclasses.replace(self.objective, name=self.data.recipe))
        self.check()

    def check(self) -> None:
        super().check()
        if not self.seed:
            raise ValueError("--seed needs at least one seed")
        if self.dropout or self.shared_rank:
            self.lora(shared=True)  # refuses a wrong dropout, and a rank that leaves no equal parts

    @property
    def chains(self) -> np.ndarray:
        """The true transition matrices [N, V, V].

        Raises:
          ValueError: if the file is missing, not JSON, or not a list of row-stochastic matrices.
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
        """Number K of hypotheses."""
        return len(self.chains) if self.num_hypotheses is None else self.num_hypotheses

    @property
    def memory(self) -> int:
        """Number of symbols on which a prediction can depend through the local attention of all layers."""
        return NUM_LAYERS * (self.base.window - 1) + 1

    def model(self) -> GPTNeoConfig:
        """Returns the paper's GPT-Neo, with 2 layers of local attention and a tied head."""
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

    def lora(self, *, shared: bool) -> LoraConfig:
        """Returns the paper's adapters, with or without the shared part."""
        targets = ("q_proj", "k_proj", "v_proj", "out_proj")
        lora = groups.Lora(rank=64, shared_rank=self.shared_rank, dropout=self.dropout, targets=targets)
        return lora.shared_adapters(self.k) if shared else lora.adapters()
