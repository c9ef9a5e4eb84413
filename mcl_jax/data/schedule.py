"""Which examples make up which batch, of which length: a pure function of (seed, epoch, place in the epoch).

In each epoch the records are shuffled, a target is drawn for each, and the order is cut into windows of `window`
batches. Inside a window examples are sorted by length, so that those of one batch have about the same; then the batches
of the epoch are shuffled. Each is padded to the shortest of a few lengths that holds it, so that a jitted step compiles
once a length. Records that do not fill a last batch sit the epoch out; others do in the next.

Nothing is remembered from one batch to the next: batch i of a run is the same whether the run got there or resumed.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcl_jax import options

NO_RECORD = -1
ORDER, DRAW, SHUFFLE = range(3)  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Shapes and order of batches.

    Attributes:
      batch_size: B, examples a batch, over all processes.
      lengths: T, the predicted positions that batches may have, ascending: the step compiles once for each.
      seed: of order and drawn targets.
      window: batches within which examples are sorted by length; 1 for no sorting.
    """

    batch_size: int = 16
    lengths: tuple[int, ...] = (64, 96, 128, 192, 256)
    seed: int = 0
    window: int = 32

    def __post_init__(self):
        options.settle(self)
        if self.batch_size < 1 or self.window < 1 or self.seed < 0:
            raise ValueError(f"batch_size and window must be at least 1, seed at least 0, got {self}")
        if not self.lengths or min(self.lengths) < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must be positive and ascending, got {self.lengths}")


class Rows(NamedTuple):
    """A batch before its tokens are gathered: places of record and target [B], and T."""

    record: np.ndarray
    target: np.ndarray
    length: int


class TrainSchedule:
    """Batches of a training run, as a random-access sequence.

    Args:
      lengths: of each record, predicted positions [number of targets].
      config: shapes and seed.
      epochs: passes over the records; None for no end.
    Raises:
      ValueError: if there are fewer records than a batch holds, or longer ones than fit.
    """

    def __init__(self, lengths: Sequence[np.ndarray], config: BatchConfig, epochs: int | None = None):
        _check_fits(lengths, config)
        self.config = config
        self.batches_per_epoch = len(lengths) // config.batch_size
        if not self.batches_per_epoch:
            raise ValueError(f"{len(lengths)} records do not fill a batch of {config.batch_size}")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1 or None, got {epochs}")
        self._length = sys.maxsize if epochs is None else epochs * self.batches_per_epoch
        self._num_targets = np.array([len(row) for row in lengths])
        self._lengths = np.zeros((len(lengths), self._num_targets.max()), np.int64)  # [records, most targets]
        for row, given in zip(self._lengths, lengths, strict=True):
            row[: len(given)] = given
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Rows:
        """Batch `number` of the run."""
        epoch, place = divmod(int(number), self.batches_per_epoch)
        records, targets = self.epoch(epoch)
        record, target = records[place], targets[place]
        return Rows(record, target, _padded(self._lengths[record, target].max(), self.config))

    def drawn_targets(self, epoch: int) -> np.ndarray:
        """Which target each record has in an epoch [records]: uniform, and a function of (seed, epoch, record)."""
        return (self._random(DRAW, epoch).random(len(self._num_targets)) * self._num_targets).astype(np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Records and their targets of every batch of an epoch, [batches, B] each."""
        targets, shape = self.drawn_targets(epoch), (self.batches_per_epoch, self.config.batch_size)
        order = self._random(ORDER, epoch).permutation(len(targets))[: shape[0] * shape[1]]
        window = np.arange(len(order)) // (self.config.window * self.config.batch_size)
        if self.config.window > 1:
            order = order[np.lexsort((self._lengths[order, targets[order]], window))]
        records = self._random(SHUFFLE, epoch).permutation(order.reshape(shape))
        return records, targets[records]

    def _random(self, stream: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, stream, epoch))


class EvalSchedule:
    """Batches that hold every target of every record once, sorted by length; the last is filled up with NO_RECORD.

    Args:
      lengths: of each record, predicted positions [number of targets].
      config: shapes; the seed plays no part.
    Raises:
      ValueError: if an example is longer than fits.
    """

    def __init__(self, lengths: Sequence[np.ndarray], config: BatchConfig):
        _check_fits(lengths, config)
        self.config = config
        pairs = [(row[t], r, t) for r, row in enumerate(lengths) for t in range(len(row))]
        pairs += [(0, NO_RECORD, 0)] * (-len(pairs) % config.batch_size)
        self._pairs = np.array(sorted(pairs, reverse=True)).reshape(-1, config.batch_size, 3)
        self.batches_per_epoch = len(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> Rows:
        """Batch `number`, the longest first."""
        length, record, target = self._pairs[number].T
        return Rows(record, target, _padded(length.max(), self.config))


def _padded(length: int, config: BatchConfig) -> int:
    """The shortest of the config's lengths that holds `length`."""
    return config.lengths[int(np.searchsorted(config.lengths, length))]


def _check_fits(lengths: Sequence[np.ndarray], config: BatchConfig) -> None:
    longest = max(row.max() for row in lengths)
    if longest > config.lengths[-1]:
        raise ValueError(
            f"an example has {longest} predicted positions, the longest batch {config.lengths[-1]}; "
            "encode_records(max_length=...) must be at most the last of the config's lengths"
        )
