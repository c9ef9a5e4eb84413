"""One process for each library, which answers requests line by line: JSON in, JSON out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.bench_peers.config import OURS, Config

HERE = Path(__file__).parent
TORCH_SCRIPT = HERE / "torch_side.py"


def command_of(side: str, config: Config) -> list[str]:
    """Returns the command of a side, which needs the folders of base and adapters as further arguments."""
    if side == OURS:
        return [sys.executable, "-m", "experiments.bench_peers.ours", "scan" if config.scan else "list"]
    return [str(config.torch or sys.executable), str(TORCH_SCRIPT)]


class Side:
    """A process that runs one library. Use it as a context manager.

    Args:
      side: the library.
      config: tells the interpreter of torch.
      folder: base, adapters and tokens, see `ours.make`.
    """

    def __init__(self, side: str, config: Config, folder: Path):
        self.side = side
        command = [*command_of(side, config), str(folder / "base"), str(folder / "adapters")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request.

        Raises:
          RuntimeError: if the process has died; its errors are on stderr.
        """
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of {self.side} stopped with {self.process.wait()}; see its message above")
        return json.loads(line)

    def peak_bytes(self) -> int | None:
        """Returns the largest resident memory of the process so far; None where /proc does not tell it."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
