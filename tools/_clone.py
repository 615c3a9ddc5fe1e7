"""Runs a verb of this clone, installed or not. Each script beside this file names one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def run(verb: str) -> NoReturn:
    """Run `dnapretrain VERB` with the script's arguments and exit with its code."""
    root = str(Path(__file__).resolve().parents[1])
    sys.path[0] = root  # in place of this folder, whose names other packages bear too
    # Local ranks are started as `python -m dnapretrain`.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    from dnapretrain.cli import main

    raise SystemExit(main([verb, *sys.argv[1:]]))
