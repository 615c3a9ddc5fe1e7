"""Rules between the settings of the data: tokens, windows, splits, probes, stages."""

from __future__ import annotations

from dnapretrain.config import RunConfig, SplitConfig
from dnapretrain.config_rules.shared import divides, sample_lengths
from dnapretrain.errors import ConfigError


def check_data(config: RunConfig) -> None:
    """Raise ConfigError for samples that cannot be cut so, or that the network cannot take."""
    for name, length in sample_lengths(config):
        if config.max_positions < length:
            raise ConfigError(f"{name} = {length} exceeds model.max_position_embeddings = {config.max_positions}. Change one.")
    _check_windows(config)
    _check_document_attention(config)
    _check_tokenizer(config)
    _check_split(config.data.split)
    _check_probes(config)
    _check_stages(config)


def _check_windows(config: RunConfig) -> None:
    data, tokenizer, window = config.data, config.tokenizer, config.data.window_length
    lengths = sorted({data.sequence_length, *data.training_lengths})
    for name in ("stride", "window_length"):
        if len(lengths) > 1 and getattr(data, name):
            raise ConfigError(
                f"data.{name} = {getattr(data, name)} bases is for samples of one length; those here have {lengths} tokens. Remove it: "
                "windows then touch, and are as long as their tokens."
            )
    if data.sampling == "packed":
        for name in ("stride", "window_length", "window_jitter"):
            if getattr(data, name):
                raise ConfigError(f"data.{name} is for data.sampling=windows; packed samples have none. Remove data.{name}.")
    elif data.pack_order != "document":
        raise ConfigError(f"data.pack_order={data.pack_order} is for data.sampling=packed. Remove it.")
    if window is None:
        return
    k, special = tokenizer.bases_per_token, (tokenizer.add_bos + tokenizer.add_eos if config.is_masked else 0)
    context = 0 if config.is_masked or tokenizer.add_bos else 1
    most, least = (data.sequence_length - special + context) * k, context * k + (1 if tokenizer.is_variable else k)
    if not least <= window <= most:
        raise ConfigError(
            f"data.window_length = {window} is not {least} to {most} bases, which {data.sequence_length} tokens stand for. Change one."
        )
    if not tokenizer.is_variable:
        divides("data.window_length", window, "the bases of a token", k, "Windows are read in whole tokens: change it.")


def _check_document_attention(config: RunConfig) -> None:
    if not config.data.document_attention:
        return
    if config.data.sampling != "packed":
        raise ConfigError(
            f"data.document_attention is for data.sampling=packed, not {config.data.sampling}, where a sample lies within one document. "
            "Remove it, or set data.sampling=packed."
        )
    if config.model.transformer_impl == "transformer_engine":
        raise ConfigError(
            "data.document_attention masks on the torch path only, and model.transformer_impl=transformer_engine. "
            "Set model.transformer_impl=torch (or auto, which is torch then)."
        )
    if config.model.token_dropout:
        raise ConfigError(
            f"model.token_dropout = {config.model.token_dropout} rescales words by the share of <mask> in the whole sample, so that "
            "documents would not be independent. Set it to 0, or data.document_attention to false."
        )


def _check_tokenizer(config: RunConfig) -> None:
    tokenizer, data = config.tokenizer, config.data
    if tokenizer.kind == "bpe" and tokenizer.file is None:
        raise ConfigError("tokenizer.kind=bpe needs its merges. Set tokenizer.file to a tokenizer.json; dnapretrain train-bpe makes one.")
    if tokenizer.kind != "bpe" and tokenizer.vocab_size is not None:
        raise ConfigError(f"tokenizer.vocab_size = {tokenizer.vocab_size} is for tokenizer.kind=bpe, not {tokenizer.kind}. Remove it.")
    if tokenizer.kind != "bpe" and tokenizer.file is not None:
        raise ConfigError(f"tokenizer.file = {tokenizer.file} is for tokenizer.kind=bpe, not {tokenizer.kind}. Remove it.")
    if data.random_phase and tokenizer.kind != "kmer" and tokenizer.bases_per_token == 1:
        raise ConfigError(f"data.random_phase is for tokenizer.kind=kmer, not {tokenizer.kind}. Set it to false.")
    if tokenizer.is_variable and data.sampling == "packed":
        raise ConfigError(
            f"data.sampling=packed needs tokens of a fixed number of bases, which tokenizer.kind={tokenizer.kind} has not. "
            "Set data.sampling=windows."
        )
    if not tokenizer.add_eos:
        return
    if tokenizer.kind in ("nt_v1", "nt_v2"):
        raise ConfigError(f"tokenizer.add_eos: tokenizer.kind={tokenizer.kind} ends samples with no token. Set it to false.")
    if not config.is_masked:
        raise ConfigError("tokenizer.add_eos is for the masked objective (model.kind=encoder). Set it to false.")
    for name, length in sample_lengths(config):
        if length < 2 + tokenizer.add_bos:
            raise ConfigError(f"{name} = {length} leaves no token for bases between the two ends of a sample. Raise it.")


