"""Error handling of commands: one sentence on standard error, exit status 1, and no traceback."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator

import jax

from mcl_jax import hosts
from mcl_jax.checkpoint import BrokenCheckpoint
from mcl_jax.console import say
from mcl_jax.extras import MissingExtra

# Errors whose message is written for users. Any other error is a bug and keeps its traceback.
FOR_PEOPLE = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, BrokenCheckpoint, MissingExtra)
LOST = re.compile("Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection")  # in errors of jax after a process died
CLOSED_PIPE, INTERRUPTED = 128 + 13, 128 + 2  # exit status in a shell of a process that SIGPIPE or SIGINT ended
HINTS = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "choose another path",
    errno.EEXIST: "the path must be a directory; choose another one",
    errno.ENOTDIR: "the path must be a directory; choose another one",
}


@contextlib.contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Turns the errors of a command into one line. Use it as a context manager or as a decorator.

    A closed output pipe (`| head`) or a keyboard interrupt ends the command silently. Characters that the terminal
    cannot show are printed as escapes. Of several processes, one that fails ends at once, with its number before the
    error.

    Raises:
      SystemExit: in place of every error whose message is written for users.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    with hosts.no_farewell():
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError):  # Python flushes once more at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(CLOSED_PIPE) from None
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except FOR_PEOPLE as error:
            raise SystemExit(f"error: {describe(error)}") from error


@contextlib.contextmanager
def attempt(product: str) -> Iterator[None]:
    """Runs an optional step: if it fails, prints one line and carries on.

    Args:
      product: what the step makes, such as "page.html".
    """
    try:
        yield
    except Exception as error:
        say(f"{product} could not be made: {describe(error)}")


def describe(error: BaseException) -> str:
    """Describes an error in one sentence: a system error with its file and a remedy, a bug with its type."""
    if isinstance(error, OSError) and error.errno is not None:
        place = "standard output" if error.filename is None else error.filename
        hint = f"; {HINTS[error.errno]}" if error.errno in HINTS else ""
        return f"{place}: {error.strerror}{hint}"
    if isinstance(error, jax.errors.JaxRuntimeError) and hosts.several() and LOST.search(str(error)):
        return (
            "another process has ended or cannot be reached; its own message may say why. Run the same command in all "
            f"processes again: it resumes from the last checkpoint ({str(error).splitlines()[0]})"
        )
    if isinstance(error, FOR_PEOPLE) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
