"""Libraries that only parts of this package need: its extras (`[options.extras_require]` in setup.cfg).

A core install does not have them, so they are imported where they are used:

    with needed_for("reading a picture", "media"):
        from PIL import Image
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

# The first import of transformers warns that PyTorch is missing, but nothing here needs it.
NO_TORCH = "PyTorch was not found"
logging.getLogger("transformers").addFilter(lambda record: not record.getMessage().startswith(NO_TORCH))


class MissingExtra(ImportError):
    """A library of an extra that is not installed; the message names the command that installs it."""


@contextlib.contextmanager
def needed_for(what: str, *extras: str) -> Iterator[None]:
    """Turns the import error of a missing library into a `MissingExtra`. Use it as a context manager around imports.

    Args:
      what: the task that needs the libraries, such as "reading a picture"; the subject of the error.
      *extras: the extras that contain them.
    Raises:
      MissingExtra: if one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error, what, extras) from error


def tell_without_traceback(what: str, *extras: str) -> None:
    """Makes the process end with one sentence on standard error if it lacks a library; arguments as `needed_for`.

    Commands need this if they import libraries at the top of their modules. Other errors are shown as before.
    """
    previous = sys.excepthook

    def hook(kind, error, traceback):
        if isinstance(error, ModuleNotFoundError) and not _is_ours(error.name):
            error = _missing(error, what, extras)
        if isinstance(error, MissingExtra):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook


def _missing(error: ModuleNotFoundError, what: str, extras: tuple[str, ...]) -> MissingExtra:
    return MissingExtra(
        f"{what} needs the Python module {error.name}, which is not installed; run: "
        f"pip install 'mcl_jax[{','.join(extras)}]'",
        name=error.name,
    )


def _is_ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in ("mcl_jax", "experiments")
