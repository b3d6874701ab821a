"""The command line: `gentickets`, or `python -m gentickets`."""

import sys


def main() -> None:
    try:
        from gentickets.cli import main as program
    except KeyboardInterrupt:  # while the program is loaded
        print("stopped; nothing had begun", file=sys.stderr)
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
