"""Folders as others wrote them: pytorch_model.bin, published tokenizer files, unused tensors, and folders that are wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from families import SMALL, sizes, write_small
from reference import small_config, write_random
from safetensors.torch import load_file, save_file

from dnapretrain.convert.hf import from_hf, to_hf
from dnapretrain.convert.native import open_weights, read_tokenizer, read_unused
from dnapretrain.convert.torch_files import TorchFilesReader, open_folder
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.errors import CheckpointError, ConfigError


@pytest.fixture(params=SMALL)
def exported(request, tmp_path):
    """(folder, native tensors); the folder's unused tensors are no zeros."""
    _, _, tensors = write_small(tmp_path / "native", request.param, tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    return tmp_path / "hf", tensors


def by_columns(tensor):
    """The same numbers, stored column by column."""
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def rewrite(folder, how):
    """The folder's weights as pytorch_model.bin."""
    tensors = {name: by_columns(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if how == "sharded":
        names = list(tensors)
        weight_map = {}
        for number in range(3):
            file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
            part = {name: tensors[name] for name in names[number::3]}
            torch.save(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how != "before 1.6")


@pytest.mark.parametrize("how", ["one file", "sharded", "before 1.6"])
def test_pytorch_files_give_the_same_checkpoint(exported, how, tmp_path):
    folder, tensors = exported
    rewrite(folder, how)
    from_hf(folder, tmp_path / "back")
    back = open_weights(tmp_path / "back")
    assert back.names() == sorted(tensors)
    assert all(torch.equal(back.read(name), tensors[name]) for name in tensors)


def test_columns_are_columns(tmp_path):
    matrix = torch.arange(12.0).view(3, 4)
    torch.save({"a": by_columns(matrix), "b": matrix[1:, 2:]}, tmp_path / "pytorch_model.bin")
    reader = open_folder(tmp_path)
    assert isinstance(reader, TorchFilesReader)
    assert reader.shapes == {"a": (3, 4), "b": (2, 2)}
    for name, expected in (("a", matrix), ("b", matrix[1:, 2:])):
        assert torch.equal(reader.read(name), expected) and reader.read(name).is_contiguous()


class Harmful:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Harmful()}, "cannot be read"),
        ({"a": 3}, "a is int, not a tensor"),
        ([torch.ones(2)], "holds list"),
    ],
    ids=["code", "number", "list"],
)
def test_files_that_hold_more_than_tensors_are_refused(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_files_cut_short_are_named(exported, file, tmp_path):
    folder, _ = exported
    if file.endswith(".bin"):
        rewrite(folder, "one file")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        from_hf(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither of model\.safetensors, .*pytorch_model\.bin"):
        open_folder(tmp_path)


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def a_weight(tensors):
    return next(name for name in tensors if name.endswith("layer.1.attention.output.dense.weight"))


def test_wrong_tensors_are_named_with_the_shape_expected(exported, tmp_path):
    folder, _ = exported
    whole = load_file(folder / "model.safetensors")
    name = a_weight(whole)
    width = whole[name].shape[0]
    shape = rf"\({width}, {width}\)"
    wrong = {
        rf"1 missing: {name} {shape}": lambda tensors: tensors.pop(name),
        rf"{name} has shape \({width}, 3\).*{shape}": lambda tensors: tensors.update({name: torch.zeros(width, 3)}),
        r"1 unexpected: bert\.encoder\.layer\.7\.ln\.gain": lambda tensors: tensors.update({"bert.encoder.layer.7.ln.gain": torch.ones(3)}),
        rf"{name} is stored as torch\.int64": lambda tensors: tensors.update({name: torch.zeros(width, width, dtype=torch.int64)}),
    }
    for message, edit in wrong.items():
        save_file(whole, folder / "model.safetensors")
        change(folder, edit)
        with pytest.raises(CheckpointError, match=message):
            from_hf(folder, tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_copies_that_differ_are_named(tmp_path):
    write_small(tmp_path / "native", "aido-dna", tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    change(tmp_path / "hf", lambda tensors: tensors["cls.predictions.decoder.bias"].add_(1))
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.bias differs from cls\.predictions\.bias"):
        from_hf(tmp_path / "hf", tmp_path / "back")


def test_what_the_network_never_reads_comes_back_as_it_was(tmp_path):
    write_small(tmp_path / "native", "nt-v2", tmp_path, dtype=torch.bfloat16)
    to_hf(tmp_path / "native", tmp_path / "hf")
    folder, unused = tmp_path / "hf", {}

    def fill(tensors):
        for name in tensors:
            if "contact_head" in name or "position_embeddings" in name or "inv_freq" in name:
                tensors[name] = unused[name] = torch.randn(tensors[name].shape)
        tensors["esm.embeddings.position_ids"] = unused["esm.embeddings.position_ids"] = torch.arange(2050)[None]

    change(folder, fill)
    assert len(unused) == 6
    assert from_hf(folder, tmp_path / "back")["left_out_tensors"] == 6
    kept = read_unused(tmp_path / "back")
    assert kept.keys() == unused.keys()
    assert to_hf(tmp_path / "back", tmp_path / "again")["extra_tensors_as_imported"] == 6
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == load_file(folder / "model.safetensors").keys()
    for name, tensor in unused.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)


def test_a_damaged_file_of_unused_tensors_is_named(tmp_path):
    write_small(tmp_path / "native", "nt-v2", tmp_path)
    (tmp_path / "native" / "unused.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"unused\.safetensors cannot be read"):
        to_hf(tmp_path / "native", tmp_path / "hf")


def as_published(folder, kind, style):
    """The tokenizer files of a published folder in place of ours."""
    (folder / "tokenizer.json").unlink()
    if style != "none":
        from dnapretrain.config import TokenizerConfig

        tokens = build_tokenizer(TokenizerConfig.model_validate({"kind": kind})).tokens
        lines = [f"{token} {i}" for i, token in enumerate(tokens)] if style == "with ids" else tokens
        (folder / "vocab.txt").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("kind", "style"),
    [
        ("nt_v2", "one a line"),
        ("nt_v2", "none"),
        ("aido_dna", "one a line"),
        ("aido_dna", "none"),
        ("generator", "one a line"),
        ("generator", "with ids"),
        ("generator", "none"),
        ("nt_v1", "one a line"),
        ("nt_v1", "none"),
    ],
)
def test_published_tokenizers_are_found(kind, style, tmp_path):
    if kind == "generator":
        write_random(tmp_path / "native", small_config({"kind": "generator"}))
    elif kind == "nt_v1":
        from families import NT_V1, random_native, run_config, tokenizer_of

        from dnapretrain.convert.native_writer import write_native

        config, tokenizer = run_config({"kind": "nt_v1"}, {**NT_V1, **sizes(2, 24, 4, 40)}), tokenizer_of("nt_v1")
        write_native(tmp_path / "native", config, tokenizer, random_native(config, tokenizer).items())
    else:
        write_small(tmp_path / "native", {"nt_v2": "nt-v2", "aido_dna": "aido-dna"}[kind], tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    as_published(tmp_path / "hf", kind, style)
    report = from_hf(tmp_path / "hf", tmp_path / "back")
    assert report["tokenizer"].startswith(f"{kind}, by vocab_size" if style == "none" else "vocab.txt")
    assert read_tokenizer(tmp_path / "back") == read_tokenizer(tmp_path / "native")


def test_folders_with_another_vocabulary_are_refused(tmp_path):
    write_small(tmp_path / "native", "nt-v2", tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    as_published(tmp_path / "hf", "nt_v1", "one a line")
    with pytest.raises(ConfigError, match=r"vocab_size = 4107 in config\.json, but the tokenizer has 4105"):
        from_hf(tmp_path / "hf", tmp_path / "back")
    (tmp_path / "hf" / "vocab.txt").unlink()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "vocab_size": 75}))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json and no vocab\.txt, and vocab_size = 75 .* known for NT-v2"):
        from_hf(tmp_path / "hf", tmp_path / "back")
    write_small(tmp_path / "bert", "dnabert2", tmp_path)
    to_hf(tmp_path / "bert", tmp_path / "bert-hf")
    (tmp_path / "bert-hf" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="known for DNABERT-2"):
        from_hf(tmp_path / "bert-hf", tmp_path / "back")


def test_a_family_under_another_name_is_refused(tmp_path):
    write_small(tmp_path / "native", "nt-v2", tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in ("add_bias_fnn", "auto_map")}))
    with pytest.raises(CheckpointError, match=r"missing: esm\.encoder\.layer\.0\.intermediate\.dense\.bias \(40,\)"):
        from_hf(tmp_path / "hf", tmp_path / "back")  # the plain ESM has biases there


