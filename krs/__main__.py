"""`python -m krs` is the command `krs`."""

from krs.cli.shell import main

if __name__ == "__main__":
    main()
