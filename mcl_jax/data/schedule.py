"""Assignment of examples to batches: a pure function of (seed, epoch, position in the epoch).

Each epoch shuffles the records, draws a target for each, and cuts the order into windows of `window` batches. Inside a
window, examples are sorted by length, so that those of a batch have similar lengths; then the batches of the epoch are
shuffled. Each batch is padded to the shortest allowed length that holds it, so a jitted step compiles once per length.
Records that do not fill the last batch are left out of the epoch; the next epoch leaves out others.

No state is carried from one batch to the next, so batch i is the same whether a run reached it or resumed there.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcl_jax import options

NO_RECORD = -1
ORDER, DRAW, SHUFFLE = range(3)  # random number streams


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Shapes and order of batches.

    Attributes:
      batch_size: B, examples per batch, over all processes.
      lengths: allowed values of T, the predicted positions of a batch, ascending. The step compiles once for each.
      seed: random seed of the order and of the drawn targets.
      window: number of batches within which examples are sorted by length; 1 means no sorting.
    Raises:
      ValueError: if a value is out of range, or the lengths are not ascending.
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
    """A batch before its tokens are gathered.

    Attributes:
      record: index of each record, [B].
      target: index of its target, [B].
      length: T.
    """

    record: np.ndarray
    target: np.ndarray
    length: int


class TrainSchedule:
    """Batches of a training run, as a random-access sequence.

    Args:
      lengths: number of predicted positions for each target of each record.
      config: shapes and seed.
      epochs: passes over the records; None means no end.
    Raises:
      ValueError: if there are fewer records than a batch holds, or an example is too long.
    """

    def __init__(self, lengths: Sequence[np.ndarray], config: BatchConfig, epochs: int | None = None):
        _check_fits(lengths, config)
        self.config = config
        self.batches_per_epoch = len(lengths) // config.batch_size
        if not self.batches_per_epoch:
            raise ValueError(
                f"a batch needs {config.batch_size} records, got only {len(lengths)}; lower the batch size or add "
                "records"
            )
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
        """Returns batch `number` of the run."""
        epoch, place = divmod(int(number), self.batches_per_epoch)
        records, targets = self.epoch(epoch)
        record, target = records[place], targets[place]
        return Rows(record, target, _padded(self._lengths[record, target].max(), self.config))

    @property
    def padding(self) -> float:
        """Share of the positions of the first epoch that are padding."""
        records, targets = self.epoch(0)
        padded = [_padded(longest, self.config) for longest in self._lengths[records, targets].max(axis=1)]
        return 1 - self._lengths[records, targets].sum() / (self.config.batch_size * sum(padded))

    def drawn_targets(self, epoch: int) -> np.ndarray:
        """Returns the index of each record's target in an epoch: uniform, and a function of (seed, epoch, record)."""
        return (self._random(DRAW, epoch).random(len(self._num_targets)) * self._num_targets).astype(np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the records and the targets of every batch of an epoch, [batches, B] each."""
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
    """Batches with every target of every record once, sorted by length; NO_RECORD fills the last one.

    Args:
      lengths: number of predicted positions for each target of each record.
      config: shapes; the seed is not used.
    Raises:
      ValueError: if an example is too long.
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
        """Returns batch `number`; the longest comes first."""
        length, record, target = self._pairs[number].T
        return Rows(record, target, _padded(length.max(), self.config))


def _padded(length: int, config: BatchConfig) -> int:
    """Returns the shortest allowed length that holds `length`."""
    return config.lengths[int(np.searchsorted(config.lengths, length))]


def _check_fits(lengths: Sequence[np.ndarray], config: BatchConfig) -> None:
    longest = max(row.max() for row in lengths)
    if longest > config.lengths[-1]:
        raise ValueError(
            f"an example has {longest} predicted positions, but the longest batch has {config.lengths[-1]}; call "
            "encode_records with a max_length of at most the last of the config's lengths"
        )