def _check_split(split: SplitConfig) -> None:
    given = {
        "contig": bool(split.valid_contigs or split.test_contigs),
        "bed": bool(split.valid_bed or split.test_bed),
        "cluster" if split.by == "cluster" else "block": bool(split.valid_fraction or split.test_fraction),
    }
    if (split.clusters is not None) != (split.by == "cluster"):
        way = "Give a file that dnapretrain cluster wrote" if split.by == "cluster" else "Set data.split.by=cluster, or remove it"
        raise ConfigError(f"data.split.clusters = {split.clusters} but data.split.by is '{split.by}'. {way}.")
    of_share = {"valid_fraction": "0", "test_fraction": "0"}
    cleared = {
        "contig": {"valid_contigs": "[]", "test_contigs": "[]"},
        "bed": {"valid_bed": "null", "test_bed": "null"},
        "block": of_share,
        "cluster": of_share,
    }
    for rule, is_given in given.items():
        if is_given and split.by != rule:
            keys = [f"data.split.{key}={empty}" for key, empty in cleared[rule].items() if getattr(split, key)]
            raise ConfigError(
                f"data.split has settings for rule '{rule}' but data.split.by is '{split.by}'. "
                f"Set data.split.by={rule}, or {' '.join(keys)}."
            )
    if split.by != "none" and not given[split.by]:
        needs = {"contig": "valid_contigs", "bed": "valid_bed", "block": "valid_fraction", "cluster": "valid_fraction"}[split.by]
        raise ConfigError(f"data.split.by={split.by} holds nothing out. Set data.split.{needs}.")
    if split.valid_fraction + split.test_fraction >= 1:
        raise ConfigError("data.split.valid_fraction + data.split.test_fraction leave nothing to train on. Lower them.")


def _check_probes(config: RunConfig) -> None:
    probes = config.data.probes
    if (probes.genome is None) != (probes.annotation is None):
        given, lacks = ("genome", "annotation") if probes.annotation is None else ("annotation", "genome")
        raise ConfigError(f"data.probes.{given} = {getattr(probes, given)} without data.probes.{lacks}. Set both, or none.")
    if not probes.is_active:
        return
    least, most, window = max(24, 6 * config.probe_word), config.longest_probe_window, probes.window_length or config.probe_window
    if not least <= window <= most:
        key = "data.probes.window_length" if probes.window_length else "the window of data.probes"
        raise ConfigError(
            f"{key} = {window} is not {least} to {most} bases: a site with some bases around it, and what {config.data.sequence_length} "
            "tokens stand for. Change it, or data.sequence_length."
        )


def _check_stages(config: RunConfig) -> None:
    stages, sources = config.data.stages, config.data.train
    end = 0
    for number, (stage, by_samples) in enumerate(zip(stages, config.data_by_samples().stages, strict=True), 1):
        name = f"stage {number} of data.stages"
        if number == len(stages):
            if stage.until_step or stage.until_samples:
                raise ConfigError(f"{name} is the last one and goes on to the end of the run. Remove its end, or add a stage behind it.")
        elif (stage.until_step is None) == (stage.until_samples is None):
            raise ConfigError(f"{name} needs an end. Give one of until_step and until_samples.")
        elif (by_samples.until_samples or 0) <= end:
            raise ConfigError(
                f"{name} ends at sample {by_samples.until_samples}, where the one before it has ended already ({end}). Raise it."
            )
        end = by_samples.until_samples or 0
        _check_length_begins_a_step(config, number, end)
        if stage.weights is not None and len(stage.weights) != len(sources):
            raise ConfigError(f"{name} has {len(stage.weights)} weights for the {len(sources)} sources of data.train. Give one for each.")
        if stage.weights is not None and not any(stage.weights):
            raise ConfigError(f"{name} has no weight above 0. Raise one.")
    for number, source in enumerate(sources):
        if stages and not any(stage.weights is None or stage.weights[number] for stage in stages):
            raise ConfigError(f"source {source.prefix} of data.train has weight 0 in every stage of data.stages. Remove it, or raise one.")


def _check_length_begins_a_step(config: RunConfig, number: int, end: int) -> None:
    lengths = config.data.training_lengths
    steps, over = config.steps_before(end)
    if number < len(lengths) and lengths[number - 1] != lengths[number] and over:
        near = " or ".join(str(config.samples_after(count)) for count in (steps, steps + 1) if count)
        raise ConfigError(
            f"stage {number} of data.stages ends at sample {end}, within step {steps + 1}, where the length changes from "
            f"{lengths[number - 1]} to {lengths[number]} tokens: a step has samples of one. Use until_step, or until_samples={near}."
        )
