"""The configuration that all experiments with a language model share: the methods, and the groups of options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

from tyro.conf import arg

from experiments.common.decoders import AnyDecoder, DecoderName, Decoding, ExpertsAlone, Listed
from experiments.common.evaluation import Evaluation
from experiments.common.groups import Choosing, Experts, Lora, Objective, Optimizer, Training
from experiments.common.options import NO_INFLUENCE, VOLATILE, Options
from experiments.common.processes import Hosts
from experiments.common.prompts import Prompts
from experiments.common.tracking import Tracking
from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.lora import LoraConfig

Method = Literal["mcl", "prompts", "ensemble", "mle_r", "mle_rk", "moe", "list"]
SEVERAL = ("mcl", "prompts", "ensemble")  # methods with K hypotheses
COMPETING = ("mcl", "prompts")  # those that train with --objective
LIST = "list"
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
    prompts: K hypotheses that are soft prompts, with the objective of mcl.
    ensemble: K hypotheses of rank r that all learn from every example.
    mle_r and mle_rk: one hypothesis of rank r or of rank r·K; mle stands for both.
    moe: one hypothesis with K experts of rank r in every layer, which a router mixes.
    list: one hypothesis of rank r·K that writes all answers to a source as a list, a line for each. It answers with
    --mcl-decoders. The likelihood of a list says nothing of a single answer, so it has no test loss."""
    num_hypotheses: int = 2
    """Number K of hypotheses. The other methods give K answers too."""
    seed: int = 0
    """Random seed of the run."""
    objective: Objective = field(default=Objective())
    choosing: Choosing = field(default=Choosing())
    lora: Lora = field(default=Lora())
    experts: Experts = field(default=Experts())
    prompts: Prompts = field(default=Prompts())
    optimizer: Optimizer = field(default=Optimizer())
    training: Training = field(default=Training())
    tracking: Tracking = field(default=Tracking())
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
        if not self.methods:
            raise ValueError("--methods needs at least one method, got none")
        self._check_hypotheses()
        for method in self.methods:
            self._check_decoders(method)
        self._check_packing()
        self.lora_of("mcl")  # refuses a wrong dropout or wrong targets
        if not self.lora.shared_rank and self.optimizer.treats_parts_differently:
            raise ValueError("--own-rate, --own-after and --shared-after need --shared-rank, got 0")
        if {*self.methods} & {*COMPETING}:
            self._check_objective()

    def _check_packing(self) -> None:
        if not self.training.pack:
            return
        if self.choosing.choose_tokens is not None:
            raise ValueError("--pack and --choose-tokens exclude each other: a row has the whole answers of its texts")
        if "prompts" in self.methods:
            raise ValueError(
                "--pack does not go with --methods prompts: a soft prompt comes before the first text only"
            )
        if "moe" in self.methods and self.experts.experts_per_token is not None:
            raise ValueError("--pack does not go with --experts-per-token, whose balance loss counts tokens by rows")

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

    def _check_decoders(self, method: Method) -> None:
        option, names = self._decoders_of(method)
        if not names:
            raise ValueError(f"--methods {method} needs at least one of {option}, got none")
        if option == "--mle-decoders":
            return
        of_each = self.decoding.beams(self.num_hypotheses) // self.num_hypotheses
        if "diverse" in names and of_each < 2:
            raise ValueError(
                f"--mcl-decoders diverse needs at least 2 beams for each hypothesis, so --num-beams of at least "
                f"{2 * self.num_hypotheses}; got {self.decoding.num_beams}"
            )

    def _check_objective(self) -> None:
        loss = self.objective.make()
        loss.check(self.num_hypotheses)
        hard = self.backward_of("mcl") == "winner"
        if self.choosing.refresh is not None and not hard:
            raise ValueError("--refresh needs one winner for each example, so --backward winner with a hard objective")
        if self.choosing.chooses_apart and self.backward_of("mcl") == "all":
            option = "--choose-dtype" if self.choosing.choose_tokens is None else "--choose-tokens"
            raise ValueError(f"{option} needs --backward winner or sampled, which choose first; got all")
        if self.choosing.choose_dtype is not None and self.base.quantization is not None:
            raise ValueError(
                f"--choose-dtype needs a base that is not quantized already, got --quantization "
                f"{self.base.quantization}"
            )
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
        return self.num_hypotheses if method in SEVERAL else 1

    def lora_of(self, method: Method, default_targets: Sequence[str] = LoraConfig.targets) -> LoraConfig:
        """Returns the adapters of a method; α/r is the same for all methods."""
        if method == "mcl":
            return self.lora.shared_adapters(self.num_hypotheses, default_targets)
        return self.lora.adapters(self.num_hypotheses if method in ("mle_rk", LIST) else 1, default_targets)

    def objective_of(self, method: Method) -> objectives.Objective:
        """Returns the objective of a method."""
        return self.objective.make() if method in COMPETING else objectives.mle()

    def backward_of(self, method: Method) -> str:
        """Returns the hypotheses that the backward pass of a method runs for."""
        if method == "ensemble":
            return "all"
        return self.objective.backward_of(self.objective_of(method), self.hypotheses_of(method))

    def choosing_of(self, method: Method) -> Choosing:
        """Returns how a method chooses winners; only those with the objective of mcl choose any."""
        return self.choosing if method in COMPETING else Choosing()

    def optimizer_of(self, method: Method) -> Optimizer:
        """Returns the optimizer of a method."""
        if method == "prompts":
            return dataclasses.replace(self.optimizer, learning_rate=self.prompts.prompt_rate)
        return self.optimizer

    def chooses_first(self, backward: str) -> bool:
        """Whether --assign clean makes a step of mcl compute scores before a backward pass of all hypotheses."""
        return backward == "all" and self.objective.assign == "clean" and self.lora.dropout > 0.0

    def decoders(self, method: Method) -> dict[str, AnyDecoder]:
        """Returns the decoders of a method by the name of their results.

        All with beams have the same number of beams in all, and all but greedy make K answers (see `decoders.budget`).
        The name is that of the method, such as mle_rk, followed by that of the decoder if the method has several, such
        as mle_rk/beam.
        """
        K, (option, names) = self.num_hypotheses, self._decoders_of(method)
        made = self.decoding.decoders(names, K, share=K if option == "--mcl-decoders" else 1)
        if method == LIST:
            made = {name: Listed(decoder, K) for name, decoder in made.items()}
        if method == "moe" and self.experts.experts_alone:
            made["experts"] = ExpertsAlone(self.decoding.decoder("beam", K, share=K), K)
        return {f"{method}/{name}" if len(made) > 1 else method: decoder for name, decoder in made.items()}

    def _decoders_of(self, method: Method) -> tuple[str, tuple[DecoderName, ...]]:
        """Returns the option that names the decoders of a method, and these."""
        if method in (*SEVERAL, LIST):
            return "--mcl-decoders", self.decoding.mcl_decoders
        return "--mle-decoders", self.decoding.mle_decoders
