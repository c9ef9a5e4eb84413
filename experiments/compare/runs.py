"""Finished runs, and groups of those that differ in nothing but the seed."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcl_jax.json_io import read_json

# Options that say where things are, how fast they go or what else a run does: no number of a method depends on them.
# Not all of `Config.VOLATILE`: it also lets a run go on with other beams or more sources, and these change its numbers.
NO_INFLUENCE = (
    "workdir",
    "cache",
    "folder",
    "cache_features",
    "devices",
    "accumulate",
    "remat",
    "eval_every",
    "eval_items",
    "methods",
    "mle_decoders",
)
ABSENT = object()  # the value of an option that a run does not know


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What `config.json` and `results.json` hold."""

    workdir: Path
    config: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]

    @property
    def options(self) -> dict[str, Any]:
        """All that its numbers depend on, but the seed."""
        return {name: value for name, value in self.config.items() if name not in ("seed", *NO_INFLUENCE)}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, and what tells them from other groups."""

    name: str
    runs: list[FinishedRun]


def read(workdir: Path) -> FinishedRun:
    """The finished run in a directory.

    Raises:
      ValueError: if there is none, with the steps of one under way, or if it compares no methods.
    """
    if not workdir.is_dir():
        raise ValueError(f"--workdirs needs directories of finished runs, and {workdir} is none")
    path = workdir / "results.json"
    if not path.exists():
        progress = _progress(workdir / "metrics.jsonl")
        raise ValueError(f"{workdir} has no results.json: the run is not finished{progress}")
    if not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} has no config.json, which says what was run")
    results = _object(path)
    methods = results.get("methods")
    if not methods or not isinstance(methods, dict) or not all(isinstance(of, dict) for of in methods.values()):
        raise ValueError(
            f"{path} needs `methods`, as translation and captioning leave, and has {', '.join(results) or 'nothing'}; "
            "the other experiments print tables of their own"
        )
    return FinishedRun(workdir, _object(workdir / "config.json"), methods)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, as a run leaves it, got {type(value).__name__}")
    return value


def _progress(metrics: Path) -> str:
    """The last step of each training. The file may be growing: its last line may be torn."""
    text = metrics.read_text(encoding="utf-8", errors="replace") if metrics.exists() else ""
    try:
        steps = {line["run"]: line["step"] for line in map(json.loads, text.split("\n")[:-1])}
    except (ValueError, LookupError, TypeError) as error:
        return f" ({metrics} is damaged: {error})"
    return "".join(f", {name or 'it'} is at step {step}" for name, step in steps.items())


def group(runs: Sequence[FinishedRun], names: Sequence[str] = ()) -> list[Group]:
    """Groups in the order of their first runs, named by the options in which they differ; "" if there is one only.

    Args:
      names: one a run, instead: runs of one name are a group.
    Raises:
      ValueError: for names that do not fit the runs, or a method twice with the same options and seed.
    """
    if names and len(names) != len(runs):
        raise ValueError(f"--names needs one for each of the {len(runs)} --workdirs, got {len(names)}")
    groups: list[Group] = []
    for i, run in enumerate(runs):
        name = names[i] if names else ""
        same = (of for of in groups if (of.name == name if names else of.runs[0].options == run.options))
        if (of := next(same, None)) is not None:
            of.runs.append(run)
        else:
            groups.append(Group(name, [run]))
    for of in groups:
        _check_seeds(of)
    return groups if names else _named(groups)


def _check_seeds(group: Group) -> None:
    if differing := _differing([run.options for run in group.runs]):
        raise ValueError(f"--names: runs of one name may differ in the seed, {group.name!r} also in {differing}")
    first: dict[tuple[str, str], Path] = {}
    for run in group.runs:
        seed = str(run.config.get("seed"))
        if twice := [method for method in run.methods if (method, seed) in first]:
            raise ValueError(
                f"{first[twice[0], seed]} and {run.workdir} both have {twice[0]!r} with the same options and the same "
                f"seed, {seed}: leave one out, or tell them apart by --names, one for each of --workdirs"
            )
        first |= {(method, seed): run.workdir for method in run.methods}


def _named(groups: list[Group]) -> list[Group]:
    options = [of.runs[0].options for of in groups]
    names = _differing(options)
    describe = lambda of: ", ".join(f"{name}={_shown(of.get(name, ABSENT))}" for name in names)
    return [Group(describe(of), group.runs) for of, group in zip(options, groups, strict=True)]


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the options whose values are not all equal; 5 and 5.0 are."""
    names = dict.fromkeys(name for of in options for name in of)
    return [name for name in names if any(of.get(name, ABSENT) != options[0].get(name, ABSENT) for of in options)]


def _shown(option: Any) -> str:
    """As in config.json, texts without quotes."""
    if option is ABSENT:
        return "absent"
    text = json.dumps(option, ensure_ascii=False)
    return text[1:-1] if isinstance(option, str) else text
