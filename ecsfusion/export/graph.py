"""The graph of a finished model: flat inputs, one answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecsfusion.export.inputs import BATCH, GraphInput
from ecsfusion.model.answers import answer_of


class Graph(nn.Module):
    """A model as a function of tensors.

    Args:
        model: a `FusionForClassification` in evaluation mode.
        inputs: what it is called with, in order.
    """

    def __init__(self, model: Any, inputs: Sequence[GraphInput]) -> None:
        super().__init__()
        self.model = only(model, {each.modality for each in inputs})
        self.names = [(each.modality, each.key) for each in inputs]
        # The model is in evaluation mode already, and without some of its parts it cannot be set.
        self.training = False

    def forward(self, *values: Tensor) -> Tensor:
        """Answers (B, C): probabilities, or in regression predictions."""
        inputs: dict[str, dict[str, Tensor]] = {}
        present: dict[str, Tensor] = {}
        for (modality, key), value in zip(self.names, values, strict=True):
            if key is None:
                present[modality] = value
            else:
                inputs.setdefault(modality, {})[key] = value
        return answer_of(self.model(present=present, **inputs), self.model.config)


def only(model: Any, modalities: set[str]) -> Any:
    """The model without the encoders and heads of other modalities; it shares the weights of the rest."""
    part = copy.copy(model)
    part._modules = dict(model._modules)
    for kind in ("encoders", "heads", "best_heads"):
        kept = {name: module for name, module in getattr(model, kind).items() if name in modalities}
        part._modules[kind] = nn.ModuleDict(kept)
    return part


def export_graph(model: Any, inputs: Sequence[GraphInput]) -> torch.export.ExportedProgram:
    """Trace the model by `torch.export`, with a free number of rows.

    Args:
        model: a `FusionForClassification` in evaluation mode.
        inputs: what it is called with.
    """
    return trace(Graph(model, inputs), inputs)


def trace(graph: nn.Module, inputs: Sequence[GraphInput]) -> torch.export.ExportedProgram:
    """Trace a function of these inputs by `torch.export`, with a free number of rows."""
    # Of lengths the encoder decides whether they are free: some take only one.
    kinds = {BATCH: torch.export.Dim.DYNAMIC}
    shapes = tuple(
        {d: kinds.get(dim, torch.export.Dim.AUTO) for d, dim in each.dims.items()} for each in inputs
    )
    with torch.no_grad():
        return torch.export.export(graph, tuple(each.sample for each in inputs), dynamic_shapes=(shapes,))


def shapes_of(program: torch.export.ExportedProgram, inputs: Sequence[GraphInput]) -> list[list[int | str]]:
    """The sizes of the dimensions of each input of a program; of those that are free the name."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [
        [size if isinstance(size, int) else each.dims[d] for d, size in enumerate(node.meta["val"].shape)]
        for node, each in zip(nodes, inputs, strict=True)
    ]
