"""Curves of a run in Weights & Biases: one run there for each run directory, which a resumed run goes on with.

Environment variables of wandb hold, such as WANDB_MODE=offline and WANDB_ENTITY. Nothing is imported unless it is used.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mcl_jax.console import say
from mcl_jax.extras import needed_for
from mcl_jax.json_io import write_text


def imported() -> ModuleType:
    """Returns the module wandb.

    Raises:
      MissingExtra: if it is not installed.
    """
    with needed_for("logging to Weights & Biases", "wandb"):
        import wandb
    return wandb


class WandbRun:
    """An open run in Weights & Biases.

    Args:
      workdir: the run directory. wandb writes into DIR/wandb, and DIR/wandb/id is the id of the run there.
      project: project in Weights & Biases.
      config: settings of the run.
    Raises:
      MissingExtra: if wandb is not installed.
      RuntimeError: if it cannot start, for example without an account; says what to do.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        wandb, path = imported(), workdir / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_text(path, secrets.token_hex(8))
        settings = wandb.Settings(silent=True, console="off")  # the console is that of the run
        names = {"project": project, "name": workdir.name, "id": path.read_text()}
        try:
            self._run = wandb.init(**names, resume="allow", dir=str(workdir), config=dict(config), settings=settings)
        except Exception as error:
            raise RuntimeError(
                f"Weights & Biases cannot start: {str(error).rstrip('.')}. Run `wandb login`, or set "
                f"WANDB_MODE=offline to keep everything in {path.parent} until `wandb sync`"
            ) from error
        say(f"Weights & Biases: {f'offline, in {path.parent}' if self._run.offline else self._run.url}")
        self._tags: set[str] = set()

    def add(self, tag: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of these curves. Trainings of a run have steps of their own: TAG/step."""
        prefix = f"{tag}/" if tag else ""
        if tag not in self._tags:
            self._tags.add(tag)
            self._run.define_metric(f"{prefix}step")
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
        self._run.log({f"{prefix}{name}": value for name, value in values.items()} | {f"{prefix}step": step})

    def summarise(self, results: Mapping[str, Any]) -> None:
        """Adds the numbers among the results, which Weights & Biases shows in the table of runs."""
        self._run.summary.update(_numbers(results))

    def close(self, failed: bool) -> None:
        """Ends the run; waits until everything is uploaded."""
        self._run.finish(exit_code=int(failed))


def _numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers by their path, such as methods/mcl/test_loss; leaves out lists and texts."""
    found = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{name}"] = value
    return found
