"""Damage to the files of a run, between two starts."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

from experiments.soak import toy

# Files without which a start cannot go on, from the folder of `toy.prepare` and from the run directory.
NEEDED = (
    f"{toy.BASE}/model-00001-of-00002.safetensors",
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


def block(path: Path, rng: random.Random) -> str:
    """Puts something that cannot be read in the place of a file or folder that is gone; says what."""
    if rng.random() < 0.5:
        path.mkdir(parents=True)
        return f"{path.name} replaced by a directory"
    path.symlink_to(path.parent / "unmounted" / path.name)
    return f"{path.name} replaced by a dangling link"


def block_part(folder: Path, rng: random.Random) -> str:
    """Makes a file in the folder unreadable; says which."""
    path = _any_file(folder, rng)
    path.unlink()
    return f"{folder.name}: {block(path, rng)}"


@contextlib.contextmanager
def blocked(path: Path, rng: random.Random) -> Iterator[str]:
    """Makes a file or folder unreadable within the context; yields what happened to it.

    A directory in the place of a directory would be readable, so that one becomes a file.
    """
    aside = path.with_name(path.name + ".aside")
    exists, folder = path.exists(), path.is_dir()
    if exists:
        path.rename(aside)
    if folder and rng.random() < 0.5:
        path.write_text("not a directory")
        said = f"{path.name} replaced by a file"
    else:
        said = block(path, rng) if not folder else _dangling(path)
    try:
        yield said
    finally:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        if exists:
            aside.rename(path)


def _dangling(path: Path) -> str:
    path.symlink_to(path.parent / "unmounted" / path.name)
    return f"{path.name} replaced by a dangling link"
