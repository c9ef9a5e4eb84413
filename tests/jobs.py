"""Several real processes over loopback, none of which outlives its test."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 120.0  # seconds after which a wait is a failure


class Job:
    """Processes with four fake devices in all, which are dead when the context ends.

    Args:
      workdir: the run directory.
      command: the command of a process, from its number and a free port.
      processes: number of processes.
    """

    def __init__(self, workdir, command, processes=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.workdir, self.logs = workdir, []
        devices = f"--xla_force_host_platform_device_count={4 // processes}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": re.sub(r"--xla_force_host_platform_device_count=\d+", devices, os.environ["XLA_FLAGS"]),
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))),
        }
        self.processes = []
        for process in range(processes):
            log = open(workdir.with_name(f"{workdir.name}.log{process}"), "w+")  # noqa: SIM115
            self.logs.append(log)
            words = [sys.executable, *map(str, command(process, port))]
            self.processes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.wait(PATIENCE)
        for log in self.logs:
            log.close()

    def end(self):
        """The exit statuses."""
        return [process.wait(PATIENCE) for process in self.processes]

    def said(self, process):
        self.logs[process].seek(0)
        return self.logs[process].read()

    def all_said(self):
        return [self.said(process) for process in range(len(self.processes))]

    def wait_for_step(self, step, process=0):
        """Waits until a process has done a step, as `hosts_child.py` writes them."""
        steps, limit = self.workdir.with_name(f"{self.workdir.name}.{process}"), time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            done = re.findall(r"step (\d+)", steps.read_text()) if steps.exists() else []
            if done and int(done[-1]) >= step:
                return
            assert all(each.poll() is None for each in self.processes), self.all_said()
            time.sleep(0.05)
        raise AssertionError(f"step {step} never came: {self.all_said()}")
