"""The jobs of a queue: a file with a line for each."""

import dataclasses
import shlex
from pathlib import Path

from mcl_jax.json_io import read_text


@dataclasses.dataclass(frozen=True)
class Job:
    """One experiment.

    Attributes:
      name: name of its run directory.
      module: what `python -m` runs, such as "experiments.translation".
      options: its options but --workdir.
    """

    name: str
    module: str
    options: tuple[str, ...]

    @property
    def line(self) -> str:
        """The job as it stands in a file."""
        return shlex.join([self.name, self.module, *self.options])


def read_jobs(path: Path) -> list[Job]:
    """Reads a file with lines "NAME MODULE OPTIONS", quoted as in a shell; empty lines and those with # are left out.

    Raises:
      ValueError: if a line has no module, a name is no name of a folder or occurs twice, or there are no jobs; names
        file and line.
    """
    jobs: dict[str, Job] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not words:
            continue
        if len(words) < 2:
            raise ValueError(f"{path}:{number}: a job needs NAME MODULE OPTIONS, got {line!r}")
        name, module, *options = words
        if name != Path(name).name or name in (".", ".."):
            raise ValueError(f"{path}:{number}: the name of a job is that of a folder, got {name!r}")
        if name in jobs:
            raise ValueError(f"{path}:{number}: the name {name!r} occurs twice; each job needs a run directory")
        if "--workdir" in options:
            raise ValueError(f"{path}:{number}: --workdir is OUT/{name} and not to be given")
        jobs[name] = Job(name, module, tuple(options))
    if not jobs:
        raise ValueError(f"{path} has no jobs, that is lines NAME MODULE OPTIONS")
    return list(jobs.values())
