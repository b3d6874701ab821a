"""The command line: thin. Every command ends by saying where its results lie."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from gentickets import __version__
from gentickets.cli import finding, shipping, telling, tickets, together  # noqa: F401  # each puts its commands in
from gentickets.cli.program import app, err, out
from gentickets.errors import GenticketsError
from gentickets.interruptions import STOPPED, interruptions
from gentickets.terminal import bear_with_any_encoding

__all__ = ["app", "main"]


def main() -> None:
    """The program. A user's mistake is one line on stderr and exit code 2; Ctrl-C is exit code 130; see `find`."""
    bear_with_any_encoding()
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched and os.environ["RANK"] != "0":  # the first of them does what is asked
        from gentickets.lab.run.ranks import serve_launched

        serve_launched()
        sys.exit(0)
    asked_to_stop = interruptions()
    asked_to_stop.hear()
    if sys.argv[1:2] == ["help"]:
        sys.argv[1:] = [*sys.argv[2:], "--help"]
    try:
        code = app(standalone_mode=False)
    except GenticketsError as error:
        code = _complain(str(error))
    except KeyboardInterrupt:
        code = STOPPED
    except SystemExit as error:
        if (own := _own_fault(error)) is None:
            raise
        code = _complain(own)
    except OSError as error:
        if error.strerror is None:
            raise
        _drop_what_cannot_be_written()
        code = _complain(f"{error.filename or 'what is printed cannot be written'}: {error.strerror}")
    except typer.Abort as error:
        if isinstance(error.__cause__, EOFError):  # typer takes the end of any file for that of the terminal
            raise error.__cause__ from None
        code = STOPPED
    except Exception as error:
        if _is_a(error, "NoArgsIsHelpError"):
            out.print(error.format_message())  # type: ignore[attr-defined]
            code = 0
        elif _is_a(error, "UsageError"):
            code = _complain(f"{error.format_message()}; see --help")  # type: ignore[attr-defined]
        elif (own := _own_fault(error)) is not None:
            code = _complain(own)
        elif asked_to_stop.came:  # an import that was stopped may say so with an error of its own
            code = STOPPED
        else:
            raise
    asked_to_stop.deafen()
    if launched:
        from gentickets.lab.run.ranks import end_launched

        end_launched()
    if code == STOPPED:
        err.print("stopped; the same command goes on from here")
    sys.exit(code)


def _drop_what_cannot_be_written() -> None:
    """Where standard output is full or gone, what Python still holds for it would be a second error, on leaving."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> int:
    err.print(Text.assemble(("gentickets:", "bold red"), f" {' '.join(message.split())}"))
    return 2


def _is_a(error: Exception, name: str) -> bool:
    """Whether typer says so of the call itself: its classes move between its releases."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _own_fault(error: BaseException) -> str | None:
    """Where in the user's own code an error arose, in words; None where it did not."""
    from gentickets.catalogue import own_fault

    return own_fault(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gentickets.compiled import missing

        reason = missing()
        out.print(f"gentickets {__version__}{'' if reason is None else f'; masked layers stay dense: {reason}'}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass
