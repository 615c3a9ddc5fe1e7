from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dnapretrain.cli import main
from dnapretrain.config import RunConfig, padded_vocab_size
from dnapretrain.config_file import config_from_dict, config_keys, dump_config, load_config
from dnapretrain.config_rules import check_world
from dnapretrain.errors import ConfigError

BASE: dict[str, Any] = {
    "data": {"train": "shard", "sequence_length": 64},
    "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "ffn_hidden_size": 96},
    "optim": {"lr": 1e-3},
    "train": {"run_dir": "run", "train_steps": 100, "micro_batch_size": 2, "global_batch_size": 8},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def build(**overrides: Any) -> RunConfig:
    """BASE with dotted settings, given as `data__split__by="bed"`, through the tree (not through text)."""
    tree = copy.deepcopy(BASE)
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return config_from_dict(tree)


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Overrides


def test_overrides_replace_settings_of_the_file(file: Path) -> None:
    config = load_config(file, ["optim.lr=3e-4", "train.run_dir=runs/a=b", "data.split.by=contig", "data.split.valid_contigs=[chrX, 21]"])
    assert config.optim.lr == 3e-4
    assert config.train.run_dir == Path("runs/a=b")
    assert config.data.split.valid_contigs == ("chrX", "21")


def test_the_last_override_of_a_key_counts(file: Path) -> None:
    assert load_config(file, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+.0003"])
def test_floats_as_people_write_them_in_overrides_and_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(BASE).replace("lr: 0.001", f"lr: {text}"))
    assert load_config(file).optim.lr == 3e-4
    assert load_config(file, [f"optim.min_lr={text}"]).optim.min_lr == 3e-4


def test_whole_numbers_may_have_an_exponent_in_overrides_and_files(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(BASE).replace("train_steps: 100", "train_steps: 1e5"))
    assert load_config(file).train.train_steps == 100_000
    assert load_config(file, ["train.train_steps=2e6", "train.stop_at_step=1E3"]).train.stop_at_step == 1000
    with pytest.raises(ConfigError, match=r"train\.train_steps: .*fractional part \(got 1\.5\)"):
        load_config(file, ["train.train_steps=15e-1"])


def test_text_that_looks_like_a_number_stays_text_where_text_is_meant(file: Path) -> None:
    config = load_config(file, ["train.run_dir=1e5", "data.train=nan", "data.split.by=contig", "data.split.test_contigs=2e10"])
    assert (config.train.run_dir, config.data.train[0].prefix) == (Path("1e5"), Path("nan"))
    assert config.data.split.test_contigs == ("2e10",)


def test_an_override_can_begin_a_section_and_set_null(file: Path) -> None:
    config = load_config(file, ["log.log_interval=7", "train.eval_samples=5", "train.eval_samples=null"])
    assert config.log.log_interval == 7
    assert config.train.eval_samples is None


def test_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(BASE) + "log:\ntokenizer:  # {kind: kmer}\n")
    assert load_config(file) == build()
    assert load_config(file, ["log.log_interval=3"]).log.log_interval == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lr", "override 'optim.lr' is neither section.key=value nor a YAML file"),
        ("=3", "override '=3' is neither section"),
        ("optim.lr=[1", "value of override 'optim.lr=[1' is not YAML"),
        ("optim.lr.more=1", "override 'optim.lr.more=1': 'lr' is a value, not a section"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number, unable to parse string as a number (got 'fast')"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number (got inf)"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=0", "optim.lr: Input should be greater than 0 (got 0)"),
        ("optim=3", "optim: Input should be a valid dictionary"),
        ("data.train=", "data.train: Tuple should have at least 1 item"),
        ("data.train=5", "data.train.0: Input should be a valid dictionary"),
        ("data.train=[]", "data.train: Tuple should have at least 1 item"),
        ("train.precision=fp16", "train.precision: Input should be 'bf16' or 'fp32' (got 'fp16')"),
    ],
)
def test_a_bad_override_is_named(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# Aliases


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("tp", "tensor_model_parallel_size"),
        ("pp", "pipeline_model_parallel_size"),
        ("vpp", "virtual_pipeline_model_parallel_size"),
    ],
)
def test_aliases_stand_for_the_long_names(file: Path, alias: str, name: str) -> None:
    other = ["parallel.pp=2"] if alias == "vpp" else []
    config = load_config(file, [*other, f"parallel.{alias}=2"])
    assert getattr(config.parallel, name) == 2
    assert f"{name}: 2" in dump_config(config)
    assert f" {alias}:" not in dump_config(config)


def test_an_override_replaces_an_alias_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for written in ("tp", "tensor_model_parallel_size"):
        file.write_text(yaml.safe_dump({**BASE, "parallel": {written: 4}}))
        assert load_config(file).parallel.tensor_model_parallel_size == 4
        for override in ("parallel.tp=2", "parallel.tensor_model_parallel_size=2"):
            assert load_config(file, [override]).parallel.tensor_model_parallel_size == 2


def test_both_names_of_one_setting_are_refused() -> None:
    says = "parallel.tensor_model_parallel_size is given twice, once by its short name."
    assert refusal(parallel={"tp": 2, "tensor_model_parallel_size": 4}) == says


# Keys and files


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.learning_rate=1", "unknown config key 'optim.learning_rate'. Did you mean 'optim.lr'?"),
        ("model.rope_theta=5e5", "Did you mean 'model.rotary_base'?"),
        ("optim.l=1", "unknown config key 'optim.l'. Did you mean 'optim.lr'?"),
        ("train.lr=3e-4", "unknown config key 'train.lr'. Did you mean 'optim.lr'?"),
        ("model.hiden_size=64", "unknown config key 'model.hiden_size'. Did you mean 'model.hidden_size'?"),
        ("model.global_batch_size=64", "Did you mean 'train.global_batch_size'?"),
        ("parallel.dp=2", "unknown config key 'parallel.dp'."),
        ("data.split.valid_contig=[a]", "Did you mean 'data.split.valid_contigs'?"),
        ("data.train={prefix: a, weigth: 2}", "unknown config key 'data.train.weigth'. Did you mean 'data.train.weight'?"),
        ("data.train=[{prefix: a}, {prefx: b}]", "unknown config key 'data.train.prefx'. Did you mean 'data.train.prefix'?"),
        ("zzzz.qqqq=1", "Known sections: data, tokenizer, model, parallel, optim, train, checkpoint, log."),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds nothing, not sections"),
        ("- a\n", "holds a list, not sections"),
        (">chr1\nACGT\n", "cannot read config file"),
        ("optim: {lr: 1}\nmodel: {}\noptim: {lr: 2}\n", "key 'optim' stands twice"),
        ("optim:\n  lr: 1\n  lr: 2\n", "key 'lr' stands twice"),
        ("optim: {lr: 1}\n", "data: Field required; model: Field required"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config file not found: .*none\.yaml\. Give a YAML file, or one of aido-dna-300m, "):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot read config file .*: it is a folder\. Give a YAML file\."):
        load_config(tmp_path)
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"it is a folder\. Give its settings, .*/run\.yaml\."):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read config file"):
        load_config(tmp_path / "bytes.yaml")


def test_several_problems_are_told_together() -> None:
    message = refusal(optim__lr=-1, train__train_steps=0)
    assert "optim.lr: " in message
    assert "train.train_steps: " in message


# Rules between settings

