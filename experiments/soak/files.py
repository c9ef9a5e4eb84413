"""Damage to the files of a run, between two starts."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

from experiments.soak import toy
from mcl_jax.models import tensors

# Files without which a start cannot go on, from the folder of `toy.prepare` and from the run directory.
NEEDED = (
    f"{toy.BASE}/{tensors.SHARD.format(1, 2)}",
    f"{toy.BASE}/model.safetensors.index.json",
    toy.DATA,
    "config.json",
    "metrics.jsonl",
    "lock",
    "checkpoints",
)


def steps_on_disk(workdir: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, ascending."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def checkpoint(workdir: Path, step: int) -> Path:
    """Returns the folder of a checkpoint."""
    return workdir / "checkpoints" / str(step)


def _any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))


def truncate(folder: Path, rng: random.Random) -> str:
    """Cuts a file in the folder off; says which."""
    path = _any_file(folder, rng)
    size = path.stat().st_size
    left = rng.randrange(size)
    os.truncate(path, left)
    return f"{path.relative_to(folder.parent)} cut from {size} to {left} bytes"


def flip(folder: Path, rng: random.Random) -> str:
    """Flips a bit of a file in the folder; says which."""
    path = _any_file(folder, rng)
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.relative_to(folder.parent)} with bit {bit} of byte {place} flipped"


def block(path: Path, rng: random.Random, *, folder: bool = False) -> str:
    """Puts something that cannot be read in the place of a file, or of a folder, that is gone; says what."""
    if rng.random() < 0.5:
        path.symlink_to(path.parent / "unmounted" / path.name)
        return f"{path.name} replaced by a dangling link"
    if folder:
        path.write_text("not a directory")
        return f"{path.name} replaced by a file"
    path.mkdir()
    return f"{path.name} replaced by a directory"


def block_part(folder: Path, rng: random.Random) -> str:
    """Makes a file in the folder unreadable; says which."""
    path = _any_file(folder, rng)
    path.unlink()
    return f"{folder.name}: {block(path, rng)}"


@contextlib.contextmanager
def blocked(path: Path, rng: random.Random) -> Iterator[str]:
    """Makes an existing file or folder unreadable within the context, or one that a process would make; says how."""
    aside, there, folder = path.with_name(path.name + ".aside"), path.exists(), path.is_dir()
    if there:
        path.rename(aside)
    said = block(path, rng, folder=folder)
    try:
        yield said
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        if there:
            aside.rename(path)
