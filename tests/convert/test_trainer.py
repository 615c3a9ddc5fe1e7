"""Exported folders of every family as users fine-tune them: transformers' Trainer, heads, checkpointed gradients, either attention."""

import pytest
import torch
from small_folders import FAMILIES, batch, load, write_folder

pytest.importorskip("accelerate", reason="accelerate is not installed (it comes with peft, in the dev extras)")
TEXTS = ("ACGTNACGTTAGGATCCANNTACGG", "acgtacgtACGTACGTATTTAAACG", "TTTTTTTTTTTTCCCCCCCCAAAAAAAGGGGGGACGTAC", "ACGTARYACGTTT")
TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp(request.param), request.param)


def samples_and_collator(tokenizer, task, is_decoder):
    from transformers import DataCollatorForLanguageModeling, DataCollatorForTokenClassification, DataCollatorWithPadding

    rows = [dict(tokenizer(text)) for text in TEXTS]
    if task == "MaskedLM":
        return rows, DataCollatorForLanguageModeling(tokenizer, mlm=not is_decoder, mlm_probability=0.3)
    if task == "SequenceClassification":
        return [{**row, "labels": number % 3} for number, row in enumerate(rows)], DataCollatorWithPadding(tokenizer)
    labelled = [{**row, "labels": [token % 3 for token in row["input_ids"]]} for row in rows]
    return labelled, DataCollatorForTokenClassification(tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_the_trainer_trains_saves_and_loads(exported, task, tmp_path):
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    folder, _ = exported
    model = load(folder, task, **({} if task == "MaskedLM" else {"num_labels": 3}))
    rows, collator = samples_and_collator(AutoTokenizer.from_pretrained(folder), task, "Llama" in type(model).__name__)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    assert trainer.train().global_step == 3
    assert model.is_gradient_checkpointing
    assert all(0 < record["loss"] < 1e3 for record in trainer.state.log_history if "loss" in record)
    still = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert not [name for name in still if "layer" in name and ("dense.weight" in name or "proj" in name or "Wqkv" in name)], still
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    trainer.save_model(str(tmp_path / "saved"))
    again = load(tmp_path / "saved", task)
    inputs = collator(rows[:2])
    inputs.pop("labels")
    with torch.no_grad():
        assert (again(**inputs).logits - model.eval()(**inputs).logits).abs().max() < 1e-5


def test_either_attention_gives_the_same_logits(exported, monkeypatch):
    folder, tokenizer = exported
    inputs = batch(tokenizer)
    eager = load(folder, "MaskedLM", attn_implementation="eager")
    if not eager._supports_sdpa:
        pytest.skip(f"{type(eager).__name__} of this transformers has one attention only")
    models = {"eager": eager, "sdpa": load(folder, "MaskedLM", attn_implementation="sdpa")}
    logits = {}
    for how, model in models.items():
        with torch.no_grad():
            logits[how] = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert (logits["sdpa"] - logits["eager"]).abs().max() <= 1e-5 * logits["sdpa"].abs().max()

    def refuse(*_, **__):
        raise NotImplementedError("fused attention")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    models["eager"](**inputs)
    with pytest.raises(NotImplementedError, match="fused attention"):
        models["sdpa"](**inputs)
