"""How much attention of each layer and head falls on the tokens of each class of bases (CDS, intron, ...), of a Hugging Face folder.

share: of all attention that goes to tokens of bases, the part on a class; a token that lies in several classes counts in each by its
bases. expected: the same if every token attended evenly to all that it sees. enrichment = share / expected. Tokens that see one class
only have no choice, and are not asked. Special tokens attend like others; what falls on them is left out, and told apart (many heads
rest there). confident: shares of pairs of tokens with attention above CONFIDENT, as in Vig et al. 2021 (arXiv:2006.15222).

Encoders read the sequence as it is, without masks. Attention is [heads, S, S] for each layer: samples are read one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnapretrain.adapt.backbones.folder import load_model
from dnapretrain.adapt.pictures import check_picture, pyplot
from dnapretrain.config import RunConfig
from dnapretrain.data.formats.whole_file import write_whole
from dnapretrain.data.sampling.samples import SampleStream
from dnapretrain.errors import ConfigError
from dnapretrain.evaluate.counted import spread

CONFIDENT = 0.3
GROUPING = "class"
COLUMNS = ("set", "class", "layer", "head", "share", "expected", "enrichment", "confident_share", "confident_pairs", "on_specials")
RATIOS = (1.25, 4.0)
"""The colours of the picture end at the largest ratio, which is taken to be at least and at most this; and at one over it."""


@dataclass(frozen=True)
class AttentionShares:
    """Of one held-out set."""

    classes: tuple[str, ...]
    """Those that any token lies in."""
    share_CLH: NDArray[np.float64]
    expected_C: NDArray[np.float64]
    confident_CLH: NDArray[np.float64]
    """Not a number where no pair is confident."""
    confident_pairs_LH: NDArray[np.int64]
    specials_LH: NDArray[np.float64]
    """Part of all attention."""
    num_samples: int

    @property
    def enrichment(self) -> NDArray[np.float64]:
        """share / expected, [C, L, H]."""
        return self.share_CLH / self.expected_C[:, None, None]

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON; layers count from 1, as blocks do elsewhere."""
        elements = {}
        for number, name in enumerate(self.classes):
            of_heads = self.enrichment[number]
            layer, head = np.unravel_index(int(of_heads.argmax()), of_heads.shape)
            most = {"layer": int(layer) + 1, "head": int(head), "enrichment": float(of_heads.max())}
            elements[name] = {"expected": float(self.expected_C[number]), "enrichment": of_heads.tolist(), "most": most}
        return {"num_samples": self.num_samples, "elements": elements}


@torch.no_grad()
def attention_shares(
    directory: Path, config: RunConfig, streams: dict[str, SampleStream], device: str, max_samples: int | None = None
) -> dict[str, AttentionShares]:
    """The shares of each set that `config` reads, over at most `max_samples` samples spread evenly over it.

    Raises ConfigError where a set has no annotation, or the model gives no attention.
    """
    model = load_model(directory, device, config.is_masked)
    if type(model).__module__.startswith("transformers."):  # its fast kernels keep no attention; folders with code of their own can
        model.config._attn_implementation = "eager"
    return {name: _of_set(model, config, stream, device, max_samples) for name, stream in streams.items()}


def _of_set(model: Any, config: RunConfig, stream: SampleStream, device: str, max_samples: int | None) -> AttentionShares:
    if stream.regions is None or GROUPING not in stream.regions.groupings:
        raise ConfigError(f"attention by class needs an annotation of the set '{stream.name}'. Give --regions FILE.")
    classes = stream.regions.groupings[GROUPING]
    names = list(stream.regions.groupings)
    first = sum(len(stream.regions.groupings[name]) for name in names[: names.index(GROUPING)])
    sums, ids = _Sums(), spread(stream.num_samples, max_samples)
    for sample in ids:
        batch = stream.batch(np.array([sample]))
        if config.is_masked:
            tokens_BS = batch.labels
            counts_BSC = stream.regions.counts([int(sample)], tokens_BS)
        else:
            tokens_BS = batch.tokens
            whole = np.concatenate([batch.tokens[:, :1], batch.labels], axis=1)
            counts_BSC = stream.regions.counts([int(sample)], whole)[:, : tokens_BS.shape[1]]
        size = int((tokens_BS[0] != stream.tokenizer.pad_id).sum())
        counts_SC = counts_BSC[0, :size, first : first + len(classes)].astype(np.float64)
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BS[:, :size])).to(device)
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True)
        if not getattr(output, "attentions", None) or output.attentions[0] is None:
            raise ConfigError("the model code of the folder gives no attention. Export it anew: `convert from-hf`, `convert to-hf`.")
        sums.add(output.attentions, torch.from_numpy(counts_SC).to(device), not config.is_masked)
    return sums.shares(classes, len(ids))


