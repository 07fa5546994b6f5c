"""From the embeddings of all modalities to one set of logits: the fused head, of seven kinds or one's own.

A fused head is an `nn.Module` that is called as

    logits = head(embeddings, unimodal_logits, present)

with three dictionaries that hold every modality of the model, in order:

- `embeddings[name]`: (B, D_m); rows without this modality are zero.
- `unimodal_logits[name]`: (B, C), the answers of the modality's own head; rows without this modality are zero.
- `present[name]`: (B,) bool, which rows have this modality. Every row has at least one.

It returns logits (B, C): C = `num_labels` classes, labels, or targets. A missing modality must not make a difference
but by being absent; each head below says how it does that. A head may have a method `start_from(heads)`, given the
linear heads `nn.Linear(D_m, C)` by modality: it sets the fused head to an ensemble of them, where joint training
starts. A head of one's own is passed as `from_modality_pretrained(..., fusion=MyHead())`, and again, because its code
is not saved, as `from_pretrained(..., fusion=MyHead())`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ecsfusion.model.own_modules import keep_weights

Tensors = Mapping[str, Tensor]


class ConcatenationHead(nn.Module):
    """Linear head over the concatenated embeddings; a missing modality counts as a zero embedding."""

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)
        self.linear = nn.Linear(sum(embedding_dims.values()), num_labels)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C), see the head of this file."""
        return self.linear(torch.cat([embeddings[name] for name in self.names], dim=1))

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, so that joint training starts at their ensemble.

        The sum of the logits is the (unnormalized) log of the product of the heads' posteriors: the Bayes
        combination when the modalities are independent given the label and the classes equally likely.
        """
        self.linear.weight.copy_(torch.cat([heads[name].weight for name in self.names], dim=1))
        self.linear.bias.copy_(torch.stack([heads[name].bias for name in self.names]).sum(dim=0))


class MLPHead(nn.Module):
    """A linear head over the concatenated embeddings, and a layer of hidden units beside it.

        logits = W h + b + V relu(U h + c),    h = concatenated embeddings

    The hidden units can say what no sum over modalities can, such as whether two modalities agree. A missing modality
    counts as a zero embedding.

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
        """Logits (B, C), see the head of this file."""
        hidden = self.hidden(torch.cat([embeddings[name] for name in self.names], dim=1))
        return self.linear(embeddings, unimodal_logits, present) + self.classifier(hidden.relu())

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, to which the hidden units at first add nothing."""
        self.linear.start_from(heads)
        self.classifier.weight.zero_()
        self.classifier.bias.zero_()


class GatedSumHead(nn.Module):
    """Sum of linear scores of the modalities, each weighed by a gate that looks at all embeddings of the row.

        logits = sum_m g_m (W_m h_m + b_m),    g = (number present) * softmax over those present of (V h + c)

    A scalar gate on an embedding, followed by a linear layer, is the same as one on its scores (gated multimodal
    units: Arevalo et al. 2017, arXiv 1702.01992). A missing modality has no gate: the others share its weight.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)
        self.scores = nn.ModuleDict(
            {name: nn.Linear(dim, num_labels) for name, dim in embedding_dims.items()}
        )
        self.gate = nn.Linear(sum(embedding_dims.values()), len(self.names))

    def gates(self, embeddings: Tensors, present: Tensors) -> Tensor:
        """The gates (B, M), zero for missing modalities; their sum is the number of those present."""
        there = torch.stack([present[name] for name in self.names], dim=1)
        scores = self.gate(torch.cat([embeddings[name] for name in self.names], dim=1))
        weights = scores.masked_fill(~there, -torch.inf).softmax(dim=1)
        return weights * there.sum(dim=1, keepdim=True).to(weights.dtype)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C), see the head of this file."""
        scores = torch.stack([self.scores[name](embeddings[name]) for name in self.names], dim=1)
        return (self.gates(embeddings, present).unsqueeze(-1) * scores).sum(dim=1)

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads: equal gates over copies of them."""
        for name in self.names:
            self.scores[name].load_state_dict(heads[name].state_dict())
        self.gate.weight.zero_()
        self.gate.bias.zero_()


