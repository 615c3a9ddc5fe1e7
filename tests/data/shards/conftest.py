"""The inputs here are small, and are scanned before their turn as large ones are."""

from __future__ import annotations

import pytest

from dnapretrain.data.shards import assemble


@pytest.fixture(autouse=True)
def small_inputs_are_scanned_ahead_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "SCANNED_AHEAD", 0)
