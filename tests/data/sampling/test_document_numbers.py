"""Documents of packed samples: each token's number equals plain Python, and no target crosses from one document to the next."""

import random

import numpy as np
import pytest
from slow import Slow, keyed_hash, permute
from test_samples import make_stream, random_documents, tokenizer_of

SEGMENTS = 2


class Numbered(Slow):
    """Slow, whose tokens know which segment they are of: the separator that of the segment behind it."""

    def stream_documents(self, epoch):
        slack = self.k - 1 if self.random_phase else 0
        long_enough = [text for text in self.segments if len(text) >= max(self.min_length, self.k + slack)]
        documents = []
        for slot in range(len(long_enough)):
            number = slot
            if self.shuffle:
                number = permute(len(long_enough), keyed_hash(self.seed, SEGMENTS, self.source, epoch), slot)
            documents += [slot] * (bool(slot) + (len(long_enough[number]) - slack) // self.k)
        return documents

    def documents(self, draw):
        """Numbers from 0 in the order of the sample, -1 at padding."""
        count = self.num_samples()
        epoch, j = divmod(draw, count)
        if self.shuffle:
            j = permute(count, keyed_hash(self.seed, 1, self.source, epoch), j)
        first = j * self.label_tokens()
        slots = self.stream_documents(epoch)
        here = slots[first : first + self.label_tokens() + self.context_tokens()]
        if self.add_bos:  # <bos> stands for the document that the sample begins in, were it only to end there
            before = slots[first - 1] if first and slots[first - 1] != here[0] else here[0]
            here = [before, *here]
        here += here[-1:] * self.add_eos
        numbers = {slot: number for number, slot in enumerate(dict.fromkeys(here))}
        here = here[: self.sequence_length]
        return [numbers[slot] for slot in here] + [-1] * (self.sequence_length - len(here))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("kind, k", [("nucleotide", 1), ("kmer", 1), ("kmer", 3)])
def test_numbers_equal_plain_python(kind, k, add_bos, masked):
    seen = set()
    for case in range(8):
        rng = random.Random(case * 100 + k)
        settings = {
            "sequence_length": rng.choice([4, 5, 8, 31]),
            "min_length": rng.choice([1, 1, 20]),
            "reverse_complement": 0.5,
            "random_phase": kind == "kmer" and case % 2 == 1,
            "seed": rng.choice([0, 11]),
        }
        texts = random_documents(case, count=30, longest=rng.choice([25, 30, 100]))
        add_eos = masked and case % 4 > 1
        masking = {"masking": {"mlm_probability": 0.3}} if masked else {}
        tokenizer = tokenizer_of(kind, k, "ACGT", add_bos, add_eos)
        stream = make_stream(texts, tokenizer, sampling="packed", document_attention=True, **settings, **masking)
        without = make_stream(texts, tokenizer, sampling="packed", **settings, **masking)
        rules = {"kind": kind, "k": k, "add_bos": add_bos, "add_eos": add_eos, "packed": True, **settings}
        plain = Numbered(texts, masking=(0.3, 0.8, 0.1) if masked else None, **rules)
        ids = np.array([*range(min(stream.num_samples, 60)), 5 * stream.num_samples + 3])
        batch, same = stream.batch(ids), without.batch(ids)
        assert batch.documents.dtype == np.int32 and batch.documents.shape == batch.tokens.shape
        assert same.documents is None
        for name in ("tokens", "labels", "loss_mask"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(same, name))
        for row, sample_id in enumerate(ids):
            assert batch.documents[row].tolist() == plain.documents(int(sample_id)), (case, sample_id)
        np.testing.assert_array_equal(batch.documents == -1, batch.tokens == 0)
        seen |= set(np.unique(batch.documents).tolist())
    assert {-1, 0, 1, 2} <= seen


def test_a_known_sample():
    texts = ["ACG", "TT", "G", "CCCC"]
    stream = make_stream(texts, tokenizer_of(), name="valid", sequence_length=8, sampling="packed", document_attention=True)
    batch = stream.batch(np.array([0, 1]))
    assert batch.tokens.tolist() == [[1, 5, 6, 7, 2, 8, 8, 2], [1, 2, 6, 6, 6, 6, 0, 0]]
    assert batch.labels.tolist() == [[5, 6, 7, 2, 8, 8, 2, 7], [2, 6, 6, 6, 6, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0, 0, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, -1, -1]]


@pytest.mark.parametrize("add_bos", [True, False])
def test_no_target_crosses_a_document(add_bos):
    texts, settings = random_documents(3, count=40, longest=20), {"sampling": "packed", "sequence_length": 16}
    stream = make_stream(texts, tokenizer_of(add_bos=add_bos), document_attention=True, **settings)
    batch = stream.batch(np.arange(3 * stream.num_samples))
    crosses = batch.documents[:, 1:] != batch.documents[:, :-1]  # the label of a token is the next token
    assert crosses.any() and not batch.loss_mask[:, :-1][crosses].any()
    separators = (batch.tokens == 2) & (batch.loss_mask > 0)
    assert separators.any()  # a separator predicts the first base of the document that it begins


def test_digest_names_the_setting():
    texts = random_documents(1)
    off, on = (make_stream(texts, tokenizer_of(), sampling="packed", document_attention=value) for value in (False, True))
    assert off.digest != on.digest
    assert off.digest == make_stream(texts, tokenizer_of(), sampling="packed").digest
