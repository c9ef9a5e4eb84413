"""How commands fail: in one sentence on standard error with exit status 1, and without a traceback."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from mcl_jax.checkpoint import BrokenCheckpoint
from mcl_jax.console import say
from mcl_jax.extras import MissingExtra

# What is raised with a message for people; any other error is a fault of the program, and shows where it is.
FOR_PEOPLE = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, BrokenCheckpoint, MissingExtra)
CLOSED_PIPE, INTERRUPTED = 128 + 13, 128 + 2  # what a shell sees of a process that SIGPIPE or SIGINT ended
HINTS = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "free some space, and run the same command again",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.EEXIST: "a directory is needed there, choose another place",
    errno.ENOTDIR: "a directory is needed there, choose another place",
}


@contextlib.contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Around all that a command does; also a decorator.

    A reader of the output that goes away (`| head`) or a keyboard interrupt ends the command without a word. Texts that
    the terminal cannot show are printed with escapes.

    Raises:
      SystemExit: for every error with a message for people.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # Python flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except FOR_PEOPLE as error:
        raise SystemExit(f"error: {describe(error)}") from error


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """Around what others do not depend on: if it fails, a line says so, and all else goes on.

    Args:
      what: is made, such as "page.html".
    """
    try:
        yield
    except Exception as error:
        say(f"{what} could not be made: {describe(error)}")


def describe(error: BaseException) -> str:
    """The error as a sentence: of the system with its file and what to do, of the program with its type."""
    if isinstance(error, OSError) and error.errno is not None:
        place = "standard output" if error.filename is None else error.filename
        hint = f"; {HINTS[error.errno]}" if error.errno in HINTS else ""
        return f"{place}: {error.strerror}{hint}"
    if isinstance(error, FOR_PEOPLE) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
