"""Fused heads: from the embeddings of all modalities to one set of logits.

A fused head is an `nn.Module` that is called as

    logits = head(embeddings, unimodal_logits, present)

with three dictionaries that hold every modality of the model, in order:

- `embeddings[name]`: (B, D_m); rows without this modality are zero.
- `unimodal_logits[name]`: (B, C), the answers of the modality's own head; rows without this modality are zero.
- `present[name]`: (B,) bool, which rows have this modality. Every row has at least one.

It returns logits (B, C), C = `num_labels` classes, labels, or targets. The values in rows without a modality must not
influence the result; each head below says how it treats a missing modality.

A head may have a method `start_from(heads)`, which is called with the linear heads `nn.Linear(D_m, C)` by modality and
sets the fused head to an ensemble of them, from which joint training starts.

`FUSION_HEADS` lists the built-in heads. A head of the user's own is passed as
`from_modality_pretrained(..., fusion=MyHead())`, and again, because its code is not saved, as
`from_pretrained(..., fusion=MyHead())`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ecsfusion.model.own_modules import keep_weights

Tensors = Mapping[str, Tensor]


class ConcatenationHead(nn.Module):
    """Linear head over the concatenated embeddings; a missing modality counts as a zero embedding.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)
        self.linear = nn.Linear(sum(embedding_dims.values()), num_labels)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        return self.linear(_concatenate(embeddings, self.names))

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, so that joint training starts at their ensemble.

        The sum of the logits is the (unnormalized) log of the product of the heads' posteriors: the Bayes
        combination when the modalities are independent given the label and the classes equally likely.
        """
        self.linear.weight.copy_(torch.cat([heads[name].weight for name in self.names], dim=1))
        self.linear.bias.copy_(torch.stack([heads[name].bias for name in self.names]).sum(dim=0))


class MLPHead(nn.Module):
    """A linear head over the concatenated embeddings, plus a layer of hidden units.

        logits = W h + b + V relu(U h + c),    h = concatenated embeddings

    The hidden units can represent functions that are no sum over modalities, such as whether two modalities agree. A
    missing modality counts as a zero embedding.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: number of hidden units.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int, width: int = 128) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)
        self.linear = ConcatenationHead(embedding_dims, num_labels)
        self.hidden = nn.Linear(sum(embedding_dims.values()), width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        hidden = self.hidden(_concatenate(embeddings, self.names))
        return self.linear(embeddings, unimodal_logits, present) + self.classifier(hidden.relu())

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, to which the hidden units at first add nothing."""
        self.linear.start_from(heads)
        _set_to_zero(self.classifier)


class GatedSumHead(nn.Module):
    """Sum of linear scores of the modalities, each weighed by a gate that depends on all embeddings of the row.

        logits = sum_m g_m (W_m h_m + b_m),    g = (number present) * softmax over those present of (V h + c)

    A scalar gate on an embedding, followed by a linear layer, is the same as a gate on its scores (gated multimodal
    units: Arevalo et al. 2017, arXiv 1702.01992). The gate of a missing modality is zero; the others share its weight.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)
        self.scores = nn.ModuleDict(
            {name: nn.Linear(dim, num_labels) for name, dim in embedding_dims.items()}
        )
        self.gate = nn.Linear(sum(embedding_dims.values()), len(self.names))

    def gates(self, embeddings: Tensors, present: Tensors) -> Tensor:
        """The gates (B, M), zero for missing modalities; the sum of a row is the number of its modalities."""
        mask = _stack(present, self.names)
        scores = self.gate(_concatenate(embeddings, self.names))
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
        return weights * mask.sum(dim=1, keepdim=True).to(weights.dtype)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        scores = torch.stack([self.scores[name](embeddings[name]) for name in self.names], dim=1)
        return (self.gates(embeddings, present).unsqueeze(-1) * scores).sum(dim=1)

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads: equal gates over copies of them."""
        for name in self.names:
            self.scores[name].load_state_dict(heads[name].state_dict())
        _set_to_zero(self.gate)


class CrossAttentionHead(nn.Module):
    """A linear head over the concatenated embeddings, plus a learned query that attends to one token per modality.

    Tokens are embeddings projected to a common width and normalized. A missing modality is masked out of the attention.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: width of the tokens; by default the largest D_m, rounded down to a multiple of `num_attention_heads`.
        num_attention_heads: number of attention heads; it divides the width.

    Raises:
        ValueError: a width that is no multiple of the number of attention heads.
    """

    def __init__(
        self,
        embedding_dims: Mapping[str, int],
        num_labels: int,
        width: int | None = None,
        num_attention_heads: int = 4,
    ) -> None:
        super().__init__()
        width = _common_width(embedding_dims, width, num_attention_heads)
        self.names = tuple(embedding_dims)
        self.linear = ConcatenationHead(embedding_dims, num_labels)
        self.project = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in embedding_dims.items()})
        self.norm_tokens = nn.LayerNorm(width)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, num_attention_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        tokens = torch.stack([self.project[name](embeddings[name]) for name in self.names], dim=1)
        tokens = self.norm_tokens(tokens)
        missing = ~_stack(present, self.names)
        query = self.query.expand(tokens.shape[0], -1, -1)
        attended, _ = self.attention(query, tokens, tokens, key_padding_mask=missing, need_weights=False)
        logits = self.classifier(self.norm((query + attended)[:, 0]))
        return self.linear(embeddings, unimodal_logits, present) + logits

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, to which attention at first adds nothing."""
        self.linear.start_from(heads)
        _set_to_zero(self.classifier)


