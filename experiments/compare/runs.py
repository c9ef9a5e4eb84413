"""Reads finished runs, and groups runs that differ only in the seed."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.audio_captioning import config as audio_captioning
from experiments.common.options import NO_INFLUENCE, flat, options_with
from experiments.image_captioning import config as image_captioning
from experiments.translation import config as translation
from mcl_jax.json_io import parse, read_json

# These are not all VOLATILE options: a run may resume with other beams or more sources, which change its numbers.
IGNORED = {"seed"} | options_with(NO_INFLUENCE, translation.Config, image_captioning.Config, audio_captioning.Config)
ABSENT = object()  # stands for an option that a run does not have


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The content of `config.json`, by option, and of `results.json`."""

    workdir: Path
    config: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]

    @property
    def options(self) -> dict[str, Any]:
        """Options that change its numbers, except the seed."""
        return {name: value for name, value in self.config.items() if name not in IGNORED}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, with a name that distinguishes them from other groups."""

    name: str
    runs: list[FinishedRun]


def read(workdir: Path) -> FinishedRun:
    """Reads the finished run in a directory.

    Raises:
      ValueError: if there is no finished run (names the steps of an unfinished one), or it compares no methods.
    """
    if not workdir.is_dir():
        raise ValueError(f"--workdirs needs directories of finished runs, but {workdir} is not a directory")
    path = workdir / "results.json"
    if not path.exists():
        progress = _progress(workdir)
        raise ValueError(f"{workdir} has no results.json: the run is not finished{progress}")
    if not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} has no config.json, so the settings of the run are unknown")
    results = _object(path)
    methods = results.get("methods")
    if not methods or not isinstance(methods, dict) or not all(isinstance(m, dict) for m in methods.values()):
        raise ValueError(
            f"{path} must have `methods`, as translation and captioning write it, but has "
            f"{', '.join(results) or 'nothing'}; other experiments print their own tables"
        )
    return FinishedRun(workdir, flat(_object(workdir / "config.json")), methods)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, as a run writes it, got {type(value).__name__}")
    return value


def logged(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, each with `run` and `step`; the file may still grow or not be there.

    Raises:
      ValueError: if a complete line is damaged.
    """
    path = workdir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    try:
        lines = [parse(line) for line in text.split("\n")[:-1]]
        return [{**line, "run": str(line["run"]), "step": int(line["step"])} for line in lines]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _progress(workdir: Path) -> str:
    """Describes the last step of each training."""
    try:
        steps = {line["run"]: line["step"] for line in logged(workdir)}
    except ValueError as error:
        return f" ({error})"
    return "".join(f", {name or 'it'} is at step {step}" for name, step in steps.items())


def group(runs: Sequence[FinishedRun], names: Sequence[str] = ()) -> list[Group]:
    """Groups runs, in the order of their first runs.

    Args:
      runs: the runs.
      names: one name per run, where runs of the same name form a group. Without names, groups are named by the options
        in which they differ; a single group has the name "".
    Raises:
      ValueError: if the names do not fit the runs, or a method occurs twice with the same options and seed.
    """
    if names and len(names) != len(runs):
        raise ValueError(f"--names needs one name for each of the {len(runs)} --workdirs, got {len(names)}")
    groups: list[Group] = []
    for i, run in enumerate(runs):
        name = names[i] if names else ""
        same = (g for g in groups if (g.name == name if names else g.runs[0].options == run.options))
        if (existing := next(same, None)) is not None:
            existing.runs.append(run)
        else:
            groups.append(Group(name, [run]))
    for formed in groups:
        _check_seeds(formed)
    return groups if names else _named(groups)


def _check_seeds(group: Group) -> None:
    if differing := _differing([run.options for run in group.runs]):
        raise ValueError(
            f"--names: runs with the same name may differ only in the seed, but {group.name!r} also differs in "
            f"{differing}"
        )
    first: dict[tuple[str, str], Path] = {}
    for run in group.runs:
        seed = str(run.config.get("seed"))
        if twice := [method for method in run.methods if (method, seed) in first]:
            raise ValueError(
                f"{first[twice[0], seed]} and {run.workdir} both have {twice[0]!r} with the same options and the same "
                f"seed, {seed}; leave one out, or distinguish them with --names, one for each of --workdirs"
            )
        first |= {(method, seed): run.workdir for method in run.methods}


def _named(groups: list[Group]) -> list[Group]:
    """Names the groups by the options in which they differ."""
    names = _differing([group.runs[0].options for group in groups])

    def describe(options: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={_shown(options.get(name, ABSENT))}" for name in names)

    return [Group(describe(group.runs[0].options), group.runs) for group in groups]


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the options whose values differ; 5 and 5.0 are equal."""
    names = dict.fromkeys(name for one in options for name in one)
    return [name for name in names if any(one.get(name, ABSENT) != options[0].get(name, ABSENT) for one in options)]


def _shown(option: Any) -> str:
    """Formats an option as in config.json, but texts without quotes."""
    if option is ABSENT:
        return "absent"
    text = json.dumps(option, ensure_ascii=False)
    return text[1:-1] if isinstance(option, str) else text
