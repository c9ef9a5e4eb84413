"""Sizes and choices of the benchmark."""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal, get_args

Variant = Literal["all", "winner", "sampled", "loop", "grouped_conv", "separate"]
Mode = Literal["train", "forward"]
VARIANTS, MODES = get_args(Variant), get_args(Mode)
SAME_FORWARD_AS_ALL = ("winner", "sampled")  # they differ from `all` in the backward pass only


@dataclasses.dataclass(frozen=True)
class Config:
    """Time and memory of one step of K hypotheses on a GPT-Neo decoder, side by side with other ways to do it.

    Variants: `all` backward of every hypothesis (vmap over K); `winner` backward of each example's winner only;
    `sampled` backward of one hypothesis drawn per example (relaxed WTA); `loop` a Python loop over K in one jit;
    `grouped_conv` K·B rows and 1x1 grouped convolutions, as the authors do; `separate` K models with weights of their
    own, K MLE steps one after another. What each computes is checked against `all` before anything is timed.
    """

    layers: int = 6
    """L, number of decoder blocks (global attention)."""
    d_model: int = 512
    """D, width of the residual stream; a multiple of num_heads."""
    num_heads: int = 8
    """H, attention heads."""
    vocab: int = 32000
    """V, number of tokens."""
    batch: int = 4
    """B, examples a step."""
    seq_len: int = 128
    """T, predicted tokens an example."""
    ranks: tuple[int, ...] = (8, 64)
    """r, one table for each."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """K, numbers of hypotheses. K=1 of `all` is always measured: it is the MLE step that others are compared with."""
    modes: tuple[Mode, ...] = MODES
    """train: forward, backward and optimizer update. forward: only the [K, B] log-likelihoods (winner and sampled have
    no rows there: their forward is that of `all`)."""
    variants: tuple[Variant, ...] = VARIANTS
    """What to measure."""
    repeats: int = 7
    """Timed rounds. Each round runs every variant and K once, so that drift of the machine falls on all alike."""
    warmup: int = 2
    """Rounds before those, not timed."""
    patience: float = 20.0
    """Seconds that a step may take and still be repeated; a slower one is timed once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base model. Adapters and log-likelihoods are float32 whatever it is."""
    matmul_precision: Literal["default", "highest"] = "default"
    """Of float32 products: on CPU they are float32 anyway, accelerators use fewer bits by default."""
    chunk_size: int = 256
    """Tokens whose logits exist at a time."""
    subprocess: bool = True
    """Whether to measure peak memory too, in a fresh process for each row."""
    rss: Literal["summary", "all"] = "summary"
    """Rows whose peak memory is measured: those of the summary (its K, the first rank, train), or all of them."""
    json: Path | None = None
    """Where to write the rows, after each rank and mode."""
    figure: Path | None = None
    """Where to draw cost and memory against K (.png)."""
    seed: int = 0
    """Of weights, adapters and tokens."""
    quick: bool = False
    """Small sizes, a minute or two, mostly to compile; an option given beside it wins."""

    @property
    def summary_k(self) -> int:
        """The K of the summary: 5, or the largest one measured."""
        return 5 if 5 in self.ks else max(self.ks)

    @property
    def all_ks(self) -> tuple[int, ...]:
        """ks, sorted, each once."""
        return tuple(sorted(set(self.ks)))

    def cells(self, mode: Mode) -> list[tuple[Variant, int]]:
        """(variant, K) of every row of a rank and mode, in the order in which a round runs them."""
        names = [v for v in VARIANTS if v in self.variants and not (mode == "forward" and v in SAME_FORWARD_AS_ALL)]
        cells = [(name, k) for k in self.all_ks for name in names]
        return cells if ("all", 1) in cells else [("all", 1), *cells]

    def check(self) -> "Config":
        """Itself, if it can be run.

        Raises:
          ValueError: names the option, what it needs and what came.
        """
        sizes = ("layers", "d_model", "num_heads", "vocab", "batch", "seq_len", "repeats", "chunk_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"--warmup must be at least 0 rounds, got {self.warmup}")
        for name in ("ranks", "ks", "modes", "variants"):
            if not getattr(self, name):
                raise ValueError(f"--{name} needs at least one value")
        for name in ("ranks", "ks"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"--{name}: each must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"--d-model must be a multiple of --num-heads, got d_model={self.d_model}, num_heads={self.num_heads}"
            )
        _check_names("variants", self.variants, VARIANTS)
        _check_names("modes", self.modes, MODES)
        for name, path in [("json", self.json), ("figure", self.figure)]:
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"--{name}: there is no folder {path.absolute().parent}")
        return self


def _check_names(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"--{option}: {name!r} is not one of {', '.join(known)}{hint}")


QUICK = Config(
    layers=2,
    d_model=64,
    num_heads=4,
    vocab=1009,
    batch=4,
    seq_len=32,
    ranks=(4,),
    ks=(5,),
    repeats=3,
    warmup=1,
    subprocess=False,
    quick=True,
)