SEQUENCE_PARALLEL = "parallel.sequence_parallel needs parallel.tensor_model_parallel_size of at least 2. Set it to false."
RULES: list[tuple[dict[str, Any], str]] = [
    (
        {"train__on_bad_step": "rewind"},
        "train.on_bad_step=rewind goes back to the newest checkpoint, but checkpoint.save_interval = 0 writes one only at the end. Set it.",
    ),
    (
        {"parallel__distributed_timeout_minutes": 30},
        "parallel.distributed_timeout_minutes = 30 is no longer than checkpoint.timeout_seconds = 1800: ranks that wait for a slow save",
    ),
    (
        {"model__num_attention_heads": 7},
        "model.hidden_size = 64 is not divisible by model.num_attention_heads = 7. Or set model.kv_channels.",
    ),
    ({"model__kv_channels": 7}, "the head width 7 is odd; rotary embeddings turn pairs. Set model.kv_channels to an even number."),
    (
        {"model__num_query_groups": 3},
        "model.num_attention_heads = 8 is not divisible by model.num_query_groups = 3. Change one of the two.",
    ),
    ({"parallel__tp": 3}, "model.num_attention_heads = 8 is not divisible by parallel.tensor_model_parallel_size = 3."),
    (
        {"parallel__tp": 4, "model__num_query_groups": 2},
        "model.num_query_groups = 2 is not divisible by parallel.tensor_model_parallel_size = 4.",
    ),
    (
        {"parallel__tp": 2, "model__ffn_hidden_size": 97},
        "model.ffn_hidden_size = 97 is not divisible by parallel.tensor_model_parallel_size = 2.",
    ),
    (
        {"parallel__tp": 12, "model__num_attention_heads": 12, "model__kv_channels": 8},
        "the padded vocabulary = 128 is not divisible by parallel.tensor_model_parallel_size = 12. It divides 128: use 1, 2, 4, 8 or 16.",
    ),
    (
        {"parallel__pp": 3},
        "model.num_layers = 4 is not divisible by pipeline stages = 3. Change parallel.pipeline_model_parallel_size, or set",
    ),
    ({"parallel__pp": 3, "parallel__num_layers_in_last_pipeline_stage": 1}, "num_layers_in_last_pipeline_stage = 1: the ranks between"),
    ({"parallel__pp": 2, "parallel__num_layers_in_first_pipeline_stage": 4}, "cannot be spread over 2 pipeline ranks with parallel.num_l"),
    ({"parallel__num_layers_in_first_pipeline_stage": 4}, "needs parallel.pipeline_model_parallel_size of at least 2"),
    ({"parallel__pp": 2, "parallel__vpp": 2, "parallel__num_layers_in_first_pipeline_stage": 3}, "of 2 chunks each"),
    ({"parallel__pp": 2, "parallel__vpp": 3}, "model.num_layers = 4 is not divisible by pipeline stages = 6."),
    ({"parallel__vpp": 2}, "parallel.virtual_pipeline_model_parallel_size = 2 needs parallel.pipeline_model_parallel_size of at least 2."),
    ({"parallel__sequence_parallel": True}, SEQUENCE_PARALLEL),
    (
        {"parallel__sequence_parallel": True, "parallel__tp": 2, "data__sequence_length": 63},
        "data.sequence_length = 63 is not divisible by parallel.tensor_model_parallel_size = 2. sequence_parallel shards the sequence",
    ),
    (
        {"parallel__cp": 2, "data__sequence_length": 66},
        "data.sequence_length = 66 is not divisible by 2 x parallel.context_parallel_size = 4. Each rank takes two equal parts of every",
    ),
    (
        {"parallel__cp": 2, "parallel__tp": 4, "parallel__sequence_parallel": True, "data__sequence_length": 56},
        "data.sequence_length = 56 is not divisible by 2 x parallel.context_parallel_size x tensor_model_parallel_size (sequence_parallel) "
        "= 16.",
    ),
    (
        {"parallel__cp": 2, "data__stages": [{"until_step": 5, "sequence_length": 30}, {}]},
        "sequence_length of stage 1 of data.stages = 30 is not divisible by 2 x parallel.context_parallel_size = 4.",
    ),
    (
        {"parallel__cp": 2, "train__cuda_graph_impl": "local"},
        "train.cuda_graph_impl=local records a layer, and with parallel.context_parallel_size = 2 layers send messages while they compute.",
    ),
    (
        {"parallel__cp": 2, "model__transformer_impl": "transformer_engine", "train__precision": "fp32"},
        "Transformer Engine has no fp32 kernels with context parallelism: parallel.context_parallel_size = 2, and model.transformer_impl=",
    ),
    ({"parallel__overlap_param_gather": True}, "parallel.overlap_param_gather needs parallel.use_distributed_optimizer=true."),
    ({"model__max_position_embeddings": 32}, "data.sequence_length = 64 exceeds model.max_position_embeddings = 32."),
    ({"train__micro_batch_size": 3}, "train.global_batch_size = 8 is not divisible by train.micro_batch_size = 3. Change one of the two."),
    ({"optim__min_lr": 2e-3}, "optim.min_lr = 0.002 exceeds optim.lr = 0.001. Lower it."),
    ({"optim__lr_warmup_steps": 100}, "optim.lr_warmup_steps = 100 leaves nothing of the 100 decay steps. Lower it."),
    ({"optim__lr_warmup_steps": 50, "optim__lr_decay_steps": 50}, "optim.lr_warmup_steps = 50 leaves nothing of the 50 decay steps."),
    ({"optim__lr_wsd_decay_steps": 10}, "optim.lr_wsd_decay_steps is for optim.lr_decay_style=WSD, not cosine. Remove it."),
    (
        {"optim__lr_wsd_decay_steps": 101, "optim__lr_decay_style": "WSD"},
        "optim.lr_wsd_decay_steps = 101 exceeds the 100 decay steps. Lower it.",
    ),
    (
        {"data__sampling": "packed", "data__stride": 32},
        "data.stride is for data.sampling=windows; packed samples have none. Remove data.stride.",
    ),
    (
        {"data__sampling": "packed", "data__window_jitter": 5},
        "data.window_jitter is for data.sampling=windows; packed samples have none. Remove data.window_jitter.",
    ),
    (
        {"data__sampling": "packed", "data__window_length": 5},
        "data.window_length is for data.sampling=windows; packed samples have none. Remove data.window_length.",
    ),
    ({"data__pack_order": "contig"}, "data.pack_order=contig is for data.sampling=packed. Remove it."),
    ({"data__window_length": 65}, "data.window_length = 65 is not 1 to 64 bases, which 64 tokens stand for. Change one."),
    (
        {"tokenizer__kind": "kmer", "tokenizer__add_bos": False, "data__window_length": 11},
        "data.window_length = 11 is not 12 to 390 bases, which 64 tokens stand for. Change one.",
    ),
    (
        {"tokenizer__kind": "kmer", "data__window_length": 8},
        "data.window_length = 8 is not divisible by the bases of a token = 6. Windows are read in whole tokens: change it.",
    ),
    ({"data__masking__span_length": 2}, "data.masking.span_length = 2 is for model.kind=encoder. Remove it."),
    (
        {"model__kind": "encoder", "data__masking__mlm_probability": 0.15, "data__masking__span_length": 65},
        "data.masking.span_length = 65 exceeds data.sequence_length = 64. Lower it.",
    ),
    ({"data__random_phase": True}, "data.random_phase is for tokenizer.kind=kmer, not nucleotide. Set it to false."),
    ({"data__split__by": "contig"}, "data.split.by=contig holds nothing out. Set data.split.valid_contigs."),
    ({"data__split__by": "bed"}, "data.split.by=bed holds nothing out. Set data.split.valid_bed."),
    (
        {"data__split__by": "cluster"},
        "data.split.clusters = None but data.split.by is 'cluster'. Give a file that dnapretrain cluster wrote.",
    ),
    (
        {"data__split__by": "cluster", "data__split__clusters": "c.bed"},
        "data.split.by=cluster holds nothing out. Set data.split.valid_fraction.",
    ),
    (
        {"data__split__clusters": "c.bed"},
        "data.split.clusters = c.bed but data.split.by is 'none'. Set data.split.by=cluster, or remove it.",
    ),
    ({"data__split__by": "block"}, "data.split.by=block holds nothing out. Set data.split.valid_fraction."),
    (
        {"data__split__valid_contigs": ["a"]},
        "data.split has settings for rule 'contig' but data.split.by is 'none'. Set data.split.by=contig, or data.split.valid_contigs=[].",
    ),
    (
        {"data__split__by": "contig", "data__split__valid_contigs": ["a"], "data__split__test_bed": "a.bed"},
        "data.split has settings for rule 'bed' but data.split.by is 'contig'. Set data.split.by=bed, or data.split.test_bed=null.",
    ),
    (
        {"data__split__by": "block", "data__split__valid_fraction": 0.5, "data__split__test_fraction": 0.5},
        "data.split.valid_fraction + data.split.test_fraction leave nothing to train on. Lower them.",
    ),
]


