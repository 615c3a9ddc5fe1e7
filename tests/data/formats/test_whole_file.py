"""A file has its old content or its new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os

import pytest

from dnapretrain.data.formats.whole_file import whole_file, write_whole


@pytest.mark.parametrize("durable", [True, False])
def test_the_new_content_takes_the_place_of_the_old(tmp_path, durable):
    for text in ("first\n", "", "µ\n"):
        write_whole(tmp_path / "file", text, durable)
        assert (tmp_path / "file").read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("old", ["old\n", None])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, old):
    if old:
        (tmp_path / "file").write_text(old)

    def fails(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ValueError, match="stop"), whole_file(tmp_path / "file") as file:
        file.write("new" * 100_000)
        raise ValueError("stop")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([old] if old else [])
