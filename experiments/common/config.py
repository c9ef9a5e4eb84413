"""What the experiments on language models have in common: methods, and the groups of their options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

from tyro.conf import arg

from experiments.common.groups import (
    Decoding,
    Evaluation,
    Experts,
    Lora,
    Objective,
    Optimizer,
    TestTimeAugmentation,
    Training,
)
from experiments.common.options import NO_INFLUENCE, VOLATILE, Options
from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.generation import Decoder
from mcl_jax.lora import LoraConfig

Method = Literal["mcl", "mle_r", "mle_rk", "moe"]
SHORT: dict[str, tuple[Method, ...]] = {"mle": ("mle_r", "mle_rk")}
STEPS = 100  # where neither steps nor epochs are given


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """K hypotheses of a language model against one."""

    workdir: Path = field(metadata=VOLATILE | NO_INFLUENCE)
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    methods: Annotated[tuple[Method | Literal["mle"], ...], arg(aliases=("--method",))] = field(
        default=("mcl", "mle_r", "mle_rk"), metadata=VOLATILE | NO_INFLUENCE
    )
    """mcl: K hypotheses of rank r. mle_r, mle_rk: one hypothesis, of rank r and of rank r·K; mle is both. moe: one
    hypothesis with K experts of rank r in every layer, mixed by a router."""
    num_hypotheses: int = 2
    """Number K of hypotheses, and of answers of the other methods."""
    seed: int = 0
    """Seed of all that is random."""
    objective: Objective = field(default=Objective())
    lora: Lora = field(default=Lora())
    experts: Experts = field(default=Experts())
    optimizer: Optimizer = field(default=Optimizer())
    training: Training = field(default=Training())
    evaluation: Evaluation = field(default=Evaluation())
    decoding: Decoding = field(default=Decoding())

    def __post_init__(self):
        if self.training.steps is None and self.training.epochs is None:
            object.__setattr__(self, "training", dataclasses.replace(self.training, steps=STEPS))
        methods = [method for name in self.methods for method in SHORT.get(name, (name,))]
        object.__setattr__(self, "methods", tuple(dict.fromkeys(methods)))
        self.check()

    def check(self) -> None:
        super().check()
        if not self.methods or ({*self.methods} - {"mcl"} and not self.decoding.mle_decoders):
            raise ValueError("needed at least one of --methods and, for others than mcl, of --mle-decoders; got none")
        self._check_hypotheses()
        self.lora_of("mcl")  # refuses a dropout or targets that cannot be
        if "mcl" in self.methods:
            self._check_objective()

    def _check_hypotheses(self) -> None:
        K = self.num_hypotheses
        if K < 2:
            raise ValueError(f"--num-hypotheses must be at least 2, got {K}: mle_r is K=1")
        if (self.experts.experts_per_token or 0) > K:
            raise ValueError(f"--experts-per-token {self.experts.experts_per_token} is more than --num-hypotheses")
        if (beams := self.decoding.beams(K)) % K or beams < 1:
            raise ValueError(
                f"--num-beams must be a multiple of --num-hypotheses {K}, so that all methods have as many beams in "
                f"all; got {self.decoding.num_beams}"
            )

    def _check_objective(self) -> None:
        loss = self.objective.make()
        loss.check(self.num_hypotheses)
        if self.objective.backward == "winner" and not loss.is_hard(self.num_hypotheses):
            raise ValueError(f"--backward winner is not exact for --objective {self.objective.name}: sampled or all is")

    def for_epochs_of(self, batches: int) -> Self:
        """The same with --steps only, for training data of so many batches per epoch."""
        if self.training.epochs is None:
            return self
        steps = self.training.epochs * batches
        return self.replace(steps=min(steps, self.training.steps or steps), epochs=None)

    @property
    def batches(self) -> BatchConfig:
        """Shapes and order of batches."""
        return self.training.batches(self.seed)

    def hypotheses_of(self, method: Method) -> int:
        """K of a method."""
        return self.num_hypotheses if method == "mcl" else 1

    def lora_of(self, method: Method, of_family: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Adapters of a method; α/r is the same for all methods."""
        return self.lora.adapters(self.num_hypotheses if method == "mle_rk" else 1, of_family)

    def objective_of(self, method: Method) -> objectives.Objective:
        """The objective of a method."""
        return self.objective.make() if method == "mcl" else objectives.mle()

    def decoders(self, method: Method) -> dict[str, "Decoder | TestTimeAugmentation"]:
        """Decoders of a method by the name of its results, all of the same budget and number of answers.

        The name is that of the method and, where there are several, of the decoder: mle_rk, or mle_rk/beam.
        """
        names, K = self.decoding.mle_decoders, self.num_hypotheses
        if method == "mcl":
            return {"mcl": self.decoding.decoder_of_hypothesis(K)}
        return {f"{method}/{name}" if len(names) > 1 else method: self.decoding.decoder(name, K) for name in names}