class TransformerHead(nn.Module):
    """A small Transformer encoder over one token per modality and a class token, with a linear layer on the latter.

    The late fusion of SimBaMM (Rheude et al. 2025, arXiv 2512.22991). Tokens are embeddings projected to a common
    width, each modality by a linear layer of its own (whose bias marks the modality). A missing modality is masked out
    of the attention. Joint training starts from random weights, because a Transformer cannot be set to an ensemble of
    linear heads.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: width of the tokens; by default the largest D_m, rounded down to a multiple of `num_attention_heads`.
        num_layers: number of encoder layers, each with a feed-forward part of four times the width.
        num_attention_heads: number of attention heads; it divides the width.
        dropout: probability of dropout in the encoder; the authors tune it.

    Raises:
        ValueError: a width that is no multiple of the number of attention heads, or no layer.
    """

    def __init__(
        self,
        embedding_dims: Mapping[str, int],
        num_labels: int,
        width: int | None = None,
        num_layers: int = 2,
        num_attention_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; give at least one in fusion_options.")
        width = _common_width(embedding_dims, width, num_attention_heads)
        self.names = tuple(embedding_dims)
        self.project = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in embedding_dims.items()})
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_attention_heads, 4 * width, dropout, batch_first=True)
            for _ in range(num_layers)
        )
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        tokens = torch.stack([self.project[name](embeddings[name]) for name in self.names], dim=1)
        class_token = self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        missing = ~_stack(present, self.names)
        masked = torch.cat([missing.new_zeros(missing.shape[0], 1), missing], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=masked)
        return self.classifier(tokens[:, 0])


