"""What a run of the Markov experiment is made of: the recipe of the paper (section 5), and what may be changed."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import optax

from experiments.markov import theory
from mcl_jax import objectives
from mcl_jax.json_io import read_json
from mcl_jax.lora import LoraConfig
from mcl_jax.models import GPTNeoConfig

SETTINGS = {1: ((0.2, 0.9), (0.8, 0.25)), 2: ((0.7, 0.8), (0.8, 0.25))}
NUM_LAYERS = 2
RECIPES = {1: "wta", 2: "relaxed"}


@dataclasses.dataclass(frozen=True)
class Base:
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
    "reachable": Base(embedding_std=0.2, position_std=0.4, learning_rate=1e-3, steps=800, batch_size=32),
    "paper": Base(embedding_std=0.02, position_std=0.02, learning_rate=1e-4, steps=501, batch_size=128),
}

ObjectiveName = Literal["mle", "wta", "relaxed", "annealed", "mixture", "balanced"]


@dataclasses.dataclass(frozen=True)
class Config:
    """K hypotheses against one on a mixture of Markov chains, with the exact bounds of the theory."""

    workdir: Path
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    setting: Literal[1, 2] = 1
    """The paper's two mixtures of two chains over two symbols."""
    transitions: Path | None = None
    """JSON file with a list of row-stochastic matrices of any size, instead of a setting."""
    base: Literal["reachable", "paper"] = "reachable"
    """Frozen random base. "paper": the authors', whose tied head caps the reachable probabilities, with their recipe.
    "reachable": larger embeddings, so that the optimum is within reach, and more, smaller steps."""
    num_hypotheses: int | None = None
    """K; the number of chains by default."""
    objective: ObjectiveName | None = None
    """The recipe of the setting by default (1: wta, 2: relaxed), balanced for --transitions."""
    epsilon: float = 0.05
    """Of the relaxed objective."""
    temperature: float = 1.0
    """τ(0) of the annealed objective."""
    temperature_decay: float = 0.98
    """ρ of τ(t) = τ(0) ρ^t. The paper's 0.999 is for longer runs: here it would still be soft at the last step."""
    backward: Literal["winner", "sampled", "all"] | None = None
    """"winner" where it is exact, else "all", by default."""
    steps: int | None = None
    """800 for the reachable base, 501 for the paper's, by default."""
    batch_size: int | None = None
    """32 for the reachable base, 128 for the paper's, by default."""
    seq_len: int = 32
    """T, symbols a sequence; the first is given, T − 1 are predicted."""
    seed: tuple[int, ...] = (1235,)
    """One seed, or several: then results are means, with spread and the single runs beside them."""
    devices: int = 1
    """Devices that each batch is spread over."""
    learning_rate: float | None = None
    """1e-3 for the reachable base, 1e-4 for the paper's, by default."""
    window: int = 5
    """Symbols that each layer sees."""
    eval_every: int = 20
    """Steps between two evaluations."""
    eval_sequences: int = 1000
    """Fresh sequences of each evaluation while training."""
    final_sequences: int = 16_000
    """Fresh sequences of the last evaluation."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(BASES[self.base], name))
        for name in ("steps", "batch_size", "devices", "eval_every", "eval_sequences", "final_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.num_hypotheses is not None and self.num_hypotheses < 1:
            raise ValueError(f"--num-hypotheses must be at least 1, got {self.num_hypotheses}")
        if self.seq_len < 2:
            raise ValueError(f"--seq-len must be at least 2 (one symbol given, one predicted), got {self.seq_len}")
        if self.batch_size % self.devices:
            raise ValueError(f"--batch-size {self.batch_size} does not divide over --devices {self.devices}")
        if not self.seed:
            raise ValueError("--seed needs at least one seed")

    @property
    def chains(self) -> np.ndarray:
        """The true transition matrices [N, V, V].

        Raises:
          ValueError: for a file that is absent, not JSON, or not a list of row-stochastic matrices.
        """
        if self.transitions is None:
            return np.array([[[1 - p, p], [q, 1 - q]] for p, q in SETTINGS[self.setting]])
        try:
            matrices = read_json(self.transitions)
        except (OSError, ValueError) as error:
            raise ValueError(f"--transitions needs a JSON list of row-stochastic matrices; {error}") from error
        return theory.validate_transitions(matrices)

    @property
    def k(self) -> int:
        """Number of hypotheses."""
        return len(self.chains) if self.num_hypotheses is None else self.num_hypotheses

    @property
    def objective_name(self) -> ObjectiveName:
        default = "balanced" if self.transitions else RECIPES[self.setting]
        return self.objective or default

    @property
    def memory(self) -> int:
        """Symbols that a prediction can depend on through the local attention of all layers."""
        return NUM_LAYERS * (self.window - 1) + 1

    def model(self) -> GPTNeoConfig:
        """The paper's GPT-Neo: 2 layers of local attention, tied head."""
        return GPTNeoConfig(
            vocab_size=self.chains.shape[-1],
            hidden_size=64,
            num_layers=NUM_LAYERS,
            num_heads=2,
            max_position_embeddings=self.seq_len,
            window_size=self.window,
            attention_layers=("local",) * NUM_LAYERS,
            embedding_std=BASES[self.base].embedding_std,
            position_std=BASES[self.base].position_std,
        )

    def lora(self) -> LoraConfig:
        return LoraConfig(rank=64, alpha=64, targets=("q_proj", "k_proj", "v_proj", "out_proj"))

    def optimizer(self) -> optax.GradientTransformation:
        warmup = max(self.steps // 10, 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        return optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=1e-3)


def objective(config: Config, name: ObjectiveName) -> objectives.Objective:
    """The objective of that name with the settings of `config`."""
    match name:
        case "mle":
            return objectives.mle()
        case "wta":
            return objectives.wta()
        case "relaxed":
            return objectives.relaxed_wta(config.epsilon)
        case "annealed":
            return objectives.annealed(optax.exponential_decay(config.temperature, 1, config.temperature_decay))
        case "mixture":
            return objectives.mixture()
        case "balanced":
            return objectives.balanced_wta()
