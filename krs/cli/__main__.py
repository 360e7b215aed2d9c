"""`python -m krs.cli`, for launchers that start a module."""

from krs.cli.shell import main

if __name__ == "__main__":
    main()
