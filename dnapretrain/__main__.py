"""`python -m dnapretrain` is the command line."""

from dnapretrain.cli import main

if __name__ == "__main__":  # checkpoint writers are spawned and import this file again
    raise SystemExit(main())
