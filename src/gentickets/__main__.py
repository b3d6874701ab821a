"""`python -m gentickets`: the command line."""

from gentickets.cli import main

if __name__ == "__main__":
    main()