def test_progress_ends_at_all_bytes(exported, tmp_path):
    folder, _ = exported
    for convert, source, target in ((from_hf, folder, tmp_path / "back"), (to_hf, tmp_path / "back", tmp_path / "again")):
        told = []
        convert(source, target, on_progress=lambda done, total, told=told: told.append((done, total)))
        assert len(told) > 10 and told[-1][0] == told[-1][1]
        assert told == sorted(told)


def test_a_run_that_began_from_an_imported_checkpoint_writes_its_unused_tensors_back(tmp_path):
    from dnapretrain.config_file import dump_config
    from dnapretrain.convert.native import read_config

    write_small(tmp_path / "native", "nt-v2", tmp_path)
    to_hf(tmp_path / "native", tmp_path / "hf")
    change(tmp_path / "hf", lambda tensors: tensors["esm.contact_head.regression.bias"].add_(3))
    from_hf(tmp_path / "hf", tmp_path / "imported")
    config = read_config(tmp_path / "native")
    began = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"load": tmp_path / "imported"})})
    (tmp_path / "native" / "run.yaml").write_text(dump_config(began))
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    assert (report["extra_tensors"], report["extra_tensors_as_imported"]) == (5, 5)
    assert load_file(tmp_path / "hf" / "model.safetensors")["esm.contact_head.regression.bias"] == 3
    # A table for other lengths is not that of this model: it is made anew.
    longer = began.model_copy(update={"model": began.model.model_copy(update={"max_position_embeddings": 3000})})
    (tmp_path / "native" / "run.yaml").write_text(dump_config(longer))
    report = to_hf(tmp_path / "native", tmp_path / "hf")
    assert (report["extra_tensors"], report["extra_tensors_as_imported"]) == (5, 4)
    assert load_file(tmp_path / "hf" / "model.safetensors")["esm.embeddings.position_embeddings.weight"].shape == (3002, 24)