@pytest.mark.parametrize(("settings", "says"), RULES, ids=[says[:60] for _, says in RULES])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    assert says in refusal(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel__tp": 8, "parallel__pp": 4},
        {"parallel__tp": 2, "parallel__sequence_parallel": True},
        {"parallel__pp": 2, "parallel__vpp": 2},
        {"model__num_query_groups": 2, "parallel__tp": 2},
        {"model__num_attention_heads": 6, "model__kv_channels": 10},
        {"model__max_position_embeddings": 64},
        {"optim__min_lr": 1e-3, "optim__lr_warmup_steps": 99},
        {"optim__lr_decay_style": "WSD", "optim__lr_wsd_decay_steps": 100},
        {"data__stride": 1},
        {"tokenizer__kind": "kmer", "data__random_phase": True},
        {"data__window_length": 64, "data__window_jitter": 10**9},
        {"tokenizer__kind": "kmer", "data__window_length": 6},
        {"data__sampling": "packed", "data__pack_order": "contig"},
        {"model__kind": "encoder", "data__masking__mlm_probability": 0.15, "data__masking__span_length": 64},
        {"data__split__by": "contig", "data__split__test_contigs": ["a"]},
        {"data__split__by": "block", "data__split__valid_fraction": 0.5, "data__split__test_fraction": 0.49},
    ],
    ids=str,
)
def test_settings_at_their_limits_are_taken(settings: dict[str, Any]) -> None:
    build(**settings)