class LateAverageHead(nn.Module):
    """Mean of the unimodal logits of the modalities that a row has; it has no weights of its own.

    Args:
        embedding_dims: D_m by modality; only the names are used.
        num_labels: not used.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        mask = _stack(present, self.names).unsqueeze(-1)
        logits = _stack(unimodal_logits, self.names)
        return (logits * mask).sum(dim=1) / mask.sum(dim=1)


class EntropyAverageHead(nn.Module):
    """Mean of the unimodal logits, weighed in each row by their certainty; it has no weights of its own.

        H_m = -sum_k p_k log p_k of p = softmax(z_m),    w = softmax over those present of (-H_m),    z = sum_m w_m z_m

    The test-time fusion of MLA (Zhang et al. 2024, arXiv 2311.10707), for single-label classification. The weight of a
    missing modality is zero.

    Args:
        embedding_dims: D_m by modality; only the names are used.
        num_labels: not used.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)

    def weights(self, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """The weights w (B, M), zero for missing modalities; the sum of a row is one."""
        mask = _stack(present, self.names)
        log_p = _stack(unimodal_logits, self.names).log_softmax(dim=2)
        entropy = -(log_p.exp() * log_p).sum(dim=2)
        return (-entropy).masked_fill(~mask, -torch.inf).softmax(dim=1)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        logits = _stack(unimodal_logits, self.names)
        return (self.weights(unimodal_logits, present).unsqueeze(-1) * logits).sum(dim=1)


class BoostedHead(nn.Module):
    """Mean over the modalities of a row of boosted scores: each is the sum of several classifiers of one embedding.

        F_m = sum over the first K_m classifiers k of W relu(V_mk h_m + c_mk) + b
        logits = mean over the modalities present of F_m

    The head of AUG (Jiang et al. 2025, arXiv 2502.20120). W and b are the same for all classifiers and modalities. K_m
    is 1 until `add_classifier` puts the next one to use, as the strategy "aug" does; it is saved with the weights.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: number of hidden units of a classifier.
        num_classifiers: the largest K_m.

    Raises:
        ValueError: no classifier at all.
    """

    counts: Tensor

    def __init__(
        self, embedding_dims: Mapping[str, int], num_labels: int, width: int = 256, num_classifiers: int = 11
    ) -> None:
        super().__init__()
        if num_classifiers < 1:
            raise ValueError(
                f"num_classifiers is {num_classifiers}; give at least one for each modality in fusion_options."
            )
        self.names = tuple(embedding_dims)
        self.classifiers = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.Linear(dim, width) for _ in range(num_classifiers))
                for name, dim in embedding_dims.items()
            }
        )
        self.output = nn.Linear(width, num_labels)
        self.register_buffer("counts", torch.ones(len(self.names), dtype=torch.long))

    def scores(self, name: str, embeddings: Tensor) -> list[Tensor]:
        """What each classifier that is in use adds to F_m, (N, C) each.

        Args:
            name: the modality.
            embeddings: (N, D_m).
        """
        count = int(self.counts[self.names.index(name)])
        layers = list(cast("nn.ModuleList", self.classifiers[name]))[:count]
        return [self.output(layer(embeddings).relu()) for layer in layers]

    def _boosted(self, name: str, embeddings: Tensor) -> Tensor:
        """F_m, (N, C)."""
        if not torch.compiler.is_compiling():
            return torch.stack(self.scores(name, embeddings)).sum(dim=0)
        # The number in use is on the device, and cannot be read while the model is compiled.
        layers = [*cast("nn.ModuleList", self.classifiers[name])]
        scores = torch.stack([self.output(layer(embeddings).relu()) for layer in layers])
        in_use = torch.arange(len(layers), device=scores.device) < self.counts[self.names.index(name)]
        return (scores * in_use[:, None, None]).sum(dim=0)

    def add_classifier(self, name: str) -> bool:
        """Use one more classifier of a modality; False where all of them are used already."""
        index = self.names.index(name)
        if int(self.counts[index]) == len(cast("nn.ModuleList", self.classifiers[name])):
            return False
        self.counts[index] += 1
        return True

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C); for the arguments see the docstring of this module."""
        mask = _stack(present, self.names).unsqueeze(-1)
        boosted = {name: self._boosted(name, embeddings[name]) for name in self.names}
        return (_stack(boosted, self.names) * mask).sum(dim=1) / mask.sum(dim=1)


def _stack(values: Tensors, names: Sequence[str]) -> Tensor:
    """Values (B, ...) of M modalities as (B, M, ...)."""
    return torch.stack([values[name] for name in names], dim=1)


def _concatenate(embeddings: Tensors, names: Sequence[str]) -> Tensor:
    """Embeddings (B, D_m) side by side."""
    return torch.cat([embeddings[name] for name in names], dim=1)


def _set_to_zero(linear: nn.Linear) -> None:
    linear.weight.zero_()
    linear.bias.zero_()


def _common_width(embedding_dims: Mapping[str, int], width: int | None, num_attention_heads: int) -> int:
    if width is None:
        width = max(max(embedding_dims.values()) // num_attention_heads, 1) * num_attention_heads
    if width % num_attention_heads:
        raise ValueError(
            f"width is {width}, which is no multiple of num_attention_heads, {num_attention_heads}; "
            "choose another in fusion_options."
        )
    return width


FUSION_HEADS: dict[str, type[nn.Module]] = {
    "concatenation": ConcatenationHead,
    "mlp": MLPHead,
    "gated-sum": GatedSumHead,
    "cross-attention": CrossAttentionHead,
    "transformer": TransformerHead,
    "late-average": LateAverageHead,
    "entropy-average": EntropyAverageHead,
    "boosted": BoostedHead,
}


def build_fusion_head(
    name: str,
    options: Mapping[str, Any],
    embedding_dims: Mapping[str, int],
    num_labels: int,
    own: nn.Module | None = None,
) -> nn.Module:
    """Build the fused head that a configuration names, or take the user's own.

    Args:
        name: a key of `FUSION_HEADS`, or the name of the user's class.
        options: its keyword arguments.
        embedding_dims: D_m by modality.
        num_labels: C.
        own: the user's own head.

    Raises:
        ValueError: an unknown name, an option that the head does not have, or a head of the user's own that is missing.
    """
    if own is not None:
        return keep_weights(own)
    if name not in FUSION_HEADS:
        raise ValueError(
            f"fusion is {name!r}; choose one of {', '.join(FUSION_HEADS)}. If it is your own head, its code is "
            f"not saved: pass it again, from_pretrained(..., fusion={name}(...))."
        )
    try:
        return FUSION_HEADS[name](embedding_dims, num_labels, **options)
    except TypeError as error:
        raise ValueError(
            f"fusion_options is {dict(options)}, which {name!r} does not take ({error})."
        ) from error
