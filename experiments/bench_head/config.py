"""Sizes and options of the benchmark."""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal, get_args

Variant = Literal["all", "winner", "sampled", "loop", "grouped_conv", "separate"]
Mode = Literal["train", "forward"]
VARIANTS, MODES = get_args(Variant), get_args(Mode)
SAME_FORWARD_AS_ALL = ("winner", "sampled")  # these differ from `all` only in the backward pass


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures time and memory of one step of K hypotheses on a GPT-Neo decoder, and of other ways to compute it.

    Variants: `all` runs the backward pass of every hypothesis (vmap over K); `winner` only that of each example's
    winner; `sampled` that of one hypothesis drawn per example (relaxed WTA); `loop` is a Python loop over K in one jit;
    `grouped_conv` uses K·B rows and 1x1 grouped convolutions, as the authors do; `separate` trains K models with their
    own weights, in K MLE steps. The result of each variant is checked against `all` before anything is timed.
    """

    layers: int = 6
    """L, number of decoder blocks (global attention)."""
    d_model: int = 512
    """D, width of the residual stream; must be a multiple of num_heads."""
    num_heads: int = 8
    """H, attention heads."""
    vocab: int = 32000
    """V, number of tokens."""
    batch: int = 4
    """B, examples per step."""
    seq_len: int = 128
    """T, predicted tokens per example."""
    ranks: tuple[int, ...] = (8, 64)
    """Values of r."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Values of K. `all` at K=1 is always measured, since it is the MLE step used as the reference."""
    modes: tuple[Mode, ...] = MODES
    """train: forward, backward and optimizer update. forward: only the [K, B] log-likelihoods (without winner and
    sampled, whose forward pass is that of `all`)."""
    variants: tuple[Variant, ...] = VARIANTS
    """Variants to measure."""
    repeats: int = 7
    """Timed rounds. Each round runs every variant and K once, so that a drift of the machine affects all of them."""
    warmup: int = 2
    """Rounds before the timed ones."""
    patience: float = 20.0
    """Longest step in seconds that is repeated; a slower one is timed once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the base model. Adapters and log-likelihoods are always float32."""
    matmul_precision: Literal["default", "highest"] = "default"
    """Precision of float32 products: always float32 on CPU; accelerators use fewer bits by default."""
    chunk_size: int = 256
    """Number of tokens whose logits exist at the same time."""
    subprocess: bool = True
    """Whether to measure peak memory too, in a new process for each row."""
    rss: Literal["summary", "all"] = "summary"
    """Rows whose peak memory is measured: those of the summary (its K, the first rank, train), or all of them."""
    json: Path | None = None
    """File for the rows, written after each rank and mode."""
    figure: Path | None = None
    """File for the figure of cost and memory against K (.png)."""
    seed: int = 0
    """Random seed of weights, adapters and tokens."""
    quick: bool = False
    """Use small sizes, which take a minute or two, mostly for compilation. Other options still override them."""

    @property
    def summary_k(self) -> int:
        """K of the summary: 5, or the largest one measured."""
        return 5 if 5 in self.ks else max(self.ks)

    @property
    def all_ks(self) -> tuple[int, ...]:
        """Sorted values of K, without repetitions."""
        return tuple(sorted(set(self.ks)))

    def cells(self, mode: Mode) -> list[tuple[Variant, int]]:
        """Returns (variant, K) of every row of a rank and mode, in the order in which a round runs them."""
        names = [v for v in VARIANTS if v in self.variants and not (mode == "forward" and v in SAME_FORWARD_AS_ALL)]
        cells = [(name, k) for k in self.all_ks for name in names]
        return cells if ("all", 1) in cells else [("all", 1), *cells]

    def check(self) -> "Config":
        """Returns the config itself, after checking it.

        Raises:
          ValueError: if an option is wrong; names it, what it needs and what came.
        """
        sizes = ("layers", "d_model", "num_heads", "vocab", "batch", "seq_len", "repeats", "chunk_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"--warmup must be at least 0 rounds, got {self.warmup}")
        for name in ("ranks", "ks", "modes", "variants"):
            if not getattr(self, name):
                raise ValueError(f"--{name} needs at least one value, got none")
        for name in ("ranks", "ks"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"every value of --{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"--d-model must be a multiple of --num-heads, got d_model={self.d_model}, num_heads={self.num_heads}"
            )
        _check_names("variants", self.variants, VARIANTS)
        _check_names("modes", self.modes, MODES)
        for name, path in [("json", self.json), ("figure", self.figure)]:
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"--{name} must be a file in an existing folder, got {path}")
        return self


def _check_names(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"--{option} must be among {', '.join(known)}, got {name!r}{hint}")


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