def test_the_world_must_hold_whole_copies_of_the_model() -> None:
    config = build(parallel={"tp": 2, "pp": 2})
    assert [check_world(config, ranks) for ranks in (4, 8, 16)] == [1, 2, 4]
    says = r"6 rank\(s\) cannot hold tensor parallel 2 x pipeline parallel 2 = 4 ranks per model copy\. Start a multiple of 4 ranks\."
    with pytest.raises(ConfigError, match=says):
        check_world(config, 6)


def test_ranks_that_share_a_sample_are_no_copies() -> None:
    config = build(parallel={"tp": 2, "cp": 2})
    assert [check_world(config, ranks) for ranks in (4, 8, 16)] == [1, 2, 4]
    says = r"6 rank\(s\) cannot hold tensor parallel 2 x pipeline parallel 1 x context parallel 2 = 4 ranks per model copy\."
    with pytest.raises(ConfigError, match=says):
        check_world(config, 6)


def test_transformer_engine_is_left_where_its_context_parallelism_ends() -> None:
    bf16 = {"train__precision": "bf16", "parallel": {"cp": 2}}
    encoder = {"model__kind": "encoder", "data__masking": {"mlm_probability": 0.15}}
    assert build(**bf16).torch_only == build(**bf16, **encoder).torch_only == build(**encoder, train__precision="fp32").torch_only == ""
    assert "fp32" in build(**{**bf16, "train__precision": "fp32"}).torch_only
    alibi = {**encoder, "model__position_embedding_type": "alibi"}
    assert "ALiBi" in build(**bf16, **alibi).torch_only
    with pytest.raises(ConfigError, match=r"no ALiBi .*Set model\.transformer_impl=torch"):
        build(**bf16, **alibi, model__transformer_impl="transformer_engine")


def test_the_global_batch_must_divide_over_the_world() -> None:
    assert check_world(build(), 4) == 4
    with pytest.raises(ConfigError, match=r"train\.global_batch_size = 8 is not divisible by .* = 2 x 3 = 6\. Change one of them\."):
        check_world(build(), 3)


def test_interleaved_stages_need_whole_groups_of_microbatches() -> None:
    interleaved = {"parallel": {"pp": 2, "vpp": 2}}
    assert check_world(build(**interleaved), 4) == 2
    says = r"1 micro-batches per step do not divide into groups of 2 pipeline ranks.* train\.micro_batch_size\."
    with pytest.raises(ConfigError, match=says):
        check_world(build(**interleaved), 8)


# The tree


