"""Fuzz targets: what a run leaves behind: its directory, its checkpoints, the recipe of its answers."""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

import mcl_jax as mcl
from mcl_jax.answer.recipe import Recipe
from mcl_jax.checkpoint import BrokenCheckpoint, Checkpoints
from mcl_jax.lock import DirectoryInUse
from mcl_jax.run import Run
from tests.fuzz import drawn
from tests.fuzz.targets import READ, Fault, Target, reads

CONFIG = {"seed": 3, "lora": {"rank": 5, "targets": ["q_proj"]}, "empty": {}}
METRICS = [{"run": "", "step": 1, "loss": 2.5}, {"run": "mcl", "step": 2, "loss": None, "win_rate": [0.5, 0.5]}]
RESULTS = [{"methods": {"mcl": {"loss": 2.5}}}]
OWNER = [{"pid": os.getpid(), "host": "elsewhere", "since": "now", "beats": 0}]


@st.composite
def directories(draw: Any) -> dict[str, bytes]:
    """The files of a run, one or two of them damaged."""
    files = {
        "config.json": drawn.as_json(CONFIG),
        "metrics.jsonl": b"".join(drawn.as_json(line) + b"\n" for line in METRICS),
    }
    for name in draw(st.sets(st.sampled_from(["config.json", "metrics.jsonl", "results.json", "lock"]), max_size=2)):
        seeds = {"config.json": [CONFIG], "metrics.jsonl": METRICS, "results.json": RESULTS, "lock": OWNER}[name]
        files[name] = draw(drawn.json_files(seeds))
        if name == "metrics.jsonl":
            files[name] = files[name].replace(b"\n", b"") + draw(st.sampled_from([b"\n", b"", b'\n{"run": "x", "st']))
    if "lock" in files:
        files["lock"] = files["lock"].replace(b"elsewhere", os.uname().nodename.encode())  # no wait for other machines
    return files


def check_run(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)

    def read() -> list[dict[str, Any]]:
        with Run(folder, CONFIG) as run:
            if run.finished:
                run.results()
                return []
            run.lines()
            run.rewind("mcl", 1)
            run.log(10**9, {"loss": 1.0})
            return run.lines()

    names = ("config.json", "metrics.jsonl", "results.json", "lock", folder.name)
    outcome, lines = reads(read, *names, "log: step", also=(DirectoryInUse,))
    if outcome == READ and lines and lines[-1] != {"run": "", "step": 10**9, "loss": 1.0}:
        raise Fault(f"another line than the one that was logged: {lines[-1]}")
    return outcome


# ------------------------------------------------------------------------------------------------------- Checkpoints


@functools.cache
def checkpoints() -> tuple[Path, Any, tempfile.TemporaryDirectory]:
    """A folder with steps 1 and 2, the adapters of both, and what removes the folder in the end."""
    keeps = tempfile.TemporaryDirectory(prefix="fuzz-kept-")
    adapters = lambda step: {"up": {"a": np.full((3, 5, 2), step, np.float32), "b": np.zeros((3, 2, 7), np.float32)}}
    with Checkpoints(Path(keeps.name) / "c", async_=False) as saved:
        for step in (1, 2):
            state = mcl.TrainState(
                params={},
                adapters=adapters(step),
                opt_state=(np.ones(3, np.float32),),
                objective_state=None,
                rng=jax.random.key(0),
                step=np.int32(step),
            )
            saved.save(state, metrics={"eval_loss": float(step)}, data={"epoch": step}, config=CONFIG)
    return Path(keeps.name) / "c", {step: adapters(step) for step in (1, 2)}, keeps


@st.composite
def damages(draw: Any) -> list[tuple[int, str, bytes]]:
    """Changes of files: which one (modulo their number), how, and with what."""
    kinds = st.sampled_from(["flip", "flip", "cut", "empty", "remove", "folder", "random", "digits"])
    return draw(
        st.lists(st.tuples(st.integers(0, 10**4), kinds, st.binary(min_size=1, max_size=8)), min_size=1, max_size=3)
    )


def check_checkpoint(folder: Path, changes: list[tuple[int, str, bytes]]) -> str:
    source, expected, _ = checkpoints()
    shutil.copytree(source, folder / "c")
    for which, how, data in changes:
        files = sorted(path for path in (folder / "c").rglob("*") if path.is_file())
        if files:
            _damage(files[which % len(files)], how, data, which)

    def read() -> tuple[int, Any]:
        with Checkpoints(folder / "c", async_=False) as saved:
            return saved.latest_step(), saved.adapters()

    outcome, found = reads(read, str(folder / "c"), also=(BrokenCheckpoint,))
    if outcome == READ:
        same = [all(np.array_equal(found[1]["up"][ab], e["up"][ab]) for ab in "ab") for e in expected.values()]
        if not any(same):
            raise Fault(f"adapters that were never saved: {found}")
    return outcome


def _damage(file: Path, how: str, data: bytes, which: int) -> None:
    content = file.read_bytes()
    at = which // 7 % (len(content) + 1)
    match how:
        case "flip":
            file.write_bytes(content[:at] + data + content[at + len(data) :])
        case "cut" | "empty":
            file.write_bytes(content[: at if how == "cut" else 0])
        case "remove":
            file.unlink()
        case "folder":
            file.unlink()
            file.mkdir()
        case "random":
            file.write_bytes(data)
        case _:
            file.write_bytes(content.replace(b"1", b"9999999999"))


# ------------------------------------------------------------------------------------------------------------ Recipe

RECIPES = [
    {"base": "base", "kind": "text", "prompt": "{source}", "lora": {"rank": 5, "alpha": 7, "targets": ["q_proj"]}},
    {"base": "b", "decoder": {"name": "BeamSearch", "num_beams": 5, "num_return": 3}, "dtype": "bfloat16"},
    {
        "base": "b",
        "kind": "clips",
        "prompt": "x",
        "decoder": {"name": "Sampling", "top_p": 0.9},
        "seconds": 3.5,
        "tag": "a",
    },
]


def check_recipe(folder: Path, content: bytes) -> str:
    (folder / "answer.json").write_bytes(content)
    outcome, recipe = reads(lambda: Recipe.load(folder), "answer.json")
    if outcome == READ:
        recipe.save(folder)
        if Recipe.load(folder) != recipe:
            raise Fault(f"written and read again, {recipe} is another one")
    return outcome


TARGETS = [
    Target("run directory", directories, check_run, 1.5),
    Target("checkpoints", damages, check_checkpoint, 0.3),
    Target(
        "answer.json", lambda: drawn.json_files(RECIPES, ["lora", "decoder", "seconds", "window", "best"]), check_recipe
    ),
]
