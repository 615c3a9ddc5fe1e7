"""Nucleotide Transformer v2 for transformers: ESM's encoder with rotary positions and a gated (SiLU) feed-forward.

Parameters have the names of the published models. What those hold and never read (position table, contact head, rotary frequencies)
is passed over when a folder is loaded. Written by dnapretrain; Apache-2.0. Shapes: B batch, S sequence, N heads, D head width, H hidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput

from .esm_config import EsmConfig

TOKEN_DROPOUT = 0.15 * 0.8
"""Share of <mask> among the tokens in training: `token_dropout` scales embeddings to what they were there."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, want_weights: bool) -> tuple[Tensor, Any]:
    """Softmax attention of [B, N, S, D]; by steps, with its weights [B, N, S, S], where they are asked for or attention is "eager"; `bias`
    is added to the scores."""
    if not want_weights:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout), None
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value, weights


def padding_bias(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the scores, 0 or the lowest number: [B, 1, 1, S] of a mask of keys [B, S], [B, 1, S, S] of one of pairs."""
    if attention_mask is None:
        return None
    if attention_mask.dim() not in (2, 3):
        raise ValueError(f"attention_mask has {attention_mask.dim()} axes; give [batch, keys] or [batch, queries, keys], 1 at what is real")
    hidden = attention_mask == 0
    hidden = hidden[:, None, None, :] if hidden.dim() == 2 else hidden[:, None]
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, torch.finfo(like.dtype).min)


def check_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Raise ValueError unless one of the two is given."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")


def rotary_angles(length: int, width: int, factor: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [S, D] of position x frequency / factor, both halves of a head alike. Computed each time: no buffer to be lost."""
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)) / factor
    angles = torch.outer(torch.arange(length, device=like.device, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn element j of each head [..., S, D] with element j + D/2."""
    first, second = x.chunk(2, dim=-1)
    return x * angles[0] + torch.cat((-second, first), dim=-1) * angles[1]


class EsmEmbeddings(nn.Module):
    """Words; a norm where the configuration has one."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.emb_layer_norm_before else None
        self.mask_id = config.mask_token_id if config.token_dropout else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """[B, S, H]."""
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.mask_id is not None and input_ids is not None:
            hidden = self._rescale(hidden, input_ids == self.mask_id, attention_mask)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return self.dropout(hidden)

    def _rescale(self, words: Tensor, masked: Tensor, attention_mask: Tensor | None) -> Tensor:
        """<mask> reads 0, and the other words make up for it."""
        lengths = masked.shape[1] if attention_mask is None else attention_mask.sum(-1).clamp(min=1)
        share = masked.sum(-1) / lengths
        scale = (1 - TOKEN_DROPOUT) / (1 - share).clamp(min=1e-6)
        return words.masked_fill(masked[..., None], 0.0) * scale[:, None, None].to(words.dtype)


class EsmSelfAttention(nn.Module):
    """Projections, rotation, attention."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None, angles: tuple[Tensor, Tensor], want_weights: bool) -> tuple[Tensor, Any]:
        """Context [B, S, H] and, where asked for, weights."""
        query, key, value = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        context, weights = attend(rotate(query, angles), rotate(key, angles), value, bias, dropout, want_weights)
        return context.transpose(1, 2).flatten(2), weights


class EsmDense(nn.Module):
    """A linear layer and the dropout of what it adds."""

    def __init__(self, config: EsmConfig, width: int, bias: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size, bias=bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, width] -> [B, S, H]."""
        return self.dropout(self.dense(x))


class EsmAttention(nn.Module):
    """Norm, attention, projection."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.self = EsmSelfAttention(config)
        self.output = EsmDense(config, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, *how: Any) -> tuple[Tensor, Any]:
        """Hidden states with the attention's part added, and weights."""
        context, weights = self.self(self.LayerNorm(hidden), *how)
        return hidden + self.output(context), weights


class EsmIntermediate(nn.Module):
    """One matrix for both halves of the gate: the first is activated, the second multiplies."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.add_bias_fnn)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, intermediate_size]."""
        activated, multiplies = self.dense(x).chunk(2, dim=-1)
        return F.silu(activated) * multiplies


class EsmLayer(nn.Module):
    """Attention, then the gated feed-forward, each behind its norm."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.attention = EsmAttention(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = EsmIntermediate(config)
        self.output = EsmDense(config, config.intermediate_size, bias=config.add_bias_fnn)

    def forward(self, hidden: Tensor, bias: Tensor | None, angles: tuple[Tensor, Tensor], want_weights: bool) -> tuple[Tensor, Any]:
        """Hidden states and, where asked for, weights."""
        hidden, weights = self.attention(hidden, bias, angles, want_weights)
        return hidden + self.output(self.intermediate(self.LayerNorm(hidden))), weights


class EsmEncoder(nn.Module):
    """The layers and the norm behind them."""

    _gradient_checkpointing_func: Any  # set by transformers

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads
        self.stretch = config.seq_len_interpolation_factor or 1.0
        self.layer = nn.ModuleList(EsmLayer(config) for _ in range(config.num_hidden_layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, want_states: bool, want_weights: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Last hidden states [B, S, H]; what each layer was given and the last ones; attention weights. The latter two where asked for."""
        states, all_weights = [], []
        by_hand = want_weights or self.config._attn_implementation == "eager"
        bias = padding_bias(attention_mask, hidden)
        angles = rotary_angles(hidden.shape[1], self.head_width, self.stretch, hidden)
        for layer in self.layer:
            states.append(hidden)
            if self.gradient_checkpointing and self.training:
                hidden, weights = self._gradient_checkpointing_func(layer.__call__, hidden, bias, angles, by_hand)
            else:
                hidden, weights = layer(hidden, bias, angles, by_hand)
            all_weights.append(weights)
        hidden = self.emb_layer_norm_after(hidden)
        return hidden, (*states, hidden) if want_states else (), tuple(all_weights) if want_weights else ()


class EsmPreTrainedModel(PreTrainedModel):
    """What all classes here share."""

    config_class = EsmConfig
    base_model_prefix = "esm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("EsmLayer",)
    _keys_to_ignore_on_load_unexpected = (r"\.inv_freq$", r"contact_head\.", r"embeddings\.position_(ids|embeddings)")

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm, EsmLMHead)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class EsmModel(EsmPreTrainedModel):
    """The encoder without a head."""

    _auto_class = "AutoModel"

    def __init__(self, config: EsmConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        if add_pooling_layer:
            raise ValueError("these models have no pooling layer")
        self.embeddings = EsmEmbeddings(config)
        self.encoder = EsmEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another word table in its place."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """`last_hidden_state` [B, S, H] behind the final norm; attention_mask is 1 at what is real, 0 at padding."""
        check_input(input_ids, inputs_embeds)
        want_weights = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = self.embeddings(input_ids, inputs_embeds, attention_mask)
        last, states, weights = self.encoder(hidden, attention_mask, bool(want_states), bool(want_weights))
        output = BaseModelOutput(last_hidden_state=last, hidden_states=states or None, attentions=weights or None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class EsmLMHead(nn.Module):
    """dense, GELU, norm, projection to the vocabulary."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, S, vocabulary]."""
        return self.decoder(self.layer_norm(F.gelu(self.dense(hidden)))) + self.bias


class EsmForMaskedLM(EsmPreTrainedModel):
    """The encoder with the head it was trained with."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight"}  # noqa: RUF012 (only where tie_word_embeddings)

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.esm = EsmModel(config)
        self.lm_head = EsmLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Put another projection in its place."""
        self.lm_head.decoder = value

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, S, vocabulary]; with `labels` [B, S] (-100: not predicted) the mean cross-entropy as `loss`."""
        output = self.esm(input_ids, return_dict=True, **inputs)
        logits = self.lm_head(output.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()


class EsmClassificationHead(nn.Module):
    """dense, tanh, projection of the first token."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [B, labels]."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(hidden[:, 0])))))


class EsmForSequenceClassification(EsmPreTrainedModel):
    """One label, one number, or several labels for a sequence, by config.problem_type."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.esm = EsmModel(config)
        self.classifier = EsmClassificationHead(config)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, labels]."""
        output = self.esm(input_ids, return_dict=True, **inputs)
        logits = self.classifier(output.last_hidden_state)
        loss = None if labels is None else self.loss_function(labels.to(logits.device), logits, self.config)
        result = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()


class EsmForTokenClassification(EsmPreTrainedModel):
    """A label for each token."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.esm = EsmModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, S, labels]; labels of -100 are not predicted."""
        output = self.esm(input_ids, return_dict=True, **inputs)
        logits = self.classifier(self.dropout(output.last_hidden_state))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()
