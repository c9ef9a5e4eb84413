"""A server that forks processes, which start as any program does, but with imports and traces there already.

The server itself never touches a device or starts a thread, so that a fork is safe. A fork ends as any program ends,
with its own exit status, message and exit handlers.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

# Not imported for their names: every start needs them.
import grain  # noqa: F401
import tensorboardX.event_file_writer  # noqa: F401

from experiments.soak import long, model, toy
from mcl_jax.command_line import errors_in_a_line

REPORTS = 3  # descriptor of the reports in a fork


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Forks a process for each request, one at a time.

    Args:
      channel: connection to the owner. A request is a JSON object with the descriptors of standard output, standard
        error and reports; the answers are {"pid": ...} and, at the end of the process, {"status": ...}.
    Returns:
      In a fork the request; in the server None, once the owner is gone.
    """
    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 2**16, 3)
        if not message:
            return None
        pid = os.fork()
        if pid == 0:
            channel.close()
            for place, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, place)
                os.close(descriptor)
            # Made anew: Python's own remember whether they were files, and whether a file can be searched.
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps({"pid": pid}).encode())
        channel.send(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}).encode())


@errors_in_a_line()
def work(request: dict[str, Any]) -> None:
    """Does what a request asks for: {"action": "prepare" | "train" | "long", ...}."""
    action, folder = request.pop("action"), Path(request.pop("folder"))
    report = lambda line: os.write(REPORTS, f"{line}\n".encode())
    if action == "prepare":
        toy.prepare(folder)
    elif action == "train":
        toy.train(folder, Path(request.pop("workdir")), report=report, **request)
    else:
        long.train(folder, Path(request.pop("workdir")), report=report, **request)


if __name__ == "__main__":
    model.trace_ahead()
    with socket.socket(fileno=int(sys.argv[1])) as owner:
        asked = serve(owner)
    if asked is not None:
        work(asked)
