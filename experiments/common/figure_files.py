"""Saves figures as files, and prepares texts for them."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mcl_jax.json_io import write_bytes


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a figure completely or not at all, in the format of the file's ending, and closes it."""
    file = io.BytesIO()
    try:
        figure.savefig(file, dpi=150, format=path.suffix.removeprefix(".") or "png")
    finally:
        plt.close(figure)
    write_bytes(path, file.getvalue())


def literal(text: str) -> str:
    r"""Returns a text that matplotlib shows literally: "$a$" is no formula, and half an emoji is a question mark."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")