class _Sums:
    """Attention on classes, summed over samples."""

    def __init__(self) -> None:
        self.on_LHC: Any = 0.0
        self.even_C: Any = 0.0
        self.confident_LHC: Any = 0.0
        self.pairs_LH: Any = 0
        self.all_LH: Any = 0.0
        self.specials_LH: Any = 0.0

    def add(self, attentions: Any, counts_SC: torch.Tensor, is_causal: bool) -> None:
        """One sample; attentions: [1, H, S, S] of each layer, queries before keys."""
        bases_S = counts_SC.sum(dim=1)
        part_SC, is_base_S = counts_SC / bases_S.clamp(min=1)[:, None], (bases_S > 0).double()
        seen_SS = torch.ones(len(bases_S), len(bases_S), dtype=torch.float64, device=counts_SC.device)
        seen_SS = (seen_SS.tril() if is_causal else seen_SS) * is_base_S[None]
        seen_SS = seen_SS / seen_SS.sum(dim=1, keepdim=True).clamp(min=1)
        weights = [layer[0].double() for layer in attentions]
        by_key_LHS = torch.stack([layer.sum(dim=1) for layer in weights])
        self.all_LH = self.all_LH + by_key_LHS.sum(dim=-1).cpu()
        self.specials_LH = self.specials_LH + (by_key_LHS * (1 - is_base_S)).sum(dim=-1).cpu()
        even_SC = seen_SS @ part_SC
        can_choose_S = (even_SC > 0).sum(dim=1) > 1
        weights = [layer[:, can_choose_S] for layer in weights]
        by_key_LHS = torch.stack([layer.sum(dim=1) for layer in weights])
        sure_LHS = torch.stack([(layer > CONFIDENT).double().sum(dim=1) for layer in weights]) * is_base_S
        self.even_C = self.even_C + even_SC[can_choose_S].sum(dim=0).cpu()
        self.on_LHC = self.on_LHC + (by_key_LHS @ part_SC).cpu()
        self.confident_LHC = self.confident_LHC + (sure_LHS @ part_SC).cpu()
        self.pairs_LH = self.pairs_LH + sure_LHS.sum(dim=-1).long().cpu()

    def shares(self, classes: tuple[str, ...] | Any, num_samples: int) -> AttentionShares:
        """What they say."""
        kept = np.flatnonzero(self.even_C.numpy() > 0)
        if not len(kept):
            raise ConfigError(
                f"no token of {num_samples} samples sees two classes. Raise --attention-samples or data.sequence_length, or give other "
                "--regions."
            )
        on_CLH, sure_CLH = (values.permute(2, 0, 1).numpy()[kept] for values in (self.on_LHC, self.confident_LHC))
        pairs_LH = self.pairs_LH.numpy()
        even_C = self.even_C.numpy()[kept]
        return AttentionShares(
            tuple(classes[number] for number in kept),
            on_CLH / on_CLH.sum(axis=0),
            even_C / even_C.sum(),
            np.where(pairs_LH > 0, sure_CLH / np.maximum(pairs_LH, 1), np.nan),
            pairs_LH,
            (self.specials_LH / self.all_LH).numpy(),
            num_samples,
        )


def write_table(path: Path, found: dict[str, AttentionShares]) -> None:
    """A row for each set, class, layer (from 1) and head (from 0), tab-separated; the file appears whole."""
    rows = ["\t".join(COLUMNS)]
    for name, shares in found.items():
        for (c, layer, head), share in np.ndenumerate(shares.share_CLH):
            sure = shares.confident_CLH[c, layer, head]
            values = (share, shares.expected_C[c], share / shares.expected_C[c])
            cells = [name, shares.classes[c], str(layer + 1), str(head), *(f"{value:.6g}" for value in values)]
            cells += ["" if np.isnan(sure) else f"{sure:.6g}", str(shares.confident_pairs_LH[layer, head])]
            rows.append("\t".join([*cells, f"{shares.specials_LH[layer, head]:.6g}"]))
    write_whole(path, "\n".join(rows) + "\n")


def draw_heat_maps(path: Path, found: dict[str, AttentionShares], title: str) -> None:
    """Layers x heads for each class (a row of maps for each set): enrichment, on a scale of logarithms around 1."""
    check_picture(path)
    columns = max(len(shares.classes) for shares in found.values())
    plt, style = pyplot()
    with plt.rc_context(style):
        figure, grid = plt.subplots(
            len(found), columns, figsize=(1.2 + 2.5 * columns, 0.9 + 2.6 * len(found)), dpi=140, layout="constrained", squeeze=False
        )
        largest = max(float(np.abs(np.log2(np.maximum(shares.enrichment, 1e-9))).max()) for shares in found.values())
        limit = min(max(largest, np.log2(RATIOS[0])), np.log2(RATIOS[1]))
        for (name, shares), row in zip(found.items(), grid, strict=True):
            for number, axes in enumerate(row):
                if number >= len(shares.classes):
                    axes.axis("off")
                    continue
                drawn = axes.imshow(
                    np.log2(np.maximum(shares.enrichment[number], 1e-9)), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto"
                )
                num_layers, num_heads = shares.enrichment[number].shape
                axes.set_title(f"{shares.classes[number]} ({shares.expected_C[number]:.1%})", fontsize=9.5)
                axes.set_xticks(range(0, num_heads, -(-num_heads // 8)))
                steps = range(0, num_layers, -(-num_layers // 8))
                axes.set_yticks(steps, [str(step + 1) for step in steps])
                axes.set_xlabel("head")
                axes.set_ylabel(f"{name}: layer" if not number and len(found) > 1 else "layer" if not number else "")
        bar = figure.colorbar(drawn, ax=grid.ravel().tolist(), ticks=np.linspace(-limit, limit, 5), pad=0.01)
        bar.set_ticklabels([f"{2**tick:.2g}" for tick in np.linspace(-limit, limit, 5)])
        bar.set_label("attention over what is expected")
        figure.suptitle(title, fontsize=10.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)
