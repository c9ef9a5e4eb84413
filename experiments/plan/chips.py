"""The chips that a run can be planned for, and the topologies that `jax.experimental.topologies` describes."""

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
from typing import Any

import jax
import numpy as np

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip.

    Attributes:
      name: its name.
      memory: bytes that the compiler lets a program use.
      flops: FLOP/s of products in bfloat16.
      int8_flops: the same of products in int8.
      bandwidth: bytes per second between the chip and its memory.
      link: bytes per second of one link to another chip, in one direction.
    """

    name: str
    memory: int
    flops: float
    int8_flops: float
    bandwidth: float
    link: float


# Memory: what libtpu 0.0.42 reports when a program needs too much. Speeds: cloud.google.com/tpu/docs/v4, v5e, v5p and
# v6e, read in November 2026; a link has the chip's bandwidth between chips, halved for one direction, over its ports.
V4 = Chip("v4", int(30.75 * GIB), 275e12, 275e12, 1.2e12, 50e9)
V5E = Chip("v5e", int(15.75 * GIB), 197e12, 394e12, 819e9, 50e9)
V5P = Chip("v5p", int(95.74 * GIB), 459e12, 918e12, 2.765e12, 100e9)
V6E = Chip("v6e", int(31.25 * GIB), 918e12, 1836e12, 1.638e12, 100e9)
# Host devices, to try the planner without libtpu. Their speeds are unknown.
CPU = Chip("cpu", 16 * GIB, math.inf, math.inf, math.inf, math.inf)

TOPOLOGIES = {
    "v5e:2x4": V5E,
    "v5e:4x4": V5E,
    "v4:2x2x1": V4,
    "v4:2x2x2": V4,
    "v5p:2x2x1": V5P,
    "v5p:2x2x2": V5P,
    "v6e:2x4": V6E,
}
MEGACORE = {"chip_config_name": "megacore"}  # one device per chip, as on v4 machines
ONE_HOST = {"chips_per_host_bounds": [2, 4, 1]}  # v5litepod-8 and v6e-8 are one machine each; others have four chips
OPTIONS = {"v5e:2x4": ONE_HOST, "v6e:2x4": ONE_HOST, "v4:2x2x1": MEGACORE, "v4:2x2x2": MEGACORE}
CPU_DEVICES = "cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are connected.

    Attributes:
      name: its name, such as v5e:2x4.
      chip: the chip.
      devices: one device per chip, those of each host together.
      links: mean number of links per chip.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    links: float


def topology(name: str) -> Topology:
    """Returns a topology, without its hardware.

    Raises:
      ValueError: if the name is unknown, or the compiler for TPUs is not installed.
    """
    if name == CPU_DEVICES:
        return Topology(name, CPU, host_devices(8), 1.0)
    if name not in TOPOLOGIES:
        raise ValueError(f"--topology must be one of {', '.join([*TOPOLOGIES, CPU_DEVICES])}, got {name!r}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"planning for {name} needs libtpu, the compiler for TPUs; use make plan, which installs it")
    from jax.experimental import topologies

    _quiet()
    chip = TOPOLOGIES[name]
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **OPTIONS.get(name, {}))
    devices = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    return Topology(name, chip, tuple(devices), links_per_chip(name.partition(":")[2]))


def host_devices(count: int) -> tuple[Any, ...]:
    """Returns devices of the CPU; makes as many if JAX has not started."""
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"cpu:{count} needs {count} devices of the CPU, got {len(devices)}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return tuple(devices[:count])


def links_per_chip(grid: str) -> float:
    """Returns the mean number of links per chip of a grid such as 2x4, which has no links around its edges."""
    sizes = [int(size) for size in grid.split("x")]
    chips = np.array(list(itertools.product(*map(range, sizes))))
    return float((np.abs(chips[:, None] - chips[None]).sum(-1) == 1).sum() / len(chips))


def _quiet() -> None:
    """Keeps libtpu from asking Google's servers about this machine, printing that it found no TPU, and locking one."""
    for name, value in {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
