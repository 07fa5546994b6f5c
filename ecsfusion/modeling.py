"""The fusion model: one encoder and one head per modality, and a head over all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from ecsfusion.model.configuration import FusionConfig
from ecsfusion.model.encoders import (
    OWN_MODULE,
    build_encoder,
    describe_adapters,
    describe_encoder,
    embed,
    load_encoder,
    main_input,
)
from ecsfusion.model.fused_heads import build_fusion_head
from ecsfusion.model.names import FUSED, check_modality_name
from ecsfusion.model.pooling import embedding_dim
from ecsfusion.model.problem_types import REGRESSION, check_labels, check_problem, mean_loss, problem_type_of
from ecsfusion.model.readout import Readout
from ecsfusion.model.rows import rows_present, size_and_device, spread, take

STAGES = ("unimodal", "joint")
MACHINE_WORDS = ("memory", "CUDA", "cuDNN", "CUBLAS", "NCCL", "HIP", "Triton")


@dataclass
class FusionOutput(ModelOutput):
    """What [`FusionForClassification`] returns.

    Attributes:
        loss: scalar, when labels are given: of the logits below.
        logits: (B, C), of the fused head.
        unimodal_logits: (B, C) per modality that was run; NaN in rows without it. In evaluation those of its second
            encoder and head, where the model has them (`set_best_heads`).
        embeddings: (B, D_m) per modality that was run; NaN in rows without it.
        present: (B,) bool per modality that was run, which rows have it.
        probabilities: (B, C), calibrated combination of all heads; only when the model carries a readout.
        predictions: (B, C), the same in regression.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    unimodal_logits: dict[str, Tensor] | None = None
    embeddings: dict[str, Tensor] | None = None
    present: dict[str, Tensor] | None = None
    probabilities: Tensor | None = None
    predictions: Tensor | None = None


class FusionForClassification(PreTrainedModel):
    """Several encoders, a linear head on each, and a fusion head over all embeddings.

    In stage "unimodal" the loss is the sum of the losses of the active modalities; a modality that is not active is
    not run at all while training. In stage "joint", and where `fuses_early`, it is that of the fused head +
    auxiliary_weight times the sum of the unimodal ones (arXiv 2509.20840, section 1 of the method). In evaluation every
    modality that is given is run.

    A modality may be missing, in all rows of a batch or in some:

    - Its encoder does not see rows that lack it, so such rows leave no trace in its gradient or its batch statistics.
    - A row's loss is summed over the heads of the modalities that it has, and the fused head's; the loss of a batch is
      the mean over all its rows. So it does not matter which rows share a batch.
    - What the fused head makes of such rows: see `ecsfusion.model.fused_heads`.
    - The readout combines, row by row, the heads of the modalities present, and the fused one if none is missing.
    - A probe takes the rows that have every modality.

    Args:
        config: its configuration.
        own_encoders: modules of one's own by modality, where the configuration cannot build them.
        own_fusion: the same for the fused head.
    """

    config_class = FusionConfig
    main_input_name = "labels"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: FusionConfig,
        own_encoders: Mapping[str, nn.Module] | None = None,
        own_fusion: nn.Module | None = None,
    ) -> None:
        super().__init__(config)
        own_encoders = own_encoders or {}
        if len(config.encoders) < 2:
            raise ValueError(
                f"config.encoders names {len(config.encoders)} modalities {list(config.encoders)}; "
                "fusion needs at least two."
            )
        check_problem(config)
        for name in config.encoders:
            check_modality_name(name)
        unknown = [name for name in own_encoders if name not in config.encoders]
        if unknown:
            raise ValueError(f"encoders names {unknown}, but the modalities are {config.modalities}.")
        self.encoders = nn.ModuleDict(
            {
                name: build_encoder(name, values, config.adapters.get(name), own_encoders.get(name))
                for name, values in config.encoders.items()
            }
        )
        dims = {name: embedding_dim(encoder) for name, encoder in self.encoders.items()}
        self.embedding_dims = dims
        self.heads = nn.ModuleDict({name: nn.Linear(dim, config.num_labels) for name, dim in dims.items()})
        self.fusion = build_fusion_head(
            config.fusion, config.fusion_options, dims, config.num_labels, own_fusion
        )
        self.best_heads = nn.ModuleDict()
        for name in config.best_heads:
            own = copy.deepcopy(own_encoders.get(name))
            encoder = build_encoder(name, config.encoders[name], config.adapters.get(name), own)
            self.best_heads[name] = _best_heads(encoder, nn.Linear(dims[name], config.num_labels))
        self.label_smoothing = 0.0
        self.stage = config.stage
        self.fuses_early = False
        """Whether the fused head is trained in stage 1 too, with the loss of stage 2."""
        self.active: tuple[str, ...] = tuple(config.modalities)
        self.sources: dict[str, str | None] = {}
        """Where the weights of each encoder came from, when that is known."""
        self.frozen: tuple[str, ...] = ()
        self._paused_parameters: set[str] = set()
        self._frozen_parameters: set[str] = set()
        self._built_frozen = [key for key, p in self.named_parameters() if not p.requires_grad]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_modality_pretrained(
        cls,
        encoders: Mapping[str, str | nn.Module],
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        fusion: str | nn.Module = "concatenation",
        trust_remote_code: bool = False,
        **config_kwargs: Any,
    ) -> FusionForClassification:
        """Build a fusion model around pretrained encoders.

        Args:
            encoders: for each modality's name a Hub name, a local folder, a `PreTrainedModel` (with PEFT adapters or
                without), or any `nn.Module` that returns embeddings (see `ecsfusion.model.encoders`).
            num_labels: number of classes C; taken from `id2label` when that is given.
            id2label, label2id: names of the classes, one or both.
            fusion: name of the fused head, "concatenation", "mlp", "gated-sum", "cross-attention", "transformer",
                "late-average" or "entropy-average", or a module of one's own (see `ecsfusion.model.fused_heads`).
            trust_remote_code: run code that comes with a model on the Hub; off by default.
            **config_kwargs: further fields of [`FusionConfig`], such as `problem_type` and `fusion_options`.

        Raises:
            ValueError: fewer than two modalities, an unusable modality name, an encoder without a hidden size.
            TypeError: an encoder that is neither a name nor a module, or one with a head.
        """
        if not isinstance(encoders, Mapping):
            raise TypeError(
                "encoders must map names of modalities to encoders, like "
                f'{{"image": ..., "audio": ...}}; found {type(encoders).__name__}.'
            )
        inverse = None if label2id is None else {int(index): str(label) for label, index in label2id.items()}
        if id2label is None:
            id2label = inverse
        elif inverse is not None and inverse != {int(index): str(label) for index, label in id2label.items()}:
            raise ValueError(
                f"id2label is {dict(id2label)} but label2id is {dict(label2id or {})}; give one of them."
            )
        if num_labels is None and id2label is None:
            raise ValueError("num_labels is missing: give the number of classes, or id2label.")
        labels: dict[str, Any] = {"num_labels": num_labels}
        if id2label is not None:
            names = {int(index): str(label) for index, label in id2label.items()}
            if num_labels is not None and num_labels != len(names):
                raise ValueError(
                    f"num_labels is {num_labels} but id2label names {len(names)} classes; give one of them."
                )
            labels = {"id2label": names, "label2id": {label: index for index, label in names.items()}}
        for name in encoders:
            check_modality_name(name)
        modules = {name: load_encoder(name, encoder, trust_remote_code) for name, encoder in encoders.items()}
        for name, module in modules.items():
            same = [other for other in modules if modules[other] is module and other != name]
            if same:
                raise ValueError(
                    f"encoders[{name!r}] and encoders[{same[0]!r}] are the same object; each modality trains and is "
                    "saved by itself: give one of them copy.deepcopy(encoder)."
                )
        adapters = {name: describe_adapters(module) for name, module in modules.items()}
        own_fusion = fusion if isinstance(fusion, nn.Module) else None
        config = FusionConfig(
            encoders={name: describe_encoder(module) for name, module in modules.items()},
            fusion=fusion if isinstance(fusion, str) else type(fusion).__name__,
            adapters={name: found for name, found in adapters.items() if found},
            **labels,
            **config_kwargs,
        )
        own = {name: modules[name] for name in _own_modalities(config)}
        model = cls(config, own, own_fusion)
        for name, module in modules.items():
            model.encoders[name] = module
            model.sources[name] = getattr(getattr(module, "config", None), "_name_or_path", None) or None
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        encoders: Mapping[str, nn.Module] | None = None,
        fusion: nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `PreTrainedModel.from_pretrained`. Parameters that were frozen by hand are not frozen again.

        Weights are read from safetensors files only, never from pickles.

        Args:
            pretrained_model_name_or_path: a folder or the name of a repository on the Hub.
            encoders: the modules of one's own among the encoders, by modality. Their weights are loaded into them.
            fusion: the fused head, where it is a module of one's own.
            *model_args, **kwargs: as there.
        """
        kwargs.setdefault("use_safetensors", True)
        own = [*(encoders or {}).values(), *([] if fusion is None else [fusion])]
        buffers = [
            (module, name, value.clone()) for module in own for name, value in _unsaved_buffers(module)
        ]
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, own_encoders=encoders, own_fusion=fusion, **kwargs
        )
        # transformers empties the buffers that are not saved, and lets its own models compute them again.
        for module, name, value in buffers:
            module.get_buffer(name).copy_(value)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for modality in set(_own_modalities(model.config)) & set(model.config.best_heads):
            for name, value in _unsaved_buffers(model.encoders[modality]):
                model.best_heads[modality]["encoder"].get_buffer(name).copy_(value)
        # It also makes every weight that it loads trainable: those below adapters, Whisper's positions, one's own.
        for key in model._built_frozen:
            model.get_parameter(key).requires_grad_(False)
        return loaded

    def own_modules(self) -> dict[str, Any]:
        """Copies of the modules of one's own, as the arguments of `from_pretrained` that build this model again."""
        encoders = {name: copy.deepcopy(self.encoders[name]) for name in _own_modalities(self.config)}
        own_fusion = self.config.fusion == type(self.fusion).__name__  # others have a name of their own
        return {"encoders": encoders, "fusion": copy.deepcopy(self.fusion) if own_fusion else None}

    def save_pretrained(
        self, save_directory: Any, *, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, with the weights under their present names.

        The older names that transformers can translate some encoders' weights to would not match when the
        Trainer reads a checkpoint back: it ignores names that it does not know, and the encoder stays as it was.
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(self.config.modalities)

    @property
    def problem_type(self) -> str:
        """What the labels are; see `ecsfusion.model.problem_types`."""
        return problem_type_of(self.config)

    def set_stage(self, stage: str) -> None:
        """Switch the loss between stage 1 ("unimodal") and stage 2 ("joint")."""
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}.")
        self.stage = stage
        self.config.stage = stage

    @property
    def trains_fusion(self) -> bool:
        """Whether the loss in training holds the fused head's."""
        return self.stage == "joint" or self.fuses_early

    def set_active(self, names: Iterable[str]) -> None:
        """Choose the modalities that train; all others are paused.

        A paused modality is not run in training (to the fused head of stage 2 it is missing) and its parameters do
        not require gradients, so that its weights and its optimizer state stay bit for bit what they are. Parameters
        that the user froze stay frozen.
        """
        names = tuple(names)
        unknown = [name for name in names if name not in self.modalities]
        if unknown or not names:
            raise ValueError(
                f"names is {list(names)}; it must name at least one of the modalities {list(self.modalities)}."
            )
        self.active = tuple(name for name in self.modalities if name in names)
        self._switch_gradients()

    def set_frozen(self, names: Iterable[str]) -> None:
        """Freeze the weights of these modalities, and of no others: unlike paused ones they are still run."""
        names = tuple(names)
        unknown = [name for name in names if name not in self.modalities]
        if unknown:
            raise ValueError(f"names is {list(names)}; the modalities are {list(self.modalities)}.")
        self.frozen = names
        self._switch_gradients()

    def _switch_gradients(self) -> None:
        """Let the parameters of modalities that are active and not frozen require gradients, and no others."""
        for name in self.modalities:
            for key, parameter in self.modality_parameters(name).items():
                if not (parameter.requires_grad or key in self._paused_parameters | self._frozen_parameters):
                    continue  # the user froze it
                for reason, keys in (
                    (name not in self.active, self._paused_parameters),
                    (name in self.frozen, self._frozen_parameters),
                ):
                    (keys.add if reason else keys.discard)(key)
                trains = name in self.active and name not in self.frozen
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None

    def set_best_heads(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Answer for these modalities alone by copies of their encoders and heads with these weights.

        Args:
            weights: by modality, named as in `ModuleDict({"encoder": ..., "head": ...})`; none for no copies at all.
        """
        self.best_heads = nn.ModuleDict()
        for name, values in weights.items():
            part = _best_heads(copy.deepcopy(self.encoders[name]), copy.deepcopy(self.heads[name]))
            part.load_state_dict(values)
            self.best_heads[name] = part
        self.config.best_heads = list(weights)

    def train(self, mode: bool = True) -> FusionForClassification:
        """As `nn.Module.train`; a frozen encoder keeps its batch statistics as they are."""
        super().train(mode)
        self.best_heads.eval()
        for name in self.frozen:
            self.encoders[name].eval()
        return self

    def modality_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameters of one modality, encoder and head, by their full names in the model."""
        prefixes = (f"encoders.{name}.", f"heads.{name}.")
        return {key: value for key, value in self.named_parameters() if key.startswith(prefixes)}

    def is_paused(self, parameter_name: str) -> bool:
        """Whether `set_active` turned this parameter's gradient off (and will turn it on again)."""
        return parameter_name in self._paused_parameters

    @torch.no_grad()
    def start_fusion_from_heads(self) -> None:
        """Set the fused head to an ensemble of the unimodal heads, if it has a method `start_from`.

        The built-in heads become their sum in classification, and their mean in regression.
        """
        start_from = getattr(self.fusion, "start_from", None)
        if start_from is None:
            return
        heads = dict(self.heads.items())
        if self.problem_type == REGRESSION:
            heads = copy.deepcopy(heads)
            for parameter in (p for head in heads.values() for p in head.parameters()):
                parameter.div_(len(heads))
        start_from(heads)

    def embed(
        self, name: str, inputs: Mapping[str, Tensor] | Tensor, encoder: nn.Module | None = None
    ) -> Tensor:
        """Embeddings (B, D_m) of one modality's processed inputs, all of whose rows have it.

        By its encoder, or by another one of the same kind.
        """
        encoder = self.encoders[name] if encoder is None else encoder
        expected = main_input(encoder)
        if isinstance(inputs, Tensor):
            inputs = {expected or "values": inputs}
        if expected is not None and expected not in inputs:
            raise ValueError(
                f"modality {name!r} was given {sorted(inputs)}, but its encoder {type(encoder).__name__} takes "
                f"{expected!r}. Is this the right processor?"
            )
        try:
            embeddings = embed(encoder, inputs)
        except (ValueError, RuntimeError, IndexError) as error:
            if type(error) not in (ValueError, RuntimeError, IndexError):  # such as memory that is used up
                raise
            shapes = {key: tuple(value.shape) for key, value in inputs.items()}
            # What is no fault of the input keeps its type: some look for it, to take a smaller batch.
            of_machine = isinstance(error, RuntimeError) and any(word in str(error) for word in MACHINE_WORDS)
            raise (RuntimeError if of_machine else ValueError)(
                f"the encoder {type(encoder).__name__} of modality {name!r} cannot take {shapes}: {error} Is this the "
                "processor that belongs to it?"
            ) from error
        width = self.embedding_dims[name]
        if embeddings.shape[1] != width:
            raise ValueError(
                f"the encoder {type(encoder).__name__} of modality {name!r} returned embeddings of shape "
                f"{tuple(embeddings.shape)}; it says that their width is {width}."
            )
        return embeddings

    def head_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of one head, a scalar: the mean over its rows.

        Every loss in training is made of this one. To use another, a function or a module, set the attribute:
        `model.head_loss = torch.nn.CrossEntropyLoss(weight=...)`. It is not saved, nor moved to another device.

        Args:
            logits: (N, C), of the rows that have this head's modality.
            labels: theirs.
        """
        return mean_loss(logits, labels, self.problem_type, self.label_smoothing)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "head_loss":  # torch would file a module where the method above hides it
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(
        self, labels: Tensor | None = None, present: Mapping[str, Tensor] | None = None, **inputs: Any
    ) -> FusionOutput:
        """Run the modalities that are given.

        Args:
            labels: class indices (B,), or what the problem type asks for, or None.
            present: for each modality that some rows lack, which rows have it, (B,) bool. The other rows of its inputs
                are filled with anything, or the inputs are left out if no row has it.
            **inputs: for each modality its processed inputs, e.g. `image={"pixel_values": (B, 3, H, W)}`,
                or one tensor; a modality that is absent or None is missing in all rows.

        Returns:
            [`FusionOutput`].

        Raises:
            ValueError: an input that is no modality of this model, no modality at all in a row, a mask of another
                shape; labels that do not fit the problem type.
        """
        inputs.pop("return_dict", None)
        if not isinstance(present, Mapping | None):
            raise TypeError(f"present must map modalities to (B,) bool, got {type(present).__name__}.")
        unknown = [name for name in (*inputs, *(present or ())) if name not in self.modalities]
        if unknown:
            raise ValueError(
                f"inputs {unknown} are not modalities of this model; it has {list(self.modalities)}."
            )
        given = {name: inputs[name] for name in self.modalities if inputs.get(name) is not None}
        if not given:
            raise ValueError(f"no modality to run: give at least one of {list(self.modalities)}.")
        size, device = size_and_device(given, next(self.parameters()).device)
        if labels is not None:
            check_labels(labels, self.config.num_labels, self.problem_type)
            if len(labels) != size or labels.device.type == "meta" != device.type:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)} on {labels.device}; give one for each of the {size} "
                    f"rows, on {device}."
                )
        rows = rows_present(given, present or {}, size, device)
        unimodal_training = self.training and not self.trains_fusion
        running = [name for name in self.modalities if name in rows and self._runs(name)]
        everyone = torch.ones(size, dtype=torch.bool, device=device)
        masks, embeddings, unimodal_logits, losses = {}, {}, {}, {}
        for name in running:
            mask = rows[name]
            index = None if mask is None else mask.nonzero()[:, 0]
            h, z = self._run(name, given.get(name), index, self.encoders[name], self.heads[name])
            if labels is not None and len(z):
                losses[name] = self._share_of_loss(z, labels, index)
            embeddings[name], unimodal_logits[name] = spread(h, index, size), spread(z, index, size)
            masks[name] = everyone if mask is None else mask
        # Stage 1 trains no fusion: running it there would only put an unused head into the graph.
        logits = None if unimodal_training or not running else self.fuse(embeddings, unimodal_logits, masks)
        if not self.training:
            for name in (name for name in running if name in self.best_heads):
                mask, part = rows[name], cast("nn.ModuleDict", self.best_heads[name])
                index = None if mask is None else mask.nonzero()[:, 0]
                _, z = self._run(name, given.get(name), index, part["encoder"], part["head"])
                if labels is not None and len(z):  # the loss is that of the logits which are returned
                    losses[name] = self._share_of_loss(z, labels, index)
                unimodal_logits[name] = spread(z, index, size)
        answer = self._read_out(logits, unimodal_logits, masks)
        regression = self.problem_type == REGRESSION
        return FusionOutput(
            loss=None if labels is None else self._sum_of_losses([*losses.values()], logits, labels, masks),
            logits=logits,
            unimodal_logits=unimodal_logits,
            embeddings=embeddings,
            present=masks,
            probabilities=None if regression else answer,
            predictions=answer if regression else None,
        )

    def _share_of_loss(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        """A head's part of the loss of a batch, from its logits (N, C) on the rows `index`, or on all."""
        loss = self.head_loss(logits, labels if index is None else labels[index])
        return loss if index is None else loss * (len(index) / len(labels))

    def _runs(self, name: str) -> bool:
        """A paused modality is not run in training, in either stage: to the fused head it is a missing one."""
        return name in self.active or not self.training

    def _run(
        self, name: str, inputs: Any, index: Tensor | None, encoder: nn.Module, head: Any
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D_m) and logits (N, C) of the N rows of `index`, or of all."""
        if index is not None and not len(index):  # nobody has it: the encoder is not run on nothing
            return head.weight.new_zeros(0, head.in_features), head.weight.new_zeros(0, head.out_features)
        if index is not None:
            inputs = take(inputs, index)
        embeddings = self.embed(name, inputs, encoder)
        return embeddings, head(embeddings)

    def fuse(
        self,
        embeddings: Mapping[str, Tensor],
        unimodal_logits: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
    ) -> Tensor:
        """Logits (B, C) of the fused head, which gets zeros where a modality is missing.

        Args:
            embeddings: (B, D_m) by modality; one that is left out is missing in all rows.
            unimodal_logits: (B, C) likewise.
            present: (B,) bool likewise, which rows have it.
        """
        some = next(iter(embeddings.values()))
        size = len(some)
        h, z, there = {}, {}, {}
        for name in self.modalities:
            if name in present:
                mask = present[name].unsqueeze(1)
                h[name], z[name] = embeddings[name].where(mask, 0.0), unimodal_logits[name].where(mask, 0.0)
                there[name] = present[name]
            else:
                h[name] = some.new_zeros(size, self.embedding_dims[name])
                z[name] = some.new_zeros(size, self.config.num_labels)
                there[name] = torch.zeros(size, dtype=torch.bool, device=some.device)
        logits = self.fusion(h, z, there)
        if not isinstance(logits, Tensor) or logits.shape != (size, self.config.num_labels):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the fused head {type(self.fusion).__name__} returned {found}; it must return logits of shape "
                f"{(size, self.config.num_labels)}."
            )
        return logits

    def _sum_of_losses(
        self, losses: list[Tensor], logits: Tensor | None, labels: Tensor, present: dict[str, Tensor]
    ) -> Tensor:
        if losses:
            total = torch.stack(losses).sum()
        else:  # no row has a modality that trains: a loss of zero that has a gradient, also zero
            heads = [cast("nn.Linear", self.heads[name]) for name in self.active]
            total = torch.stack([head.bias.sum() for head in heads]).sum() * 0.0
        if not self.trains_fusion or logits is None:
            return total
        return self.fused_loss(logits, labels, present) + self.config.auxiliary_weight * total

    def fused_loss(self, logits: Tensor, labels: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """The loss of the fused head, a scalar: the sum over the rows that have a modality that runs / all rows."""
        seen = torch.stack(list(present.values())).any(dim=0)
        if len(self.active) == len(self.modalities) or bool(seen.all()):
            return self.head_loss(logits, labels)
        if not bool(seen.any()):  # the mean over no row is NaN
            return logits.sum() * 0.0
        return self.head_loss(logits[seen], labels[seen]) * seen.float().mean()

    def _read_out(
        self, logits: Tensor | None, unimodal_logits: dict[str, Tensor], present: dict[str, Tensor]
    ) -> Tensor | None:
        if self.config.readout is None or self.training or logits is None:
            return None
        heads = {name: z.float() for name, z in {FUSED: logits, **unimodal_logits}.items()}
        answer = Readout.from_dict(self.config.readout)(heads, present)
        return answer if self.problem_type == REGRESSION else answer.exp()


def _best_heads(encoder: nn.Module, head: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": encoder, "head": head}).requires_grad_(False).eval()


def _own_modalities(config: FusionConfig) -> list[str]:
    return [name for name in config.modalities if config.encoders[name].get("model_type") == OWN_MODULE]


def _unsaved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    saved = module.state_dict()
    return [(name, value) for name, value in module.named_buffers() if name not in saved]


AutoConfig.register("ecsfusion", FusionConfig)
AutoModel.register(FusionConfig, FusionForClassification)
