"""DNABERT-2 for transformers: a post-norm encoder with symmetric ALiBi, no position table, and a gated (GELU) feed-forward.

Parameters have the names of the published model. Attention is torch's, in the type of the weights; any length will do. Hidden states
at padding come out as zeros, as of the published model. Written by dnapretrain; Apache-2.0.
Shapes: B batch, S sequence, N heads, D head width, H hidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput

from .configuration_bert import BertConfig


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, want_weights: bool) -> tuple[Tensor, Any]:
    """Softmax attention of [B, N, S, D]; by steps, with its weights [B, N, S, S], where they are asked for or attention is "eager"; `bias`
    is added to the scores."""
    if not want_weights:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout), None
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value, weights


def check_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Raise ValueError unless one of the two is given."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")


def alibi_slopes(num_heads: int) -> list[float]:
    """In head order: a geometric sequence for a power of two; else that of the power below, then every other one of the power above."""
    below = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / below) for head in range(below)]
    return slopes + [2.0 ** (-4.0 * (2 * head + 1) / below) for head in range(num_heads - below)]


def attention_bias(num_heads: int, attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """-slope x |i - j|, and the lowest number at keys that are padding: [1 or B, N, S, S]."""
    positions = torch.arange(like.shape[1], device=like.device)
    distances = (positions[:, None] - positions).abs().float()
    slopes = torch.tensor(alibi_slopes(num_heads), device=like.device)
    bias = (-slopes[:, None, None] * distances)[None].to(like.dtype)
    if attention_mask is None:
        return bias
    if attention_mask.dim() != 2:
        raise ValueError(f"attention_mask has {attention_mask.dim()} axes; give [batch, keys], 1 at what is real")
    return bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(like.dtype).min)


class BertEmbeddings(nn.Module):
    """Words and token types, a norm, dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """[B, S, H]."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        types = self.token_type_embeddings.weight[0] if token_type_ids is None else self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + types))


class BertSelfAttention(nn.Module):
    """One projection: all queries, then all keys, then all values."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: Tensor, bias: Tensor, want_weights: bool) -> tuple[Tensor, Any]:
        """Context [B, S, H] and, where asked for, weights."""
        query, key, value = self.Wqkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        context, weights = attend(query, key, value, bias, self.dropout if self.training else 0.0, want_weights)
        return context.transpose(1, 2).flatten(2), weights


class BertSelfOutput(nn.Module):
    """Projection, dropout, sum, norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: Tensor, residual: Tensor) -> Tensor:
        """[B, S, H]."""
        return self.LayerNorm(residual + self.dropout(self.dense(context)))


class BertAttention(nn.Module):
    """Attention and what follows it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertSelfOutput(config)

    def forward(self, hidden: Tensor, bias: Tensor, want_weights: bool) -> tuple[Tensor, Any]:
        """Hidden states and, where asked for, weights."""
        context, weights = self.self(hidden, bias, want_weights)
        return self.output(context, hidden), weights


class BertGatedLinearUnitMLP(nn.Module):
    """wo(dropout(gelu(first half) x second half)), sum, norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H]."""
        activated, multiplies = self.gated_layers(hidden).chunk(2, dim=-1)
        return self.layernorm(hidden + self.wo(self.dropout(F.gelu(activated) * multiplies)))


class BertLayer(nn.Module):
    """Attention, then the gated feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.mlp = BertGatedLinearUnitMLP(config)

    def forward(self, hidden: Tensor, bias: Tensor, want_weights: bool) -> tuple[Tensor, Any]:
        """Hidden states and, where asked for, weights."""
        hidden, weights = self.attention(hidden, bias, want_weights)
        return self.mlp(hidden), weights


class BertEncoder(nn.Module):
    """The layers."""

    _gradient_checkpointing_func: Any  # set by transformers

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, want_states: bool, want_weights: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Last hidden states [B, S, H]; what each layer was given and the last ones; attention weights. The latter two where asked for."""
        states, all_weights = [], []
        by_hand = want_weights or self.config._attn_implementation == "eager"
        bias = attention_bias(self.num_heads, attention_mask, hidden)
        for layer in self.layer:
            states.append(hidden)
            if self.gradient_checkpointing and self.training:
                hidden, weights = self._gradient_checkpointing_func(layer.__call__, hidden, bias, by_hand)
            else:
                hidden, weights = layer(hidden, bias, by_hand)
            all_weights.append(weights)
        if attention_mask is not None:
            hidden = hidden.masked_fill(attention_mask[..., None] == 0, 0.0)
        return hidden, (*states, hidden) if want_states else (), tuple(all_weights) if want_weights else ()


class BertPooler(nn.Module):
    """dense and tanh of the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [B, H]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class BertPreTrainedModel(PreTrainedModel):
    """What all classes here share."""

    config_class = BertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("BertLayer",)
    _keys_to_ignore_on_load_unexpected = (r"embeddings\.position_ids",)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class BertModel(BertPreTrainedModel):
    """The encoder without a head. It has no pooler unless asked for: pretraining has none to give it weights."""

    _auto_class = "AutoModel"

    def __init__(self, config: BertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler: Any = BertPooler(config) if add_pooling_layer else None
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
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """`last_hidden_state` [B, S, H], zeros at padding; attention_mask is 1 at what is real, 0 at padding."""
        check_input(input_ids, inputs_embeds)
        want_weights = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = self.embeddings(input_ids, inputs_embeds, token_type_ids)
        last, states, weights = self.encoder(hidden, attention_mask, bool(want_states), bool(want_weights))
        output = BaseModelOutput(last_hidden_state=last, hidden_states=states or None, attentions=weights or None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class BertPredictionHeadTransform(nn.Module):
    """dense, GELU, norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H]."""
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    """The transform and the projection to the vocabulary, whose weight is the word table."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, S, vocabulary]."""
        return self.decoder(self.transform(hidden))


class BertOnlyMLMHead(nn.Module):
    """Holds the head under the published name."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [B, S, vocabulary]."""
        return self.predictions(hidden)


class BertForMaskedLM(BertPreTrainedModel):
    """The encoder with the head it was trained with."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Put another projection in its place."""
        self.cls.predictions.decoder = value

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, S, vocabulary]; with `labels` [B, S] (-100: not predicted) the mean cross-entropy as `loss`."""
        output = self.bert(input_ids, return_dict=True, **inputs)
        logits = self.cls(output.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()


def _dropout_of_classifier(config: BertConfig) -> nn.Dropout:
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


class BertForSequenceClassification(BertPreTrainedModel):
    """One label, one number, or several labels for a sequence, by config.problem_type. Its pooler is new, as of the published class."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=True)
        self.dropout = _dropout_of_classifier(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, labels]."""
        output = self.bert(input_ids, return_dict=True, **inputs)
        logits = self.classifier(self.dropout(self.bert.pooler(output.last_hidden_state)))
        loss = None if labels is None else self.loss_function(labels.to(logits.device), logits, self.config)
        result = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()


class BertForTokenClassification(BertPreTrainedModel):
    """A label for each token."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config)
        self.dropout = _dropout_of_classifier(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None, **inputs: Any) -> Any:
        """`logits` [B, S, labels]; labels of -100 are not predicted."""
        output = self.bert(input_ids, return_dict=True, **inputs)
        logits = self.classifier(self.dropout(output.last_hidden_state))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()
