"""Packages that only some verbs need: imported when they run, and named with the extra that brings them where they are not here."""

from __future__ import annotations

import importlib
from typing import Any

from dnapretrain.errors import ConfigError


def need(module: str, why: str) -> Any:
    """The module, for example `need("pyarrow.parquet", "to read Parquet")`. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ConfigError(f"{why} needs {package}, which is not here ({error}). pip install 'dnapretrain[adapt]'") from None
