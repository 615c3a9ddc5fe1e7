"""The code that exported folders hold: logits against slow references, tasks, training, what it refuses."""

import json

import pytest
import torch
from families import CLASSES, REFERENCES, SMALL, random_native, small, write_small
from safetensors.torch import load_file

from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import open_weights, read_config
from dnapretrain.convert.native_writer import write_native

TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")


def load(directory, task="MaskedLM", **settings):
    import transformers

    auto = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    model, info = auto.from_pretrained(str(directory), trust_remote_code=True, output_loading_info=True, **settings)
    return model.eval(), info


def load_whole(directory, name):
    model, info = load(directory)
    assert type(model).__name__ == CLASSES[name] + "MaskedLM"
    assert not any(info.values()), info
    return model


def samples(tokenizer, lengths=(50, 37, 64), seed=1):
    """Token ids of any kind; every seventh is <mask>, in all but the second, which has none."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, tokenizer.vocab_size, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[row == tokenizer.mask_id] = tokenizer.unk_id
    rows[0][3::7] = rows[-1][5::7] = tokenizer.mask_id
    return rows


def batch_of(rows, pad_id):
    longest = max(map(len, rows))
    tokens = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=pad_id) for row in rows])
    return tokens, torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])


def logits_of(model, rows, pad_id):
    """Logits of each row without its padding, all rows in one padded batch."""
    tokens, mask = batch_of(rows, pad_id)
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
    return [logits[i, : len(row)] for i, row in enumerate(rows)]


def reference_logits(name, config, directory, row):
    weights = {item: tensor.double() for item, tensor in load_file(directory / "model.safetensors").items()}
    return REFERENCES[name](config, weights, row)


def assert_agree(found, expected, limit=1e-5):
    assert found.shape == expected.shape
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= limit * expected.abs().max()


VARIANTS = [
    ("nt-v2", {}),
    ("nt-v2", {"ffn_in_bias": False, "embedding_norm": True, "untie_embeddings_and_output_weights": False}),
    ("dnabert2", {}),
    ("aido-dna", {}),
    ("aido-dna", {"untie_embeddings_and_output_weights": True, "norm_epsilon": 1e-3}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
def test_logits_are_those_of_a_slow_reference(name, changes, tmp_path):
    config, tokenizer, _ = write_small(tmp_path / "native", name, tmp_path, **changes)
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    model = load_whole(tmp_path / "hf", name)
    assert report["parameters"] == sum(weight.numel() for weight in model.parameters())
    if changes.get("embedding_norm"):
        return  # the reference has none; test_real_families compares with Megatron's model
    rows = samples(tokenizer)
    for row, found in zip(rows, logits_of(model, rows, tokenizer.pad_id), strict=True):
        assert_agree(found, reference_logits(name, config, tmp_path / "hf", row))


def test_dnabert2_reads_more_than_512_tokens(tmp_path):
    config, tokenizer, _ = write_small(tmp_path / "native", "dnabert2", tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    rows = samples(tokenizer, lengths=(700, 513))
    for row, found in zip(rows, logits_of(load_whole(tmp_path / "hf", "dnabert2"), rows, tokenizer.pad_id), strict=True):
        assert_agree(found, reference_logits("dnabert2", config, tmp_path / "hf", row))


@pytest.mark.parametrize("name", SMALL)
def test_every_native_tensor_reaches_the_logits(name, tmp_path):
    config, tokenizer = small(name, tmp_path)
    tensors = random_native(config, tokenizer)
    write_native(tmp_path / "native", config, tokenizer, tensors.items())
    to_hf(tmp_path / "native", tmp_path / "hf")
    rows = samples(tokenizer, lengths=(40,))
    [before] = logits_of(load_whole(tmp_path / "hf", name), rows, tokenizer.pad_id)
    for number, item in enumerate(tensors):
        noise = 0.1 * torch.randn(tensors[item].shape, generator=torch.Generator().manual_seed(2))
        write_native(tmp_path / f"n{number}", config, tokenizer, {**tensors, item: tensors[item] + noise}.items())
        to_hf(tmp_path / f"n{number}", tmp_path / "hf")
        [after] = logits_of(load_whole(tmp_path / "hf", name), rows, tokenizer.pad_id)
        # A bias of all keys alike shifts every score of a query: softmax does not see it, and the rest of the fused bias shows.
        assert (after - before).abs().max() > 1e-3, item
        assert_agree(after, reference_logits(name, config, tmp_path / "hf", rows[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_native_hf_native_hf_is_byte_identical(name, dtype, tmp_path):
    config, _, tensors = write_small(tmp_path / "native", name, tmp_path, dtype)
    to_hf(tmp_path / "native", tmp_path / "first")
    report = from_hf(tmp_path / "first", tmp_path / "back")
    back = open_weights(tmp_path / "back")
    assert back.names() == sorted(tensors)
    assert all(torch.equal(back.read(item), tensors[item].to(dtype)) for item in tensors)
    assert read_config(tmp_path / "back").model == config.model
    assert (report["left_out_tensors"], report["second_copies"]) == {"nt-v2": (5, 0), "dnabert2": (0, 1), "aido-dna": (0, 2)}[name]
    again = to_hf(tmp_path / "back", tmp_path / "second")
    assert again["extra_tensors_as_imported"] == report["left_out_tensors"]
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    for file in set(files) - {"README.md", "dnapretrain.json"}:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.parametrize("name", SMALL)
def test_what_transformers_saves_comes_in(name, tmp_path):
    _, _, tensors = write_small(tmp_path / "native", name, tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    load_whole(tmp_path / "hf", name).save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    (tmp_path / "saved" / "tokenizer.json").write_bytes((tmp_path / "hf" / "tokenizer.json").read_bytes())
    from_hf(tmp_path / "saved", tmp_path / "back")
    back = open_weights(tmp_path / "back")
    assert back.names() == sorted(tensors)
    assert all(torch.equal(back.read(item), tensors[item]) for item in tensors)


@pytest.fixture(scope="module", params=SMALL)
def exported(request, tmp_path_factory):
    """(name of the family, folder, tokenizer)."""
    folder = tmp_path_factory.mktemp(request.param)
    _, tokenizer, _ = write_small(folder / "native", request.param, folder)
    to_hf(folder / "native", folder / "hf")
    return request.param, folder / "hf", tokenizer


@pytest.mark.parametrize("task", TASKS)
def test_each_task_loads_and_learns(exported, task):
    name, folder, tokenizer = exported
    torch.manual_seed(0)
    model, _ = load(folder, task, **({} if task == "MaskedLM" else {"num_labels": 3}))
    assert type(model).__name__ == CLASSES[name] + task
    rows = samples(tokenizer)
    tokens, mask = batch_of(rows, tokenizer.pad_id)
    labels = torch.tensor([0, 2, 1]) if task == "SequenceClassification" else (tokens % 3).masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = model(tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(weight.grad is not None for weight in model.parameters())  # nothing idle: distributed training would stop at it
    assert losses[-1] < 0.9 * losses[0]


def test_the_bare_encoder_and_its_outputs(exported):
    _, folder, tokenizer = exported
    model, _ = load(folder, "")
    tokens, mask = batch_of(samples(tokenizer), tokenizer.pad_id)
    with torch.no_grad():
        plain = model(tokens, attention_mask=mask)
        full = model(tokens, attention_mask=mask, output_attentions=True, output_hidden_states=True)
        as_tuple = model(tokens, attention_mask=mask, return_dict=False)
    real = mask.bool()
    assert (plain.last_hidden_state - full.last_hidden_state)[real].abs().max() < 1e-4
    assert torch.equal(as_tuple[0], plain.last_hidden_state)
    assert plain.hidden_states is None and plain.attentions is None
    assert len(full.hidden_states) == 3 and torch.equal(full.hidden_states[-1], full.last_hidden_state)
    assert len(full.attentions) == 2
    for weights in full.attentions:
        assert (weights.sum(-1) - 1).abs().max() < 1e-5
        assert weights[1, :, :, 37:].abs().max() < 1e-12  # the second row's padding
    with torch.no_grad():
        embedded = model(inputs_embeds=model.get_input_embeddings()(tokens), attention_mask=mask)
    assert (embedded.last_hidden_state - plain.last_hidden_state)[real].abs().max() < 1e-5


def test_padding_changes_nothing_and_half_precision_is_close(exported):
    _, folder, tokenizer = exported
    model, _ = load(folder)
    [row] = samples(tokenizer, lengths=(40,))
    [alone], [padded, _] = logits_of(model, [row], tokenizer.pad_id), logits_of(model, [row, row.repeat(2)], tokenizer.pad_id)
    assert_agree(padded, alone)
    [half] = logits_of(model.bfloat16(), [row], tokenizer.pad_id)
    assert half.dtype == torch.bfloat16
    assert_agree(half.float(), alone, 0.1)


def test_gradient_checkpointing_gives_the_same_gradients(exported):
    _, folder, tokenizer = exported
    model, _ = load(folder)
    for module in model.modules():  # dropout would differ from call to call
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens, mask = batch_of(samples(tokenizer), tokenizer.pad_id)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model.train()(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append({item: weight.grad.clone() for item, weight in model.named_parameters()})
    for item, gradient in gradients[0].items():
        assert (gradient - gradients[1][item]).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-3), item


def test_mistakes_have_clear_errors(exported):
    name, folder, tokenizer = exported
    model, _ = load(folder)
    [row] = samples(tokenizer, lengths=(9,))
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="attention_mask has 4 axes"):
        model(row[None], attention_mask=torch.ones(1, 1, 9, 9))
    config = type(model.config)
    with pytest.raises(ValueError, match="not divisible by num_attention_heads = 5"):
        config(hidden_size=24, num_attention_heads=5)
    wrong = {
        "nt-v2": ("position_embedding_type", "absolute"),
        "dnabert2": ("hidden_act", "relu"),
        "aido-dna": ("normalization_type", "RMSNorm"),
    }
    with pytest.raises(ValueError, match=wrong[name][0]):
        config(**dict([wrong[name]]))


TEXTS = ("ACGTNACGTTAGGATCCANNTACGG", "acgtacgtACGTACGTA", "TTTTTTTTTTTTCCCCCCCCAAAAAAAGGGGGGACGTAC", "ACGTARYACGTTT", "A")


def test_the_tokenizer_gives_our_ids_and_the_folder_fills_masks(exported):
    from transformers import AutoTokenizer, pipeline

    _, folder, tokenizer = exported
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *ids, *([tokenizer.eos_id] if tokenizer.add_eos else [])], text
    assert (theirs.pad_token_id, theirs.mask_token_id) == (tokenizer.pad_id, tokenizer.mask_id)
    mask = tokenizer.vocabulary.roles["mask_token"]
    best = pipeline("fill-mask", model=str(folder), tokenizer=theirs, trust_remote_code=True, top_k=3)(f"ACGTACGTACGT{mask}ACGTACGTACGT")
    assert len(best) == 3 and all(0 < item["score"] < 1 for item in best)


def test_the_card_says_how_and_its_code_runs(exported):
    name, folder, _ = exported
    card = (folder / "README.md").read_text()
    style = {"nt-v2": "An NT-v2-style encoder", "dnabert2": "A DNABERT-2-style encoder", "aido-dna": "An AIDO.DNA-style encoder"}[name]
    assert style in card and "trust_remote_code=True" in card and "code is in this folder (" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(folder)))
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape[0] == 1
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert all((folder / f"{target.partition('.')[0]}.py").is_file() for target in auto_map.values())


def test_without_its_code_the_folder_does_not_load_as_another_model(exported):
    import transformers

    _, folder, _ = exported
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|mismatched|trust_remote_code"):
        transformers.AutoModelForMaskedLM.from_pretrained(str(folder), trust_remote_code=False)
