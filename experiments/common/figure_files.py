"""Figures as files, and texts in them."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mcl_jax.json_io import write_bytes


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a figure in the format that its name ends in, as a whole or not at all, and closes it."""
    file = io.BytesIO()
    try:
        figure.savefig(file, dpi=150, format=path.suffix.removeprefix(".") or "png")
    finally:
        plt.close(figure)
    write_bytes(path, file.getvalue())


def literal(text: str) -> str:
    r"""The text as matplotlib shows it as it is: "$a$" is no formula, half an emoji is a question mark."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")
