"""The processes that write a checkpoint: a fork of a rank must not touch what only the rank can."""

from __future__ import annotations

import gc
import os
import warnings

import pytest


class GroupOfARank:
    """As a process group of gloo: taking it down waits for threads, which a fork does not have. Here it says where it was taken down."""

    def __init__(self, path):
        self.path = path
        self.itself = self

    def __del__(self):
        self.path.write_text(str(os.getpid()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_writer_takes_down_nothing_that_the_rank_has_let_go_of(tmp_path):
    from dnapretrain.train.checkpoint_writer import _reap, _receive, _start

    def work():
        made_here = GroupOfARank(tmp_path / "of the writer")
        del made_here
        return gc.collect()

    gc.collect()
    gc.disable()
    try:
        GroupOfARank(tmp_path / "of the rank")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = _start(work)
        state, _ = _receive(child)
        child.pipe.close()
        _reap(child.pid)
        assert state == "ok"
        assert (tmp_path / "of the writer").read_text() == str(child.pid), "the writer collects its own"
        assert not (tmp_path / "of the rank").exists()
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "of the rank").read_text() == str(os.getpid())
