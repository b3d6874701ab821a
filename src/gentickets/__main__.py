"""The command line: `gentickets`, or `python -m gentickets`."""

from gentickets.interruptions import interruptions, leave


def main() -> None:
    asked_to_stop = interruptions()
    asked_to_stop.hear()
    try:
        from gentickets.cli import main as program

        program()
    except KeyboardInterrupt:  # between the program's last word and its end
        asked_to_stop.deafen()
        leave()


if __name__ == "__main__":
    main()
