"""Several processes of one run: `--distributed`, or by themselves on a TPU slice and in a SLURM step."""

import dataclasses
import math
import os
import re
from dataclasses import field

from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax import cluster, hosts
from mcl_jax.console import say


@dataclasses.dataclass(frozen=True)
class Hosts(Options):
    """Several processes that train together. Start the same command in each.

    The processes of a TPU slice of several hosts, or of a SLURM step, train together unless --alone is given.
    """

    distributed: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Train together with the same command in other processes, usually one per host. Say how they find each other with
    the next three options. On a TPU slice or in a SLURM step, this happens by itself."""
    coordinator: str | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """HOST:PORT at which process 0 can be reached. The default is $JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = field(default=None, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Number of processes. The default is $JAX_NUM_PROCESSES."""
    process_id: int | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Number of this process, from 0. The default is $JAX_PROCESS_ID."""
    alone: bool = field(default=False, metadata=VOLATILE | NO_INFLUENCE)
    """Train without the other processes of a SLURM step, each of which has a run directory of its own."""
    process_timeout: int = field(default=hosts.TIMEOUT, metadata=COUNT | VOLATILE | NO_INFLUENCE)
    """Seconds without a sign of life after which a process counts as dead, and the others end."""

    def check(self) -> None:
        super().check()
        given = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed and any(value is not None for value in given):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
        if self.distributed and self.alone:
            raise ValueError("--distributed and --alone contradict each other; give one of them")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"--coordinator must be like 10.0.0.1:1234, got {self.coordinator!r}")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or math.inf):
            raise ValueError(f"--process-id must be from 0 to --num-processes - 1, got {self.process_id}")

    def start(self) -> None:
        """Connects the processes. Call it before anything uses a device.

        Raises:
          ValueError: if an environment variable is wrong, or a value is missing that the cluster does not say.
        """
        found = "" if self.distributed or self.alone else cluster.name()
        if not self.distributed and not found:
            return
        count = _environment("JAX_NUM_PROCESSES") if self.num_processes is None else self.num_processes
        index = _environment("JAX_PROCESS_ID") if self.process_id is None else self.process_id
        coordinator = self.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
        hosts.start(coordinator, count, index, timeout=self.process_timeout)
        if found:
            say(f"This is process 0 of {found}, which train together. Processes with runs of their own need --alone.")


def _environment(name: str) -> int | None:
    """Returns an integer of the environment. Raises a ValueError if it is something else."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"${name} must be an integer, got {text!r}")
    return None if text is None else int(text)
