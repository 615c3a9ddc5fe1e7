"""Adapters of peft on exported folders of every family, with the layers that the model card names."""

import pytest
import torch
from small_folders import FAMILIES, batch, load, write_folder

from dnapretrain.convert.families import family_of
from dnapretrain.convert.hf import from_hf
from dnapretrain.convert.native import read_config

peft = pytest.importorskip("peft", reason="peft is not installed (it is in the dev extras)")
METHODS = ("LoRA", "IA3")


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    parent = tmp_path_factory.mktemp(request.param)
    folder, tokenizer = write_folder(parent, request.param)
    return folder, tokenizer, family_of(read_config(parent / "native").model)


def with_adapter(model, family, method, task_type):
    layers = family.adapter_layers
    also = {"modules_to_save": list(layers.new_in_classifiers)} if task_type == "SEQ_CLS" and layers.new_in_classifiers else {}
    if method == "LoRA":
        config = peft.LoraConfig(task_type=task_type, r=4, lora_alpha=8, target_modules=list(layers.lora), **also)
    else:
        modules = {"target_modules": layers.pattern(layers.ia3), "feedforward_modules": layers.pattern(layers.ia3_feedforward)}
        config = peft.IA3Config(task_type=task_type, **modules, **also)
    return peft.get_peft_model(model, config)


def train(model, inputs, labels, steps=20):
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # in so small a network it hides what is learned
            module.p = 0.0
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def largest_difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_are_saved_and_merged(exported, method, tmp_path):
    folder, tokenizer, family = exported
    inputs = batch(tokenizer)
    base = load(folder, "MaskedLM")
    layers = base.config.num_hidden_layers
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    untouched = logits_of(base, inputs)
    model = with_adapter(base, family, method, "CAUSAL_LM" if family.task == "text-generation" else None)
    for target in family.adapter_layers.lora if method == "LoRA" else family.adapter_layers.ia3:
        found = [name for name in model.targeted_module_names if name.endswith(f".{target}")]
        both = method == "LoRA" and target == "output.dense"  # it is in attention and feed-forward; no head is among them
        assert len(found) in ((layers, 2 * layers) if both else (layers,)), target
        assert all(".layer" in name for name in found)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = train(model, inputs, labels)
    assert losses[-1] < 0.97 * losses[0]
    learned = logits_of(model, inputs)
    assert largest_difference(learned, untouched) > 1e-2

    model.save_pretrained(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(load(folder, "MaskedLM"), str(tmp_path / "adapter")).eval()
    assert largest_difference(logits_of(again, inputs), learned) < 1e-6
    with again.disable_adapter():
        assert torch.equal(logits_of(again, inputs), untouched)
    merged = again.merge_and_unload()
    assert merged.state_dict().keys() == load(folder, "MaskedLM").state_dict().keys()
    assert largest_difference(logits_of(merged, inputs), learned) < 1e-5
    for name, weight in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in before:
            assert torch.equal(weight, before[plain]), name

    merged.save_pretrained(str(tmp_path / "merged"))
    (tmp_path / "merged" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    from_hf(tmp_path / "merged", tmp_path / "native")  # pretraining may go on from there


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_saved_with_its_adapter(exported, method, tmp_path):
    folder, tokenizer, family = exported
    inputs = batch(tokenizer)
    model = with_adapter(load(folder, "SequenceClassification", num_labels=3), family, method, "SEQ_CLS")
    losses = train(model, inputs, torch.tensor([0, 2, 1]))
    assert losses[-1] < 0.9 * losses[0]
    model.save_pretrained(str(tmp_path / "adapter"))
    base = load(folder, "SequenceClassification", num_labels=3, seed=5)  # all that is new there is another than what learned
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert (model(**inputs).logits - again(**inputs).logits).abs().max() < 1e-5
