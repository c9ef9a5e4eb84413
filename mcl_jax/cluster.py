"""What started this process: a SLURM step or a TPU slice of several hosts, whose processes should train together."""

import glob
import importlib.util
import os
import urllib.error
import urllib.request

METADATA = "http://{}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
PATIENCE = 5.0  # seconds to wait for the metadata server of a Google Cloud machine


def name() -> str:
    """Returns "a SLURM step of 4 processes" or "a TPU slice of 4 hosts"; nothing if this process was started alone.

    `jax.distributed.initialize()` finds the other processes of either. No device is used.

    Raises:
      ValueError: if an environment variable that counts processes is not a number.
    """
    if (tasks := _slurm_tasks()) > 1:
        return f"a SLURM step of {tasks} processes"
    if (workers := _tpu_hosts()) > 1:
        return f"a TPU slice of {workers} hosts"
    return ""


def has_node_for_itself() -> bool:
    """Whether this process is the only one of its SLURM step on this machine, so that all of its GPUs are its own."""
    return (tasks := _slurm_tasks()) > 1 and tasks == _number("SLURM_STEP_NUM_NODES")


def _slurm_tasks() -> int:
    """Returns the number of processes that `srun` started. It sets no such number in a batch script or a shell."""
    return _number("SLURM_STEP_NUM_TASKS") if "SLURM_PROCID" in os.environ else 1


def _number(variable: str) -> int:
    text = os.environ.get(variable, "1")
    if not text.isdecimal():
        raise ValueError(f"${variable} must be an integer, got {text!r}")
    return int(text)


def _tpu_hosts() -> int:
    """Returns the number of hosts of this machine's TPU slice, over all slices; 1 without a TPU.

    GKE puts their names into the environment. Machines of Compute Engine ask the metadata server.
    """
    if not _uses_tpu():
        return 1
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or _endpoints()
    return len(hosts.split(",")) * _number("MEGASCALE_NUM_SLICES")


def _uses_tpu() -> bool:
    """Whether JAX would use TPU chips of this machine."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = not platforms or "tpu" in platforms.split(",")
    return wanted and _has_chips() and importlib.util.find_spec("libtpu") is not None


def _has_chips() -> bool:
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _endpoints() -> str:
    """Returns the addresses of the slice's hosts, separated by commas; nothing where no metadata server knows them."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    url = METADATA.format(os.environ.get("GCE_METADATA_IP", "metadata.google.internal"))
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return ""
