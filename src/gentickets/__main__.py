"""The command line: `gentickets`, or `python -m gentickets`."""

from gentickets.interruptions import STOPPED, interruptions, leave


def main() -> None:
    asked_to_stop = interruptions()
    asked_to_stop.hear()
    try:
        from gentickets.cli import main as program

        program()
    except KeyboardInterrupt:  # between the program's last word and its end
        asked_to_stop.deafen()
        leave()
    except SystemExit as end:
        # A package's C code that an interruption passed through may have noted it, to end us by that signal.
        if end.code == STOPPED:
            leave(said=True)
        raise


if __name__ == "__main__":
    main()
