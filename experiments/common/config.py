"""The configuration that all experiments with a language model share: the methods, and the groups of options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

from tyro.conf import arg

from experiments.common.decoders import AnyDecoder, Decoding, ExpertsAlone
from experiments.common.evaluation import Evaluation
from experiments.common.groups import Experts, Lora, Objective, Optimizer, Training
from experiments.common.options import NO_INFLUENCE, VOLATILE, Options
from experiments.common.processes import Hosts
from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.lora import LoraConfig

Method = Literal["mcl", "mle_r", "mle_rk", "moe"]
SHORT: dict[str, tuple[Method, ...]] = {"mle": ("mle_r", "mle_rk")}
MOST_MERGED = 5  # hypotheses, so 10 evaluations of pairs
STEPS = 100  # default if neither --steps nor --epochs is given


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Compares K hypotheses of a language model with one model."""

    workdir: Path = field(metadata=VOLATILE | NO_INFLUENCE)
    """Run directory for results, figures and checkpoints. The same command again resumes the run."""
    methods: Annotated[tuple[Method | Literal["mle"], ...], arg(aliases=("--method",))] = field(
        default=("mcl", "mle_r", "mle_rk"), metadata=VOLATILE | NO_INFLUENCE
    )
    """Methods to compare.
    mcl: K hypotheses of rank r.
    mle_r and mle_rk: one hypothesis of rank r or of rank r·K; mle stands for both.
    moe: one hypothesis with K experts of rank r in every layer, which a router mixes."""
    num_hypotheses: int = 2
    """Number K of hypotheses. The other methods give K answers too."""
    seed: int = 0
    """Random seed of the run."""
    objective: Objective = field(default=Objective())
    lora: Lora = field(default=Lora())
    experts: Experts = field(default=Experts())
    optimizer: Optimizer = field(default=Optimizer())
    training: Training = field(default=Training())
    hosts: Hosts = field(default=Hosts())
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
            raise ValueError(
                "--methods needs at least one method, and methods other than mcl need at least one of --mle-decoders; "
                "got none"
            )
        self._check_hypotheses()
        if "mcl" in self.methods:
            self._check_mcl_decoders()
        self.lora_of("mcl")  # refuses a wrong dropout or wrong targets
        if not self.lora.shared_rank and self.optimizer.treats_parts_differently:
            raise ValueError("--own-rate, --own-after and --shared-after need --shared-rank, got 0")
        if "mcl" in self.methods:
            self._check_objective()

    def _check_hypotheses(self) -> None:
        K = self.num_hypotheses
        if K < 2:
            raise ValueError(f"--num-hypotheses must be at least 2, got {K}; for one hypothesis use --methods mle_r")
        if (self.experts.experts_per_token or 0) > K:
            raise ValueError(
                f"--experts-per-token must be at most --num-hypotheses {K}, got {self.experts.experts_per_token}"
            )
        if self.evaluation.merge_costs and K > MOST_MERGED:
            raise ValueError(
                f"--merge-costs evaluates every pair, for at most --num-hypotheses {MOST_MERGED}; got {K}, which has "
                f"{K * (K - 1) // 2} pairs"
            )
        if (beams := self.decoding.beams(K)) % K or beams < 1:
            raise ValueError(
                f"--num-beams must be a multiple of --num-hypotheses {K}, so that all methods have the same number of "
                f"beams in all; got {self.decoding.num_beams}"
            )

    def _check_mcl_decoders(self) -> None:
        if not self.decoding.mcl_decoders:
            raise ValueError("--methods mcl needs at least one of --mcl-decoders; got none")
        of_each = self.decoding.beams(self.num_hypotheses) // self.num_hypotheses
        if "diverse" in self.decoding.mcl_decoders and of_each < 2:
            raise ValueError(
                f"--mcl-decoders diverse needs at least 2 beams for each hypothesis, so --num-beams of at least "
                f"{2 * self.num_hypotheses}; got {self.decoding.num_beams}"
            )

    def _check_objective(self) -> None:
        loss = self.objective.make()
        loss.check(self.num_hypotheses)
        if self.objective.backward == "winner" and not loss.is_hard(self.num_hypotheses):
            raise ValueError(
                f"--backward winner is not exact for --objective {self.objective.name}; use sampled or all"
            )

    def for_epochs_of(self, batches: int) -> Self:
        """Returns the configuration with --steps in place of --epochs, for this number of batches per epoch."""
        if self.training.epochs is None:
            return self
        steps = self.training.epochs * batches
        return self.replace(steps=min(steps, self.training.steps or steps), epochs=None)

    @property
    def batches(self) -> BatchConfig:
        """The shapes and the order of batches."""
        return self.training.batches(self.seed)

    @property
    def evaluation_batches(self) -> BatchConfig:
        """The batches of evaluations: as large as a micro-batch of the training, so that they fit where it fits."""
        return dataclasses.replace(self.batches, batch_size=self.training.batch_size // self.training.accumulate)

    def hypotheses_of(self, method: Method) -> int:
        """Returns the number of hypotheses of a method."""
        return self.num_hypotheses if method == "mcl" else 1

    def lora_of(self, method: Method, default_targets: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Returns the adapters of a method; α/r is the same for all methods."""
        if method == "mcl":
            return self.lora.shared_adapters(self.num_hypotheses, default_targets)
        return self.lora.adapters(self.num_hypotheses if method == "mle_rk" else 1, default_targets)

    def objective_of(self, method: Method) -> objectives.Objective:
        """Returns the objective of a method."""
        return self.objective.make() if method == "mcl" else objectives.mle()

    def chooses_first(self, backward: str) -> bool:
        """Whether --assign clean makes a step of mcl compute scores before a backward pass of all hypotheses."""
        return backward == "all" and self.objective.assign == "clean" and self.lora.dropout > 0.0

    def decoders(self, method: Method) -> dict[str, AnyDecoder]:
        """Returns the decoders of a method by the name of their results.

        All with beams have the same number of beams in all, and all but greedy make K answers (see `decoders.budget`).
        The name is that of the method, such as mle_rk, followed by that of the decoder if the method has several, such
        as mle_rk/beam.
        """
        K = self.num_hypotheses
        names = self.decoding.mcl_decoders if method == "mcl" else self.decoding.mle_decoders
        made = self.decoding.decoders(names, K, share=self.hypotheses_of(method))
        if method == "moe" and self.experts.experts_alone:
            made["experts"] = ExpertsAlone(self.decoding.decoder("beam", K, share=K), K)
        return {f"{method}/{name}" if len(made) > 1 else method: decoder for name, decoder in made.items()}
