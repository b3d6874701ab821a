"""Whatever a library raises at a damaged file, as one line that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gentickets.errors import DataError
from gentickets.terminal import printable


def shown(name: str | Path) -> str:
    """A name as it may stand in a message: one line, of characters that every terminal can be given."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return printable(text).replace("\n", "\\n").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@contextlib.contextmanager
def told(path: str | Path, what: str) -> Iterator[None]:
    """Turns any exception into a `DataError`: no `what` that can be read, and why."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # libraries let through whatever their decoders raise
        raise DataError(f"source: {shown(path)} is no {what} that can be read ({line(error)}): get it anew") from error


def line(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters."""
    return shown(" ".join(str(error).split()))[:200] or type(error).__name__
