"""Several processes, usually one per host, that train together over all their devices.

    hosts.start("10.0.0.1:1234", 2, 0)       # before anything touches a device; see `jax.distributed`

All processes run the same program. Process 0 owns the run directory and the console. What only one process can know (a
signal, a clock, a file) is agreed on before the program branches on it: processes that branch differently would wait
for each other for ever. With one process, nothing here costs anything.
"""

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from mcl_jax import cluster

T = TypeVar("T")
TIMEOUT = 60  # seconds without a sign of life after which a process counts as dead
START_TIMEOUT = 300  # seconds in which all processes must have started
PREPARATION_TIMEOUT = 24 * 3600  # seconds that process 0 may take to download or to draw; its death ends a wait sooner
LINGER = 2.0  # seconds in which other processes can report an error of their own before process 0 leaves
STOPPED = 143  # exit status of a process ended by SIGTERM


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, *, timeout: int = TIMEOUT
) -> None:
    """Connects this process with the others. All processes but the first print nothing but errors from now on.

    JAX's preemption service is switched off: it would take SIGTERM over, and `mcl_jax.run` handles SIGTERM and Ctrl-C.
    A process that has a node of a SLURM step for itself uses all of its GPUs; otherwise each uses one, as JAX sets it.

    Args:
      coordinator: "HOST:PORT" of process 0; None if the cluster says it (TPU pods, SLURM).
      count: number of processes; None if the cluster says it.
      index: number of this process; None if the cluster says it.
      timeout: seconds without a sign of life after which a process counts as dead, and the others end.
    Raises:
      ValueError: if an argument is missing and no cluster says it.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=PREPARATION_TIMEOUT,
        )
    except ValueError as error:
        raise ValueError(
            f"no TPU pod or SLURM step says how the processes find each other ({error}); give the address of process "
            "0, the number of processes and the number of this process"
        ) from error
    if cluster.has_node_for_itself():  # JAX leaves each process of a SLURM step one GPU
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
        warnings.simplefilter("ignore")


def several() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this process owns the run directory and the console."""
    return not several() or jax.process_index() == 0


def share() -> dict[str, int]:
    """Returns the part of each batch that this process reads, as arguments of `data.train_batches`."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()} if several() else {}


def any_of(wish: bool) -> bool:
    """Returns whether any process has the wish. All processes must call it."""
    return bool(multihost_utils.process_allgather(np.array(wish)).any()) if several() else wish


def same(value: int) -> bool:
    """Returns whether all processes have the same number. All processes must call it."""
    return not several() or len(np.unique(multihost_utils.process_allgather(np.array(value)))) == 1


def wait(name: str) -> None:
    """Waits until all processes are here. Does not use the devices, so it may take long."""
    if several():
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=PREPARATION_TIMEOUT * 1000)


def on_first(action: Callable[[], T], what: str) -> T | None:
    """Runs an action in process 0 while the others wait; they return None.

    Args:
      action: the action.
      what: what it does, such as "write results.json", for the error in other processes.
    Raises:
      RuntimeError: in the other processes, if the action fails in process 0, where its own error is raised.
    """
    if not several():
        return action()
    result, error = None, None
    if first():
        try:
            result = action()
        except BaseException as problem:  # told to the others before it is raised
            error = problem
    wait(what)
    failed = any_of(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(f"process 0 could not {what}; its message says why")
    return result


@contextlib.contextmanager
def first_before_others(what: str) -> Iterator[None]:
    """Runs a block in process 0 before the others, which then find what it left in a cache that they share."""
    if several() and not first():
        wait(what)
    try:
        yield
    finally:
        if several() and first():
            wait(what)


class Rounds:
    """Agrees on wishes every few steps, at steps that all processes know in advance.

    A round waits for the devices, so it is not held at each step. With one process, each call is a round and free.

    Args:
      seconds: time between two rounds, as far as the speed of the steps so far tells.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds, self._next, self._last = seconds, 0, None

    def __call__(self, step: int, *wishes: bool) -> tuple[bool, ...]:
        """Returns whether any process has each of the wishes; no wish between two rounds."""
        if not several():
            return wishes
        if step < self._next:
            return (False,) * len(wishes)
        now = time.monotonic()
        pause = 1
        if self._last is not None:
            last_step, then = self._last
            pause = max(1, int(self._seconds * (step - last_step) / max(now - then, 1e-9)))
        self._last = step, now
        told = multihost_utils.process_allgather(np.array([*wishes, pause], np.int32))
        self._next = step + int(told[:, -1].min())
        return tuple(told[:, :-1].any(0).tolist())


@contextlib.contextmanager
def no_farewell() -> Iterator[None]:
    """Ends a process that fails at once, since JAX would wait at exit for processes that wait for this one."""
    try:
        yield
    except SystemExit as end:
        if not several() or end.code in (None, 0, STOPPED):  # all processes stop together
            raise
        _leave(end.code)
    except BaseException:
        if not several():
            raise
        _leave(traceback.format_exc())


def _leave(code: int | str) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(code, str):
            print(f"process {jax.process_index()}: {code}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    if first():
        time.sleep(LINGER)  # the other processes end when process 0 does
    os._exit(1 if isinstance(code, str) else code)
