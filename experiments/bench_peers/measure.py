"""Equality of both sides, then their times in turns, and the peak memory of single ways."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench_peers.config import OURS, PEER, WAYS, Config
from experiments.bench_peers.sides import Side

LOSS_TOLERANCE = 1e-3  # relative
LEAST_EQUAL_TOKENS = 0.9  # one token that rounding changes also changes those that follow it
LEARNING_RATE = 1e-3
Sides = Mapping[str, Side]
Tell = Callable[[str], None]


def training(config: Config, sides: Sides, vocab_size: int, tell: Tell) -> list[dict[str, Any]]:
    """Checks and times the training steps; returns one row for each way, K and T.

    Raises:
      ValueError: if the losses of two ways differ.
    """
    cells, losses = config.train_cells(), {}
    for cell in cells:
        losses[cell] = begin(config, sides[WAYS[cell[0]][0]], cell, vocab_size)
        check_losses(losses, cell)
        first, second = losses[cell]
        tell(f"T={cell[2]} K={cell[1]} {cell[0]}: loss {first:.5f}, after a step {second:.5f}")

    def step(cell: tuple[str, int, int]) -> float:
        return sides[WAYS[cell[0]][0]].ask(do="step", cell=str(cell))["seconds"]

    seconds = in_turns(step, cells, config.repeats, tell)
    return [row_of("train", way, k, seconds[way, k, t], t=t, losses=losses[way, k, t]) for way, k, t in cells]


def begin(config: Config, side: Side, cell: tuple[str, int, int], vocab_size: int) -> list[float]:
    """Begins the training of a cell; returns the losses before and after the first step."""
    way, k, t = cell
    tokens = np.random.default_rng(0).integers(0, vocab_size, (config.batch, t + 1)).tolist()
    request = {"way": way, "hypotheses": k, "tokens": tokens, "learning_rate": LEARNING_RATE}
    return side.ask(do="begin", cell=str(cell), **request)["losses"]


def check_losses(losses: Mapping[tuple[str, int, int], list[float]], cell: tuple[str, int, int]) -> None:
    """Raises a ValueError if the losses of a cell are not those of the first way with the same K and T."""
    first = next(other for other in losses if other[1:] == cell[1:])
    if not np.allclose(losses[cell], losses[first], rtol=LOSS_TOLERANCE, atol=0.0):
        raise ValueError(
            f"the losses of {cell[0]} and {first[0]} at K={cell[1]} T={cell[2]} must be equal up to {LOSS_TOLERANCE} "
            f"before and after the first step, got {losses[cell]} and {losses[first]}"
        )


def decoding(config: Config, sides: Sides, vocab_size: int, tell: Tell) -> list[dict[str, Any]]:
    """Checks and times greedy decoding; returns one row for each side and K.

    Raises:
      ValueError: if less than nine tenths of the tokens are equal.
    """
    prompts = {name: x.tolist() for name, x in make_prompts(config.batch, config.prompt, vocab_size).items()}
    asked = prompts | {"do": "decode", "new_tokens": config.new_tokens, "num_beams": 1}
    ks, equal = sorted({*config.ks}), {}
    for k in ks:
        ours, theirs = (np.array(sides[side].ask(**asked, hypotheses=k)["tokens"]) for side in (OURS, PEER))
        equal[k] = float((ours == theirs).mean())
        tell(f"decoding K={k}: {equal[k]:.1%} of the tokens are equal")
        if equal[k] < LEAST_EQUAL_TOKENS:
            raise ValueError(
                f"at least {LEAST_EQUAL_TOKENS:.0%} of the tokens of both sides must be equal at K={k}, got "
                f"{equal[k]:.1%}"
            )

    def answer(cell: tuple[str, int]) -> float:
        side, k = cell
        return sides[side].ask(**asked, hypotheses=k)["seconds"]

    cells = [(side, k) for k in ks for side in (OURS, PEER)]
    seconds = in_turns(answer, cells, config.repeats, tell)
    return [row_of("decode", side, k, seconds[side, k], equal_tokens=equal[k]) for side, k in cells]


def memory(config: Config, folder: Path, vocab_size: int, tell: Tell) -> dict[tuple[str, int, int], int | None]:
    """Returns the peak memory in bytes of two training steps for each cell, in a new process each."""
    peaks = {}
    for cell in config.memory_cells():
        with Side(WAYS[cell[0]][0], config, folder) as side:
            begin(config, side, cell, vocab_size)
            peaks[cell] = side.peak_bytes()
        if peaks[cell] is not None:
            tell(f"T={cell[2]} K={cell[1]} {cell[0]}: at most {peaks[cell] / 2**20:.0f} MiB")
    return peaks


def in_turns(
    seconds_of: Callable[[Any], float], cells: Sequence[Any], repeats: int, tell: Tell
) -> dict[Any, list[float]]:
    """Times each cell once in every round (A B C A B C), so that a drift of the machine affects all of them."""
    seconds = {cell: [] for cell in cells}
    for i in range(repeats):
        for cell in cells:
            seconds[cell].append(seconds_of(cell))
        tell(f"round {i + 1} of {repeats}: {sum(times[-1] for times in seconds.values()):.1f} s")
    return seconds


def row_of(part: str, way: str, k: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    """Makes a row with the median, the range and all times."""
    spread = {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "times": seconds}
    return {"part": part, "way": way, "k": k, **spread, **more}


def make_prompts(size: int, longest: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Makes random tokens [B, P] of unequal lengths, padded on the left, and their mask."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(longest, max(longest // 2, 1), size).astype(int)
    mask = np.arange(longest)[None] >= longest - lengths[:, None]
    return {"tokens": np.where(mask, rng.integers(10, vocab_size, mask.shape), 0), "mask": mask}
