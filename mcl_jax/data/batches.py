"""Batches of one-to-many text for training and evaluation, as grain iterators.

    encoded = encode_records(corpus.split("train"), tokenizer, max_length=config.lengths[-1], mode_names=corpus.modes)
    batches = train_batches(encoded, config)
    for batch in batches:
        inputs, targets, mask = batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["target_mask"]
    ...
    place = batches.get_state()          # JSON types, for the checkpoint
    batches.set_state(place)             # continues with the next batch

Each batch is a dict of NumPy arrays, where B is this process's share of the rows:

    tokens       int32 [B, T + 1]   prompt, target, end of sequence, padding on the right; T is one of `config.lengths`
    target_mask  bool  [B, T]       True where tokens[:, 1:] is target or end of sequence
    mode         int32 [B]          index into `encoded.mode_names`, NO_MODE (−1) if the target has no mode
    index        int32 [B]          index of the record, NO_RECORD (−1) for a padding row
    example      int32 [B]          number of the target among all targets of all records, NO_RECORD for a padding row

With `pack`, short examples share rows, see `mcl_jax.packing`: T is the last of `config.lengths`, and the other arrays
are [B, S].
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mcl_jax import packing
from mcl_jax.data.encoding import NO_MODE, Encoded
from mcl_jax.data.schedule import NO_RECORD, BatchConfig, EvalSchedule, Rows, TrainSchedule
from mcl_jax.extras import needed_for

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
PREFETCH = 4  # batches prepared ahead, by one thread, since the work is pure Python


class Batches(Iterator[Batch]):
    """An iterator over batches whose position can be stored; made by `train_batches` and `eval_batches`.

    The position counts batches of all processes together, so a run may resume with another number of processes.
    """

    def __init__(self, dataset: "grain.IterDataset", batches_per_epoch: int, made_of: dict[str, Any]):
        self.batches_per_epoch = batches_per_epoch
        self._iterator = iter(dataset)
        self._made_of = made_of
        self._next = 0

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._next += 1
        return batch

    @property
    def epoch(self) -> float:
        """Number of passes over the records so far."""
        return self._next / self.batches_per_epoch

    def get_state(self) -> dict[str, Any]:
        """Returns the position, in JSON types."""
        return {"next_batch": self._next, "made_of": dict(self._made_of)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state` of this or an equal iterator.

        Raises:
          ValueError: if the position belongs to other data or another configuration; names the differences.
        """
        stored, own = dict(state["made_of"]), self._made_of
        lines = [
            f"{key}: {stored.get(key)} in the stored position, {own.get(key)} now"
            for key in sorted({*stored, *own})
            if stored.get(key) != own.get(key)
        ]
        if lines:
            raise ValueError(f"the stored position belongs to other batches: {'; '.join(lines)}")
        self._iterator.set_state({"next_index": state["next_batch"]})
        self._next = state["next_batch"]


def train_batches(
    encoded: Encoded,
    config: BatchConfig,
    *,
    epochs: int | None = None,
    pack: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Makes shuffled batches with one target per record, drawn anew in each epoch.

    Args:
      encoded: the training records, see `encode_records`.
      config: batch size, lengths, seed.
      epochs: passes over the records; None means no end.
      pack: what divides the number of rows of a packed batch, such as the number of devices; None does not pack.
      process_index: index of this process, `jax.process_index()`; it selects the rows of each batch.
      process_count: number of processes that share the rows, `jax.process_count()`.
    Returns:
      The iterator; all processes have batches of the same T at the same time.
    Raises:
      ValueError: if a batch cannot be filled or shared.
      MissingExtra: if grain is not installed.
    """
    schedule = TrainSchedule(encoded.lengths(), config, epochs)
    return _batches(encoded, schedule, "train", process_index, process_count, pack)


def eval_batches(encoded: Encoded, config: BatchConfig, *, process_index: int = 0, process_count: int = 1) -> Batches:
    """Makes batches with every target of every record once, the longest first; padding rows have an empty mask.

    Arguments and errors are as in `train_batches`.
    """
    return _batches(encoded, EvalSchedule(encoded.lengths(), config), "eval", process_index, process_count)


def _batches(
    encoded: Encoded,
    schedule: TrainSchedule | EvalSchedule,
    kind: str,
    process_index: int,
    process_count: int,
    pack: int | None = None,
) -> Batches:
    with needed_for("making batches", "data"):
        import grain
    share = functools.partial(_rows_of_process, process_index=process_index, process_count=process_count)
    share("batch_size" if pack is None else "pack", pack or schedule.config.batch_size)  # raises before the first batch

    def gather(batch: Rows) -> Batch:
        if pack is None:
            rows = share("batch_size", len(batch.record))
            return gather_tokens(encoded, Rows(batch.record[rows], batch.target[rows], batch.length))
        packed = packing.pack(gather_tokens(encoded, batch), schedule.config.lengths[-1], multiple=pack)
        rows = share("pack", len(packed["tokens"]))
        return {name: array[rows] for name, array in packed.items()}

    dataset = grain.MapDataset.source(schedule).map(gather)
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    made_of = {"kind": kind, **dataclasses.asdict(schedule.config), "data": _fingerprint(encoded)}
    made_of["lengths"] = list(schedule.config.lengths)
    return Batches(dataset.to_iter_dataset(read), schedule.batches_per_epoch, made_of)


def gather_tokens(encoded: Encoded, rows: Rows) -> Batch:
    """Makes the arrays of a batch, see the top of this file."""
    size = len(rows.record)
    tokens = np.full((size, rows.length + 1), encoded.pad_id, np.int32)
    mask = np.zeros((size, rows.length), bool)
    mode = np.full(size, NO_MODE, np.int32)
    index, example = np.full(size, NO_RECORD, np.int32), np.full(size, NO_RECORD, np.int32)
    for row, (record, target) in enumerate(zip(rows.record, rows.target, strict=True)):
        if record == NO_RECORD:
            continue
        prompt, answer = encoded.prompts[record], encoded.targets[record][target]
        end = len(prompt) + len(answer)
        tokens[row, :end] = np.concatenate([prompt, answer])
        mask[row, len(prompt) - 1 : end - 1] = True
        mode[row], index[row] = encoded.modes[record][target], encoded.index[record]
        example[row] = encoded.first_example[record] + target
    return {"tokens": tokens, "target_mask": mask, "mode": mode, "index": index, "example": example}


def _rows_of_process(name: str, size: int, *, process_index: int, process_count: int) -> slice:
    """Returns the block of rows of a process, as in an array sharded over B."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in [0, process_count={process_count}), got {process_index}")
    if size % process_count:
        raise ValueError(f"{name} {size} must be divisible by the {process_count} processes")
    share = size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _fingerprint(encoded: Encoded) -> str:
    """Returns a text that identifies all tokens, modes and the order of the records."""
    checksum = 0
    for prompt, targets, modes in zip(encoded.prompts, encoded.targets, encoded.modes, strict=True):
        for ids in (prompt, *targets, np.array(modes, np.int32)):
            checksum = zlib.crc32(ids.tobytes(), zlib.crc32(len(ids).to_bytes(4, "little"), checksum))
    return f"{len(encoded.prompts)} records, checksum {checksum:08x}"