class CrossAttentionHead(nn.Module):
    """A learned query attends to one token per modality; its answer is added to the linear head's.

    Tokens are embeddings projected to a common width and normed. A missing modality is masked out of the attention.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: of the tokens; by default the largest D_m, rounded down to a multiple of `num_attention_heads`.
        num_attention_heads: divides the width.

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
        """Logits (B, C), see the head of this file."""
        tokens = torch.stack([self.project[name](embeddings[name]) for name in self.names], dim=1)
        tokens = self.norm_tokens(tokens)
        missing = ~torch.stack([present[name] for name in self.names], dim=1)
        query = self.query.expand(len(tokens), -1, -1)
        attended, _ = self.attention(query, tokens, tokens, key_padding_mask=missing, need_weights=False)
        answer = self.classifier(self.norm((query + attended)[:, 0]))
        return self.linear(embeddings, unimodal_logits, present) + answer

    @torch.no_grad()
    def start_from(self, heads: Mapping[str, nn.Linear]) -> None:
        """Become the sum of the unimodal heads, to which attention at first adds nothing."""
        self.linear.start_from(heads)
        self.classifier.weight.zero_()
        self.classifier.bias.zero_()


class TransformerHead(nn.Module):
    """A small Transformer encoder over one token per modality and a class token, which a linear layer reads.

    The late fusion of SimBaMM (Rheude et al. 2025, arXiv 2512.22991). Tokens are embeddings projected to a common
    width, each modality by a linear layer of its own (whose bias says which it is). A missing modality is masked out of
    the attention. Joint training starts from random weights: a Transformer can be no exact ensemble of linear heads.

    Args:
        embedding_dims: D_m by modality.
        num_labels: C.
        width: of the tokens; by default the largest D_m, rounded down to a multiple of `num_attention_heads`.
        num_layers: of the encoder, each with a feed-forward part of four times the width.
        num_attention_heads: divides the width.
        dropout: in the encoder; the authors tune it.

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
        """Logits (B, C), see the head of this file."""
        tokens = torch.stack([self.project[name](embeddings[name]) for name in self.names], dim=1)
        class_token = self.class_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        missing = ~torch.stack([present[name] for name in self.names], dim=1)
        masked = torch.cat([missing.new_zeros(len(missing), 1), missing], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=masked)
        return self.classifier(tokens[:, 0])


class LateAverageHead(nn.Module):
    """Mean of the unimodal logits of the modalities that are present; it has no weights of its own."""

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C), see the head of this file."""
        there = torch.stack([present[name] for name in self.names], dim=1).unsqueeze(-1)
        logits = torch.stack([unimodal_logits[name] for name in self.names], dim=1)
        return (logits * there).sum(dim=1) / there.sum(dim=1)


class EntropyAverageHead(nn.Module):
    """Mean of the unimodal logits, each weighed in each row by how sure it is; it has no weights of its own.

        H_m = -sum_k p_k log p_k of p = softmax(z_m),    w = softmax over those present of (-H_m),    z = sum_m w_m z_m

    The test-time fusion of MLA (Zhang et al. 2024, arXiv 2311.10707), for classes of which a row has one. A missing
    modality has no weight.
    """

    def __init__(self, embedding_dims: Mapping[str, int], num_labels: int) -> None:
        super().__init__()
        self.names = tuple(embedding_dims)

    def weights(self, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """w (B, M), zero for missing modalities; their sum is one."""
        there = torch.stack([present[name] for name in self.names], dim=1)
        log_p = torch.stack([unimodal_logits[name] for name in self.names], dim=1).log_softmax(dim=2)
        entropy = -(log_p.exp() * log_p).sum(dim=2)
        return (-entropy).masked_fill(~there, -torch.inf).softmax(dim=1)

    def forward(self, embeddings: Tensors, unimodal_logits: Tensors, present: Tensors) -> Tensor:
        """Logits (B, C), see the head of this file."""
        logits = torch.stack([unimodal_logits[name] for name in self.names], dim=1)
        return (self.weights(unimodal_logits, present).unsqueeze(-1) * logits).sum(dim=1)


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
}


def build_fusion_head(
    name: str,
    options: Mapping[str, Any],
    embedding_dims: Mapping[str, int],
    num_labels: int,
    own: nn.Module | None = None,
) -> nn.Module:
    """The fused head that a configuration names, or the module itself where it is one's own.

    Raises:
        ValueError: an unknown name, an option that the head does not have, or a module of one's own that is missing.
    """
    if own is not None:
        return keep_weights(own)
    if name not in FUSION_HEADS:
        raise ValueError(
            f"fusion is {name!r}; choose one of {', '.join(FUSION_HEADS)}. If it is a head of one's own, its code is "
            f"not saved: give it again, from_pretrained(..., fusion={name}(...))."
        )
    try:
        return FUSION_HEADS[name](embedding_dims, num_labels, **options)
    except TypeError as error:
        raise ValueError(
            f"fusion_options is {dict(options)}, which {name!r} does not take ({error})."
        ) from error