DATA = os.environ.get("DNAPRETRAIN_TEST_DATA")


@pytest.mark.skipif(not DATA, reason="DNAPRETRAIN_TEST_DATA is not set")
def test_dnabert2_with_its_published_tokenizer_and_either_config(tmp_path):
    from families import DNABERT2, random_native, run_config

    from dnapretrain.config import TokenizerConfig
    from dnapretrain.convert.native_writer import write_native

    published = Path(str(DATA)) / "tokenizers" / "DNABERT2_tokenizer.json"
    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", file=published, add_eos=True))
    config = run_config({"kind": "bpe", "file": str(published), "add_eos": True}, {**DNABERT2, **sizes(2, 24, 12, 40)})
    tensors = random_native(config, tokenizer)
    write_native(tmp_path / "native", config, tokenizer, tensors.items())
    to_hf(tmp_path / "native", tmp_path / "hf")
    for file in ("tokenizer_config.json", "special_tokens_map.json", "dnapretrain.json", "README.md"):
        (tmp_path / "hf" / file).unlink()
    (tmp_path / "hf" / "tokenizer.json").write_bytes(published.read_bytes())
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    for number, more in enumerate(({}, {"model_type": "bert", "architectures": ["BertForMaskedLM"]})):
        (tmp_path / "hf" / "config.json").write_text(json.dumps({**content, **more}))
        from_hf(tmp_path / "hf", tmp_path / f"back{number}")
        back = open_weights(tmp_path / f"back{number}")
        assert all(torch.equal(back.read(name), tensors[name]) for name in tensors)
        ids = read_tokenizer(tmp_path / f"back{number}").encode("ACGTNACGTNACGTN").tolist()
        assert ids == [5, 6, 1049, 0, 5, 6, 1049, 0, 5, 6, 1049, 0]
