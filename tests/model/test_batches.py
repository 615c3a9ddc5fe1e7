"""Global batches are a function of sample ids alone: the same for any number of data-parallel ranks."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dnapretrain.config_file import config_from_dict
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.model.batches import BatchPlace, direct_readers, document_mask, held_out_batches, step_batches
from dnapretrain.model.context_parallel import in_order, own_part
from dnapretrain.model.loss import weighted_loss


@pytest.fixture
def streams(tiny_config):
    config = config_from_dict(tiny_config())
    tokenizer = build_tokenizer(config.tokenizer)
    return train_stream(config.data, tokenizer), held_out_streams(config.data, tokenizer)["valid"]


def _global_batch(stream, size, micro, ranks, first):
    rows = []
    for rank in range(ranks):
        place = BatchPlace(micro, rank, ranks, torch.device("cpu"), (True,), 0, False)
        (batches,) = step_batches(direct_readers(stream, place), place, first, size // (micro * ranks))
        rows.append(list(batches))
    return torch.cat([rows[rank][index].tokens_BS for index in range(len(rows[0])) for rank in range(ranks)])


@pytest.mark.parametrize("first", [0, 24, 1_000_000])
def test_same_global_batch_for_any_number_of_ranks(streams, first):
    stream, _ = streams
    expected = torch.from_numpy(stream.batch(np.arange(first, first + 24)).tokens)
    for ranks, micro in ((1, 24), (1, 2), (2, 2), (4, 2), (4, 6), (3, 4)):
        assert torch.equal(_global_batch(stream, 24, micro, ranks, first), expected)


def test_held_out_samples_are_each_scored_once(streams):
    _, stream = streams
    total = 0.0
    for rank in range(3):
        place = BatchPlace(4, rank, 3, torch.device("cpu"), (True,), 0, False)
        (batches,) = held_out_batches(stream, place, 0, 10, stream.num_samples)
        total += sum(float(batch.loss_mask_BS.sum()) for batch in batches)
    assert stream.num_samples < 3 * 4 * 10
    assert total == float(stream.batch(np.arange(stream.num_samples)).loss_mask.sum())


def test_middle_stages_read_nothing(streams):
    place = BatchPlace(2, 0, 1, torch.device("cpu"), (True, False), 0, False)
    first, middle = step_batches(direct_readers(streams[0], place), place, 0, 3)
    assert [batch is None for batch in middle] == [True] * 3
    assert next(first).tokens_BS.shape == (2, 32)


def test_weighted_loss_counts_targets_and_weights():
    losses = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    mask = torch.tensor([[1.0, 0.0], [0.1, 1.0]])
    correct = torch.tensor([[True, True], [False, True]])
    loss_sum, targets, report = weighted_loss(mask, 7, (losses, correct))
    assert loss_sum.item() == pytest.approx(1.0 + 0.4 + 8.0)
    assert targets.item() == 3 and targets.dtype == torch.int
    assert report.tolist() == pytest.approx([9.4, 2.1, 3.0, 2.0, 7.0, 0.0, 0.0])
    bits, is_word = torch.tensor([[1.5, 5.0], [3.0, 7.0]]), torch.tensor([[True, True], [True, False]])
    *_, report = weighted_loss(mask, 7, (losses, correct, bits, is_word))
    assert report.tolist() == pytest.approx([9.4, 2.1, 3.0, 2.0, 7.0, 1.5 + 0.3, 1.1])


def _place_of(rank, size):
    return BatchPlace(1, 0, 1, torch.device("cpu"), (True,), 0, False, context_parallel_rank=rank, context_parallel_size=size)


@pytest.mark.skipif("DNAPRETRAIN_TEST_DATA" not in os.environ, reason="DNAPRETRAIN_TEST_DATA is not set")
def test_a_sample_of_a_million_bases_in_sixteen_parts(tiny_config, tmp_path):
    """E. coli in samples of 1,048,576 tokens of one base: parts, put together, are what the genome has there, labels one further."""
    from dnapretrain.data.shards.preprocess import preprocess

    length, cp = 2**20, 16
    preprocess([Path(os.environ["DNAPRETRAIN_TEST_DATA"]) / "genomes" / "ecoli_K12_MG1655_NC_000913.3.fa.gz"], tmp_path / "coli")
    split = {"by": "none"}
    tree = tiny_config(**{"data.train": str(tmp_path / "coli"), "data.sequence_length": length, "data.split": split, "parallel.cp": cp})
    config = config_from_dict({**tree, "tokenizer": {"kind": "nucleotide", "add_bos": False}})
    stream = train_stream(config.data, build_tokenizer(config.tokenizer))
    assert stream.num_samples == 5  # of 4,641,652 bases, the last one padded
    whole = stream.batch(np.array([3]))
    parts = [_place_of(rank, cp).take(whole) for rank in range(cp)]
    together = {
        name: in_order(torch.stack([getattr(part, name)[0] for part in parts])).numpy()
        for name in ("tokens_BS", "labels_BS", "positions_BS", "loss_mask_BS")
    }
    assert np.array_equal(together["positions_BS"], np.arange(length))
    assert np.array_equal(together["tokens_BS"], whole.tokens[0]) and np.array_equal(together["loss_mask_BS"], whole.loss_mask[0])
    [(locus, bases)] = stream.read(3)
    read = np.zeros(256, np.int64)
    read[list(b"ACGT")] = [stream.tokenizer.tokens.index(letter) for letter in "ACGT"]
    read = read[bases]
    real = len(read) - 1  # the first base is read only, the last predicted only
    assert real == min(length, locus.end - locus.start - 1) and real > 400_000
    assert np.array_equal(together["tokens_BS"][:real], read[:-1]) and np.array_equal(together["labels_BS"][:real], read[1:])
    assert sum(part.num_tokens for part in parts) == int((whole.labels != 0).sum())


def test_document_masks_of_parts_are_rows_of_the_whole():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, -1, -1]])
    for is_causal in (False, True):
        whole = document_mask(documents, is_causal, torch.float32)
        seen = (documents[:, :, None] == documents[:, None]) & (torch.ones(8, 8).tril().bool() if is_causal else True)
        assert torch.equal(whole[:, 0] == 0, seen) and bool((whole[:, 0][~seen] == -math.inf).all())
        for rank in range(2):
            rows = document_mask(documents, is_causal, torch.float32, _place_of(rank, 2).own_part)
            assert torch.equal(rows, own_part(whole, rank, 2, dim=2))
