"""Checkpoints of a training run: adapters, optimizer, objective, random key and data position, but never the base.

    DIR/120/state     arrays by path, such as "adapters/layers_0/q_proj/a" [K, in, r] or "opt_state/0/mu/..."
    DIR/120/record    JSON: shape, dtype and checksum of each array; metrics, data position, configuration

Orbax writes a step under a temporary name and renames it when it is complete, so a kill at any moment leaves the
earlier steps untouched. `save` copies arrays to the host before it returns, since the next train step donates their
buffers. Arrays are stored unsharded, so a run may resume with any number of devices. Of several processes, all must
save and restore together; process 0 writes the arrays, which all of them hold or gather. We add checksums because
Orbax does not notice a flipped bit in a stored array.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from mcl_jax import hosts, stored_state
from mcl_jax.console import say
from mcl_jax.json_io import to_json
from mcl_jax.train_state import TrainState

T = TypeVar("T")
FORMAT = 1
ADAPTERS = "adapters/"  # first part of the paths of adapters
REMOVALS = 50  # attempts at a directory that something is still being written into
LINGERING = 10.0  # seconds that we wait for the threads of a save that failed
SPARE = 2**18  # bytes that a checkpoint takes besides its arrays
SPARE_OF_ARRAY = 2**14  # and besides the values of each array: files and folders
# What the system says if a file cannot be written; TensorStore puts it at the end of a long message.
REASONS = {
    os.strerror(n): n
    for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO)
}
CLOSED_LOOP = "Event loop is closed"


class BrokenCheckpoint(Exception):
    """A checkpoint that cannot be read back as it was written."""


class NotFinite(ValueError):
    """A state that is not saved because it holds NaN or an infinity."""


def _told_otherwise(record: logging.LogRecord) -> bool:
    """Whether Orbax's log record is left out: a traceback of one of its threads, which our own errors report, or a
    warning, such as that a save waits for the one before it."""
    return "orbax" in record.pathname and (bool(record.exc_info) or record.levelno <= logging.WARNING)


def _never_retrieved(record: logging.LogRecord) -> bool:
    """Whether asyncio's log record is about an array that Orbax gave up because another one could not be written."""
    return "never retrieved" in record.getMessage() and "orbax" in record.getMessage()


logging.getLogger("absl").addFilter(lambda record: not _told_otherwise(record))
logging.getLogger("asyncio").addFilter(lambda record: not _never_retrieved(record))


def _without_closed_loops(report: Callable[[Any], None]) -> Callable[[Any], None]:
    """Leaves one error out of those that Python cannot raise: our own error reports the same problem.

    When an array cannot be written, Orbax closes its event loop while TensorStore still writes others. The end of each
    of those is then a RuntimeError in a thread of TensorStore, which would print a traceback.
    """

    def told(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == CLOSED_LOOP):
            report(unraisable)

    return told


sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