def test_dump_and_load_give_an_equal_tree(tmp_path: Path) -> None:
    config = build(
        data__train=["a", {"prefix": "b.c", "weight": 2.5}],
        data__valid={"mouse": "m"},
        data__split={"by": "contig", "valid_contigs": ["1", "2e5", "yes"], "test_contigs": ["Y"]},
        tokenizer={"kind": "kmer", "k": 3},
        parallel={"pp": 2, "vpp": 2},
        optim__lr=3e-4,
        train__eval_samples=5,
        train__run_dir="1e5",
        checkpoint={"load": "old"},
    )
    (tmp_path / "dump.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dump.yaml") == config


@settings(deadline=None)
@given(
    lr=st.floats(1e-300, 1e300, allow_nan=False),
    steps=st.integers(1, 2**63),
    contigs=st.lists(st.text(min_size=1).filter(lambda text: text.isprintable()), min_size=1),
)
def test_any_numbers_and_names_survive_dump_and_load(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int, contigs: list[str]
) -> None:
    config = build(optim__lr=lr, train__train_steps=steps, data__split={"by": "contig", "valid_contigs": contigs})
    file = tmp_path_factory.mktemp("dump") / "dump.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_what_dry_run_prints_loads_back_to_the_same_tree(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["parallel.tp=2", "optim.lr=3e-4", "data.train=[a, {prefix: b, weight: 3}]", "data.valid=c"]
    assert main(["pretrain", str(file), *overrides, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_config(tmp_path / "printed.yaml") == load_config(file, overrides)
    assert main(["pretrain", str(tmp_path / "printed.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == printed


def test_dry_run_prints_every_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(file), "--dry-run"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    for key in config_keys():
        node = tree
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_tree_is_frozen() -> None:
    config = build()
    for section, name in ((config, "train"), (config.train, "train_steps"), (config.data.split, "by"), (config.data.train[0], "weight")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)
    with pytest.raises((ValidationError, AttributeError, ValueError)):
        config.model.head_dim = 4  # type: ignore[misc]


@pytest.mark.parametrize("key", ["model.head_dim", "model.padded_vocab_size", "train.num_microbatches"])
def test_derived_numbers_cannot_be_set(file: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown config key '{key}'"):
        load_config(file, [f"{key}=4"])


def test_derived_numbers() -> None:
    config = build(model__num_query_groups=2, parallel={"tp": 2, "pp": 2})
    assert (config.model.head_dim, config.model.query_groups, config.parallel.model_parallel_size) == (8, 2, 4)
    assert (config.max_positions, config.lr_decay_steps) == (64, 100)
    assert [config.num_microbatches(size) for size in (1, 2, 4)] == [4, 2, 1]
    assert [padded_vocab_size(size) for size in (1, 128, 129, 4101)] == [128, 128, 256, 4224]


@pytest.mark.parametrize("value", ["a", ["a"], [{"prefix": "a"}], {"prefix": "a"}])
def test_sources_can_be_written_short_or_long(value: Any) -> None:
    assert build(data__train=value) == build(data__train=[{"prefix": "a", "weight": 1.0}])


def test_one_held_out_shard_is_named_valid() -> None:
    assert build(data__valid="a").data.valid == {"valid": Path("a")}


def test_shipped_configurations_are_valid() -> None:
    root = Path(__file__).resolve().parents[1]
    shipped = [*(root / "examples").rglob("*.yaml"), *(root / "dnapretrain" / "recipes").glob("*.yaml")]
    assert shipped
    ablation = (
        "data.train=shard",
        "data.sequence_length=141",
        "tokenizer.kind=kmer",
        "tokenizer.k=6",
        "train.run_dir=run",
        "train.train_steps=2000",
    )  # what experiment.sh adds to its part
    for path in shipped:
        if path.name != "suite.yaml":  # tasks of `benchmark`, which its page runs
            load_config(path, ablation if path.parent.name == "tokenizers" else ())


def test_names_of_other_tools_lead_to_real_keys() -> None:
    from dnapretrain.config_file import NAMES_ELSEWHERE

    assert set(NAMES_ELSEWHERE.values()) <= set(config_keys())
    assert not {key.rpartition(".")[2] for key in config_keys()} & NAMES_ELSEWHERE.keys()