class Checkpoints:
    """The checkpoints in a directory. Reading changes nothing; the first save removes what a kill left behind.

    Args:
      directory: folder of the checkpoints; created if it does not exist.
      keep_last: number of newest checkpoints to keep, at least 1.
      keep_best: number of best checkpoints to keep in addition.
      best_metric: key of `metrics` that ranks the checkpoints.
      best_mode: "min" if a lower metric is better, else "max".
      async_: write in the background; `wait` and `close` wait until everything is written.
    Raises:
      ValueError: if keep_last < 1, keep_best < 0, or best_mode is neither "min" nor "max".
      OSError: if the path is no directory but a file, or a link to nothing.
    """

    def __init__(
        self,
        directory: Path | str,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "eval_loss",
        best_mode: Literal["min", "max"] = "min",
        async_: bool = True,
    ):
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last must be at least 1 and keep_best at least 0, got {keep_last} and {keep_best}")
        if best_mode not in ("min", "max"):
            raise ValueError(f'best_mode must be "min" or "max", got {best_mode!r}')
        self.directory = Path(directory).absolute()
        if os.path.lexists(self.directory) and not self.directory.is_dir():  # a file, or a link to nothing
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.directory))
        self.keep_last, self.keep_best = keep_last, keep_best
        self.best_metric, self.best_mode = best_metric, best_mode
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preserve(self),
                enable_async_checkpointing=async_,
                # A thread that makes directories would go on after a save that failed, and make those of the next.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                lightweight_initialize=True,
            ),
            # Each array has files of its own. With a database of all arrays (OCDBT), every save costs memory that
            # TensorStore never gives back: 0.3 to 0.7 KiB at each call of `KvStore.Spec.to_json`, a few for each array.
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
                "record": ocp.JsonCheckpointHandler(),
            },
        )
        self._ours: set[int] = set()  # steps saved or restored through this object
        self._broken: set[int] = set()
        self._cleared = False
        self._metric = {step: self._stored_metric(step) for step in self._manager.all_steps()}

    def save(
        self, state: TrainState, *, metrics: Mapping[str, Any] | None = None, data: Any = None, config: Any
    ) -> int:
        """Saves the state without `params` under `state.step`. A step that this object has saved is not saved again.

        Args:
          state: the state at the end of a step.
          metrics: finite numbers, including `best_metric` if it is known.
          data: position in the data, anything that JSON can hold.
          config: resolved configuration.
        Returns:
          The step.
        Raises:
          NotFinite: if an adapter is not finite; names step and leaf. Nothing is written.
          ValueError: if the directory already holds this or a later step from another run.
          OSError: if the checkpoint cannot be written; names the directory and the last good step. A failure in the
            background is raised by the next call.
        """
        step = int(state.step)
        self._clear_leftovers()
        steps = self._manager.all_steps()
        if step in self._ours and step in steps:
            return step
        if steps and step <= max(steps):
            raise ValueError(
                f"cannot save step {step}: {self.directory} already has step {max(steps)}. Continue from that step "
                f"with restore(), or move away the steps from {step} on"
            )
        leaves = stored_state.flatten(stored_state.stored(state))
        arrays = {path: stored_state.to_host(leaf) for path, leaf in leaves.items()}
        _check_finite(step, arrays)
        needed = sum(array.nbytes + SPARE_OF_ARRAY for array in arrays.values()) + SPARE
        hosts.on_first(lambda: self._check_space(needed), f"save step {step}")
        record = {
            "format": FORMAT,
            "step": step,
            "leaves": {path: stored_state.describe(leaf, arrays[path]) for path, leaf in leaves.items()},
            "objective_state": stored_state.objective_kind(state.objective_state),
            "metrics": to_json(metrics, "metrics", non_finite="null"),
            "data": to_json(data, "data"),
            "config": to_json(config, "config"),
        }
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            record=ocp.args.JsonSave({"record": record, "crc32": _record_checksum(record)}),
        )
        self._metric[step] = (record["metrics"] or {}).get(self.best_metric)
        with self._told():
            self._manager.save(step, args=args, force=True)
        self._ours.add(step)
        return step

    def restore(
        self, state_template: TrainState, step: int | Literal["best"] | None = None
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          state_template: gives `params`, and shapes, dtypes and devices of the rest (arrays or `ShapeDtypeStruct`s).
          step: a step, "best", or None for the latest readable one: a broken checkpoint is skipped, and a line on the
            console says so.
        Returns:
          The state with the template's `params`; the data position; {"step", "metrics", "config"}.
        Raises:
          FileNotFoundError: if there is no such checkpoint; names the existing ones.
          BrokenCheckpoint: if the requested step cannot be read, or no step can.
          ValueError: if tree, shapes or dtypes differ; names the first paths and both shapes.
        """

        def read(candidate: int) -> tuple[Any, Any, dict[str, np.ndarray]]:
            record = self._read_record(candidate)
            tree = stored_state.expected(state_template, record)
            stored_state.check_fits(tree, record["leaves"], f"checkpoint {candidate} in {self.directory}")
            return record, tree, self._read_arrays(candidate, record["leaves"])

        candidate, (record, tree, arrays) = self._first_readable(step, read)
        self._ours.add(candidate)
        metadata = {key: record[key] for key in ("step", "metrics", "config")}
        state = state_template.replace(**stored_state.fill(tree, arrays, record["leaves"]))
        return state, record["data"], metadata

    def adapters(self, step: int | Literal["best"] | None = None) -> dict[str, Any]:
        """Reads only the adapters of a checkpoint; they need no template, and the rest is not read.

        Args:
          step: as in `restore`.
        Returns:
          The adapters as nested dicts of NumPy arrays, with leading axis K, as `Hypotheses.init` makes them.
        Raises:
          FileNotFoundError, BrokenCheckpoint: as `restore`.
        """

        def read(candidate: int) -> dict[str, np.ndarray]:
            leaves = self._read_record(candidate)["leaves"]
            return self._read_arrays(candidate, {path: leaves[path] for path in leaves if path.startswith(ADAPTERS)})

        _, arrays = self._first_readable(step, read)
        return unflatten_dict({path.removeprefix(ADAPTERS): array for path, array in arrays.items()}, sep="/")

    def latest_step(self) -> int | None:
        """Returns the newest step, saved or being saved; None if there is none. Broken steps do not count."""
        return max(self._steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best `best_metric`, the newer of two equal ones; None if no step has a metric."""
        return max(self._scored(self._steps()), key=lambda pair: (pair[1], pair[0]), default=(None,))[0]

    def wait(self) -> None:
        """Waits until everything is on disk. Raises errors of the background thread, as `save` does."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends Orbax's threads."""
        with self._told():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        alone = kind is not None and not issubclass(kind, SystemExit)  # the other processes are somewhere else
        if not (alone and hosts.several()):
            self.close()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            detail = f"it needs {needed} bytes, but only {free} are free"
            raise self._not_written(f"{os.strerror(errno.ENOSPC)}: {detail}", errno.ENOSPC)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns any error of Orbax, TensorStore and their threads into one OSError."""
        try:
            yield
        except Exception as error:
            # Coroutines of Orbax that never ran would be reported when they are deleted, with names that say nothing.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            self._cleared = False  # what this save leaves behind is removed before the next one
            _wait_for_threads()
            known = next((reason for reason in REASONS if reason in str(error)), None)
            raise self._not_written(known or _first_line(error), REASONS.get(known, errno.EIO)) from error

    def _not_written(self, reason: str, number: int) -> OSError:
        good = [step for step in self._steps() if (self.directory / str(step)).is_dir()]
        kept = f"the last good checkpoint is step {max(good)}" if good else "there is no earlier checkpoint"
        return OSError(number, f"the checkpoint cannot be written ({reason}); {kept}", str(self.directory))

    def _steps(self) -> list[int]:
        return [step for step in self._manager.all_steps() if step not in self._broken]

    def _scored(self, steps: Sequence[int]) -> list[tuple[int, float]]:
        """Returns (step, score) for the steps that have the metric; a higher score is better."""
        sign = 1 if self.best_mode == "max" else -1
        return [(step, sign * self._metric[step]) for step in steps if self._metric.get(step) is not None]

    def _first_readable(self, step: int | str | None, read: Callable[[int], T]) -> tuple[int, T]:
        """Returns the first of the candidates that can be read, and what `read` returns for it."""
        self.wait()
        for candidate in self._candidates(step):
            try:
                return candidate, read(candidate)
            except BrokenCheckpoint as error:
                if step is not None:
                    raise
                say(f"Warning: {error}; falling back to the checkpoint before it.")
                self._broken.add(candidate)
        raise BrokenCheckpoint(f"none of the checkpoints {sorted(self._broken)} in {self.directory} can be read")

    def _candidates(self, step: int | str | None) -> list[int]:
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if step is None:
            return steps
        if step == "best":
            best = self.best_step()
            if best is None:
                raise FileNotFoundError(f"no checkpoint in {self.directory} has metrics[{self.best_metric!r}]")
            return [best]
        if step not in steps:
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {self.directory}, only of steps {sorted(steps)}"
            )
        return [int(step)]

    def _clear_leftovers(self) -> None:
        """Removes half-written steps before the first save, and renames broken steps to STEP.broken."""
        if not self._cleared and hosts.first():
            for half_written in self.directory.glob("*.orbax-checkpoint-tmp"):
                _remove(half_written)
        if not self._cleared:
            hosts.wait("clear leftovers")
        self._cleared = True
        if not self._broken:
            return
        if hosts.first():
            for step in self._broken:
                aside = self.directory / f"{step}.broken"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
        hosts.wait("rename broken steps")
        self._broken.clear()
        self._manager.reload()

    def _stored_metric(self, step: int) -> float | None:
        try:
            return (self._read_record(step)["metrics"] or {}).get(self.best_metric)
        except BrokenCheckpoint:
            return None  # `restore` reports it if this step is needed

    def _read_record(self, step: int) -> dict[str, Any]:
        try:
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            stored = self._manager.restore(step, args=args)["record"]
            record, checksum = stored["record"], stored["crc32"]
        except Exception as error:  # Orbax raises many types for a damaged directory
            raise BrokenCheckpoint(f"checkpoint {step} in {self.directory} is broken ({_first_line(error)})") from error
        if _record_checksum(record) != checksum:
            raise BrokenCheckpoint(f"checkpoint {step} in {self.directory} is broken (wrong checksum of its record)")
        return record

    def _read_arrays(self, step: int, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Reads the arrays of these record entries, by path."""
        restore = ocp.args.PyTreeRestore(
            item=dict.fromkeys(leaves, 0),
            restore_args={path: ocp.RestoreArgs(restore_type=np.ndarray) for path in leaves},
            partial_restore=True,
        )
        try:
            arrays = self._manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
            checksums = {path: stored_state.checksum(array) for path, array in arrays.items()}
        except Exception as error:
            raise BrokenCheckpoint(f"checkpoint {step} in {self.directory} is broken ({_first_line(error)})") from error
        for path, leaf in leaves.items():
            if checksums.get(path) != leaf["crc32"]:
                raise BrokenCheckpoint(f"checkpoint {step} in {self.directory} is broken (wrong checksum of {path})")
        return arrays


class _Preserve:
    """Tells Orbax which steps to keep: the last and the best."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, infos: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in infos)
        scored = sorted(self.checkpoints._scored(steps), key=lambda pair: (pair[1], pair[0]), reverse=True)
        kept = {*steps[-self.checkpoints.keep_last :], *(step for step, _ in scored[: self.checkpoints.keep_best])}
        return [info.step in kept for info in infos]


def _remove(directory: Path) -> None:
    """Removes a directory. A save that failed may still be writing into it for a moment: then it is removed again."""
    for _ in range(REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(directory)


def _wait_for_threads() -> None:
    """Waits until the threads of a save that failed have ended: Orbax leaves them alone, and they still write."""
    end = time.monotonic() + LINGERING
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            with contextlib.suppress(Exception):  # its own error, which we report already, or that time is over
                thread.join(max(0.0, end - time.monotonic()))


def _record_checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _check_finite(step: int, arrays: dict[str, np.ndarray]) -> None:
    for path, array in arrays.items():
        adapter = path.startswith(ADAPTERS)
        if not np.issubdtype(array.dtype, np.inexact) and not adapter:
            continue
        sound = np.isfinite(array) if adapter else ~np.isnan(array)  # an optimizer may start from an infinity
        if not sound.all():
            bad = int(array.size - sound.sum())
            where = f" (hypotheses {np.unique(np.nonzero(~sound)[0]).tolist()})" if adapter else ""
            raise NotFinite(
                f"step {step} is not saved: {path} has {bad} of {array.size} values that are not finite{where}"
            )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
