"""The fusion model: one encoder and one head per modality, and a fused head over all embeddings."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, logging

from ecsfusion.data.columns import nested_form
from ecsfusion.export.write import export_model
from ecsfusion.model.answers import answer_of, labelled
from ecsfusion.model.batch_norm import running_statistics_for_one_value
from ecsfusion.model.configuration import FusionConfig
from ecsfusion.model.contributions import row_contributions
from ecsfusion.model.dtypes import describe_dtypes, set_dtypes
from ecsfusion.model.encoder_errors import encoder_error, warn_without_gradient
from ecsfusion.model.encoders import (
    build_encoder,
    describe_adapters,
    describe_encoder,
    embed,
    load_encoder,
    main_input,
    measure,
    set_attention,
)
from ecsfusion.model.fused_heads import build_fusion_head
from ecsfusion.model.losses import HeadLoss, Present, loss_of_fused_head, sum_of_losses
from ecsfusion.model.names import FUSED, check_modality_names
from ecsfusion.model.own_modules import OWN_MODULE, unsaved_buffers
from ecsfusion.model.problem_types import REGRESSION, check_labels, check_problem, mean_loss, problem_type_of
from ecsfusion.model.readout import Readout
from ecsfusion.model.readout_table import Table, look_up, readout_table
from ecsfusion.model.rows import mask_rows, rows_present, size_and_device, spread, take
from ecsfusion.model.shared_weights import check_not_shared, tied_weights
from ecsfusion.model.whole_weights import check_whole
from ecsfusion.pid.checks import is_whole
from ecsfusion.processing import FusionProcessor

logger = logging.get_logger(__name__)

STAGES = ("unimodal", "joint")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Arguments of `from_pretrained` that say where on the Hub a model is, and so where its processor is."""
OLDER_WEIGHT_NAMES = {r"^standalone\.": "best_heads."}
"""Names of weights in models that earlier versions saved, as patterns, and their present names."""


@dataclass
class FusionOutput(ModelOutput):
    """What [`FusionForClassification`] returns.

    Attributes:
        loss: the loss of the batch, a scalar; None without labels.
        logits: (B, C), of the fused head; None where it was not run.
        unimodal_logits: (B, C) per modality that was run; NaN in rows without it. In evaluation they come from the
            second copy of its encoder and head, where the model has one (`set_best_heads`).
        embeddings: (B, D_m) per modality that was run; NaN in rows without it.
        present: (B,) bool per modality that was run: which rows have it.
        probabilities: (B, C), the calibrated combination of all heads; only in evaluation and if the model has a
            readout.
        predictions: (B, C), the same in regression, in place of `probabilities`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    unimodal_logits: dict[str, Tensor] | None = None
    embeddings: dict[str, Tensor] | None = None
    present: dict[str, Tensor] | None = None
    probabilities: Tensor | None = None
    predictions: Tensor | None = None


class FusionForClassification(PreTrainedModel):
    """Several encoders, a linear head on each, and a fused head over all embeddings.

    In training, the loss is the sum of the losses of the active modalities in stage "unimodal". In stage "joint" it is
    the fused head's loss + `auxiliary_weight` times that sum (arXiv 2509.20840, section 1 of the method), and in stage
    "unimodal" too where `set_stage` was told to train the fused head. A modality that is not active is not run in
    training. In evaluation every modality whose inputs are passed is run.

    A modality may be missing, in all rows of a batch or in some:

    - Its encoder does not see rows that lack it, so such rows change neither its gradient nor its batch statistics.
    - A row's loss is summed over the heads of the modalities that it has, and the fused head's; the loss of a batch is
      the mean over all its rows. So it does not matter which rows share a batch.
    - How the fused head treats such rows: see `ecsfusion.model.fused_heads`.
    - The readout combines, row by row, the heads of the modalities that the row has, and the fused one if the row has
      all of them. Where no loss has trained the heads of modalities, the fused head answers every row.
    - The PID is estimated on the rows that have every modality.

    Args:
        config: the configuration.
        own_encoders: by modality, the user's own modules, which the configuration cannot build.
        own_fusion: the user's own fused head, likewise.
        attention: the `attn_implementation` of the encoders, for all or by modality; None leaves each its own.

    Attributes:
        trains_fused_head: whether the loss in training contains the fused head's.
        stage: "unimodal" or "joint"; see `set_stage`.
        active: names of the modalities that are trained; see `set_active`.
        frozen: names of the modalities whose weights are frozen; see `set_frozen`.
        sources: by modality, the name or path that its pretrained encoder was loaded from, or None if unknown.
        embedding_dims: D_m by modality.
        label_smoothing: share of a label's weight that `head_loss` spreads over all classes.

    Raises:
        ValueError: fewer than two modalities, a name that no modality can have, an unknown problem type, or encoders
            that do not fit the configuration.
    """

    config: FusionConfig
    config_class = FusionConfig
    main_input_name = "labels"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: FusionConfig,
        own_encoders: Mapping[str, nn.Module] | None = None,
        own_fusion: nn.Module | None = None,
        attention: str | Mapping[str, str] | None = None,
    ) -> None:
        attention = config._attn_implementation if attention is None else attention
        super().__init__(config)
        # The configuration of the whole says nothing about attention, or a model made of it would choose for encoders.
        config._attn_implementation_internal = None
        own_encoders = own_encoders or {}
        if len(config.encoders) < 2:
            raise ValueError(
                f"config.encoders names {len(config.encoders)} modalities {list(config.encoders)}; "
                "fusion needs at least two."
            )
        check_problem(config)
        check_modality_names([*config.encoders])
        unknown = [name for name in own_encoders if name not in config.encoders]
        if unknown:
            raise ValueError(f"encoders has the keys {unknown}, but the modalities are {config.modalities}.")
        self.encoders = nn.ModuleDict(
            {
                name: build_encoder(name, values, config.adapters.get(name), own_encoders.get(name))
                for name, values in config.encoders.items()
            }
        )
        check_not_shared(
            {
                **dict(self.encoders.items()),
                **({} if own_fusion is None else {"fusion": own_fusion}),
            }
        )
        dims = {
            name: config.embedding_dims.get(name) or measure(name, encoder).embedding_dim
            for name, encoder in self.encoders.items()
        }
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
        set_dtypes(self, config.dtypes)
        if attention is not None:
            self.set_attn_implementation(attention)
        self.label_smoothing = 0.0
        self.stage = config.stage
        self.trains_fused_head = config.stage == "joint"
        self.active: tuple[str, ...] = tuple(config.modalities)
        self.sources: dict[str, str | None] = {}
        self._processor: FusionProcessor | None = None
        self._hub_options: dict[str, Any] = {}
        self.frozen: tuple[str, ...] = ()
        self._paused_parameters: set[str] = set()
        self._frozen_parameters: set[str] = set()
        self._built_frozen = [key for key, p in self.named_parameters() if not p.requires_grad]
        self._declare_tied_weights()
        self.post_init()

    def _declare_tied_weights(self) -> None:
        """Let transformers save weights that are tied inside of a module of the user's once, and tie them again."""
        # Where nothing is tied, PEFT must not look for embeddings that could be.
        self._tied_weights_keys = tied_weights(self) or None  # type: ignore[assignment]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The weights that are tied, as transformers asks for them; see `ecsfusion.model.shared_weights`."""
        return super().get_expanded_tied_weights_keys(all_submodels) | (self._tied_weights_keys or {})

    def text_embeddings(self) -> dict[str, nn.Module]:
        """By modality, the embeddings of the tokens of each text encoder."""
        texts = {
            name: encoder for name, encoder in self.encoders.items() if main_input(encoder) == "input_ids"
        }
        return {
            name: cast("PreTrainedModel", encoder).get_input_embeddings() for name, encoder in texts.items()
        }

    def get_input_embeddings(self) -> nn.Module | None:  # type: ignore[override]
        """The embeddings of the tokens of the text encoder, if the model has exactly one (NEFTune adds noise to them).

        None where it has no text encoder, or several, as accelerate asks for it when it shards a model.
        """
        found = [*self.text_embeddings().values()]
        return found[0] if len(found) == 1 else None

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
        attn_implementation: str | Mapping[str, str] | None = None,
        **config_kwargs: Any,
    ) -> FusionForClassification:
        """Build a fusion model around pretrained encoders.

        Args:
            encoders: for each modality's name a Hub name, a local folder, a `PreTrainedModel` (with PEFT adapters or
                without), or any `nn.Module` that returns embeddings (see `ecsfusion.model.encoders`).
            num_labels: number of classes C; by default the length of `id2label`.
            id2label: names of the classes by index.
            label2id: indices of the classes by name; one of both mappings is enough.
            fusion: name of the fused head, "concatenation", "mlp", "gated-sum", "cross-attention", "transformer",
                "late-average", "entropy-average" or "boosted", or your own module (see
                `ecsfusion.model.fused_heads`).
            trust_remote_code: run code that comes with a model on the Hub; off by default.
            attn_implementation: the attention of the encoders, such as "sdpa", for all that have it, or by modality.
            **config_kwargs: further fields of [`FusionConfig`], such as `problem_type` and `fusion_options`.

        Returns:
            The model, in stage "joint" unless `stage` says otherwise.

        Raises:
            ValueError: fewer than two modalities, an unusable modality name, an encoder of unknown width, or an
                attention that no encoder has.
            TypeError: an encoder that is neither a name nor a module, or one with a head.
        """
        if not isinstance(encoders, Mapping):
            raise TypeError(
                "encoders must map names of modalities to encoders, like "
                f'{{"image": ..., "audio": ...}}; found {type(encoders).__name__}.'
            )
        for argument, given in (("id2label", id2label), ("label2id", label2id)):
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(
                    f"{argument} is a {type(given).__name__}; give a mapping, of names in the order of the classes "
                    "id2label=dict(enumerate(names))."
                )
        if num_labels is not None and not is_whole(num_labels):
            raise TypeError(f"num_labels is {num_labels!r}; give the number of classes, a whole number.")
        if label2id is not None and len({*map(int, label2id.values())}) < len(label2id):
            raise ValueError(
                f"label2id is {dict(label2id)}, in which two classes have one number; give each its own."
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
            if sorted(names) != [*range(len(names))] or len({*names.values()}) < len(names):
                raise ValueError(
                    f"id2label is {names}; number the classes from 0 to {len(names) - 1}, and give each its own name."
                )
            labels = {"id2label": names, "label2id": {label: index for index, label in names.items()}}
        check_modality_names([*encoders])
        modules = {name: load_encoder(name, encoder, trust_remote_code) for name, encoder in encoders.items()}
        for name, module in modules.items():
            same = [other for other in modules if modules[other] is module and other != name]
            if same:
                raise ValueError(
                    f"encoders[{name!r}] and encoders[{same[0]!r}] are the same object; each modality trains and is "
                    "saved by itself: give one of them copy.deepcopy(encoder)."
                )
        check_not_shared(modules)
        adapters = {name: describe_adapters(module) for name, module in modules.items()}
        measured = {name: measure(name, module) for name, module in modules.items()}
        own_fusion = fusion if isinstance(fusion, nn.Module) else None
        config = FusionConfig(
            encoders={name: describe_encoder(module) for name, module in modules.items()},
            fusion=fusion if isinstance(fusion, str) else type(fusion).__name__,
            adapters={name: configs for name, configs in adapters.items() if configs},
            embedding_dims={name: found.embedding_dim for name, found in measured.items()},
            unpadded=[name for name, found in measured.items() if found.unpadded],
            **labels,
            **config_kwargs,
        )
        own = {name: modules[name] for name in _own_modalities(config)}
        model = cls(config, own, own_fusion)
        for name, module in modules.items():
            model.encoders[name] = module
            model.sources[name] = getattr(getattr(module, "config", None), "_name_or_path", None) or None
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        model._declare_tied_weights()
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        encoders: Mapping[str, nn.Module] | None = None,
        fusion: nn.Module | None = None,
        attn_implementation: str | Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does; models that older versions saved are read too.

        Weights are read from safetensors files only, never from pickles, and have the types that they were saved in,
        unless `dtype` is given. Parameters that the user froze before saving are not frozen again.

        Args:
            pretrained_model_name_or_path: a folder or the name of a repository on the Hub.
            *model_args: passed on.
            encoders: the user's own modules among the encoders, by modality. Their weights are loaded into them.
            fusion: the fused head, where it is the user's own module.
            attn_implementation: the attention of the encoders, such as "sdpa", for all that have it, or by modality.
            **kwargs: passed on.

        Returns:
            The model; with `output_loading_info=True` the model and a dictionary.
        """
        kwargs.setdefault("use_safetensors", True)
        kwargs["key_mapping"] = OLDER_WEIGHT_NAMES | (kwargs.get("key_mapping") or {})
        own = [*(encoders or {}).values(), *([] if fusion is None else [fusion])]
        buffers = [(module, name, value.clone()) for module in own for name, value in unsaved_buffers(module)]
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            own_encoders=encoders,
            own_fusion=fusion,
            attention=attn_implementation,
            output_loading_info=True,
            **kwargs,
        )
        # transformers clears the buffers that are not saved and lets its own models compute them again; the user's
        # own modules cannot do that.
        for module, name, value in buffers:
            module.get_buffer(name).copy_(value)
        model: FusionForClassification = loaded[0]
        asked = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if model.config.dtypes and asked not in (None, "auto"):
            model.to(getattr(torch, asked) if isinstance(asked, str) else asked)
        model._hub_options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        info: dict[str, Any] = loaded[1]
        new = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        model._drop_what_depends_on(new | set(info["missing_keys"]))
        for modality in set(_own_modalities(model.config)) & set(model.config.best_heads):
            for name, value in unsaved_buffers(model.encoders[modality]):
                model.get_buffer(f"best_heads.{modality}.encoder.{name}").copy_(value)
        # transformers also makes every weight that it loads trainable, although weights under adapters, Whisper's
        # positions and some of the user's own were built frozen.
        for key in model._built_frozen:
            if not key.startswith("best_heads.") or key.split(".")[1] in model.best_heads:
                model.get_parameter(key).requires_grad_(False)
        return (model, info) if wants_info else model

    def _drop_what_depends_on(self, new_weights: Collection[str]) -> None:
        """Remove the readout and second copies that were fitted to weights that were not loaded.

        Args:
            new_weights: names of weights that got random values, for instance because the number of classes is another.
        """
        if not new_weights:
            return
        copies = {
            name for name in self.best_heads if any(k.startswith(f"best_heads.{name}.") for k in new_weights)
        }
        if copies or self.config.readout is not None:
            parts = " and ".join(dict.fromkeys(key.split(".")[0] for key in sorted(new_weights)))
            logger.warning(
                f"Weights of {parts} are new, so the readout that was fitted to the old ones is dropped"
                + (f", and the best heads of {', '.join(sorted(copies))}" if copies else "")
                + ". Training fits a new one."
            )
        for name in copies:
            del self.best_heads[name]
        self.config.best_heads = [*self.best_heads]
        self.config.readout = None
        self._declare_tied_weights()

    def own_modules(self) -> dict[str, Any]:
        """Copies of the user's own modules, as the arguments of `from_pretrained` that build this model again.

        Returns:
            `encoders`, a module for each modality that has its own, and `fusion`, a module or None.
        """
        encoders = {name: copy.deepcopy(self.encoders[name]) for name in _own_modalities(self.config)}
        # The configuration names a built-in head by its key in FUSION_HEADS, and the user's own by its class.
        own_fusion = self.config.fusion == type(self.fusion).__name__.removeprefix("FSDP")
        return {"encoders": encoders, "fusion": copy.deepcopy(self.fusion) if own_fusion else None}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = False,
        distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model as `PreTrainedModel.save_pretrained` does, with the weights under their present names.

        transformers can save the weights of some encoders under older names. When the Trainer reads a checkpoint, it
        ignores names that it does not know, and would leave such an encoder as it is.

        Args:
            save_directory: the folder, which is made if it does not exist.
            is_main_process: passed on.
            state_dict: passed on.
            push_to_hub: passed on.
            max_shard_size: passed on.
            variant: passed on.
            token: passed on.
            save_peft_format: passed on.
            save_original_format: save under the older names.
            distributed_checkpoint: passed on.
            **kwargs: passed on.

        Raises:
            ValueError: FSDP has sharded the weights, and `state_dict` does not hold the whole ones.
        """
        if state_dict is None and not distributed_checkpoint:
            check_whole(self, "save_pretrained")
        self.config.dtypes = describe_dtypes(self, self.dtype)
        super().save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            state_dict=state_dict,
            push_to_hub=push_to_hub,
            max_shard_size=max_shard_size,
            variant=variant,
            token=token,
            save_peft_format=save_peft_format,
            save_original_format=save_original_format,
            distributed_checkpoint=distributed_checkpoint,
            **kwargs,
        )

    def set_attn_implementation(
        self, attn_implementation: str | Mapping[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Choose the attention of the encoders.

        Args:
            attn_implementation: such as "sdpa" or "eager", for all encoders that have it; or by modality.
            allow_all_kernels: not used.

        Raises:
            ValueError: an encoder does not have what is chosen for it by its name, or none has it.
        """
        set_attention(dict(self.encoders.items()), attn_implementation)
        # Copies of encoders that have just taken it, or have refused it with a warning.
        for name, part in self.best_heads.items():
            chosen = getattr(getattr(self.encoders[name], "config", None), "_attn_implementation", None)
            if chosen is not None:
                set_attention({name: cast("nn.ModuleDict", part)["encoder"]}, chosen)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the heads; encoders may have others."""
        return cast("nn.Linear", self.heads[self.modalities[0]]).weight.dtype

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(self.config.modalities)

    @property
    def problem_type(self) -> str:
        """The kind of labels, one of `ecsfusion.model.problem_types.PROBLEM_TYPES`."""
        return problem_type_of(self.config)

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """The modalities whose own heads are trained as their encoders are now, by what the configuration says.

        In joint training without unimodal losses none is.
        """
        trains = self.config.stage == "unimodal" or self.config.auxiliary_weight > 0
        return self.modalities if trains else ()

    def set_stage(self, stage: str, trains_fused_head: bool | None = None) -> None:
        """Switch the loss between stage 1 and stage 2.

        Args:
            stage: "unimodal" (stage 1) or "joint" (stage 2).
            trains_fused_head: True to train the fused head in stage 1 too, with the loss of stage 2. In stage 2 the
                fused head is always trained.

        Raises:
            ValueError: an unknown stage.
        """
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}.")
        self.stage = stage
        self.config.stage = stage
        self.trains_fused_head = stage == "joint" or bool(trains_fused_head)

    def set_active(self, names: Iterable[str]) -> None:
        """Choose the modalities that are trained; all others are paused.

        A paused modality is not run in training (the fused head treats it as missing) and its parameters do not
        require gradients, so that its weights and its optimizer state do not change by a bit. Parameters that the
        user froze stay frozen.

        Raises:
            ValueError: no name, or one that is no modality.
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
        """Freeze the weights of these modalities, and of no others. Unlike paused ones they are still run.

        Raises:
            ValueError: a name that is no modality.
        """
        names = tuple(names)
        unknown = [name for name in names if name not in self.modalities]
        if unknown:
            raise ValueError(f"names is {list(names)}; the modalities are {list(self.modalities)}.")
        self.frozen = names
        self._switch_gradients()

    def _switch_gradients(self) -> None:
        """Make the parameters of active modalities that are not frozen require gradients, and no others."""
        for name in self.modalities:
            for key, parameter in self.modality_parameters(name).items():
                # A parameter without gradient that neither pausing nor freezing stopped was frozen by the user.
                if not (parameter.requires_grad or key in self._paused_parameters | self._frozen_parameters):
                    continue
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
        """Give these modalities a second copy of encoder and head, which computes their unimodal logits in evaluation.

        The fused head keeps the embeddings of the first copy.

        Args:
            weights: by modality, the state dictionary of `ModuleDict({"encoder": ..., "head": ...})`; an empty
                mapping removes all second copies.
        """
        self.best_heads = nn.ModuleDict()
        for name, values in weights.items():
            part = _best_heads(copy.deepcopy(self.encoders[name]), copy.deepcopy(self.heads[name]))
            part.load_state_dict(values)
            self.best_heads[name] = part
        self.config.best_heads = list(weights)
        self._declare_tied_weights()

    def train(self, mode: bool = True) -> FusionForClassification:
        """Set training mode as `nn.Module.train` does, but leave frozen encoders and second copies in evaluation mode.

        So their batch statistics do not change. An encoder is frozen by `set_frozen`, or where the user froze all of
        its parameters.
        """
        super().train(mode)
        self.best_heads.eval()
        for name in self.modalities:
            if name in self.frozen or self._is_frozen_by_user(name):
                self.encoders[name].eval()
        return self

    def _is_frozen_by_user(self, name: str) -> bool:
        """Whether the encoder has parameters, and the user froze all of them."""
        parameters = list(self.encoders[name].named_parameters(prefix=f"encoders.{name}"))
        return bool(parameters) and not any(p.requires_grad or self.is_held(key) for key, p in parameters)

    def modality_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameters of one modality, encoder and head, by their full names in the model."""
        prefixes = (f"encoders.{name}.", f"heads.{name}.")
        return {key: value for key, value in self.named_parameters() if key.startswith(prefixes)}

    def is_paused(self, parameter_name: str) -> bool:
        """Whether this parameter does not require a gradient because `set_active` paused its modality."""
        return parameter_name in self._paused_parameters

    def is_held(self, parameter_name: str) -> bool:
        """Whether this parameter requires no gradient because its modality is paused or frozen (`set_frozen`)."""
        return parameter_name in self._paused_parameters | self._frozen_parameters

    @torch.no_grad()
    def start_fusion_from_heads(self) -> None:
        """Set the fused head to an ensemble of the unimodal heads, if it has a method `start_from`.

        A built-in fused head becomes their sum in classification, and their mean in regression.
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
        """Embed one modality.

        Args:
            name: the modality.
            inputs: its processed inputs by name, or the first of them, (B, ...); every row has the modality.
            encoder: another encoder of the same kind as the modality's, to use in its place.

        Returns:
            Embeddings (B, D_m).

        Raises:
            ValueError: inputs that the encoder cannot take, or embeddings of another width than it declares. Errors of
                other types that it raises keep their type, and name the modality.
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
            embeddings = embed(encoder, inputs, name in self.config.unpadded)
        except Exception as error:
            # Encoders raise errors of any type, which do not name the modality.
            replaced = encoder_error(name, encoder, inputs, error)
            if replaced is None:
                raise
            raise replaced from error
        width = self.embedding_dims[name]
        if embeddings.shape[1] != width:
            raise ValueError(
                f"the encoder {type(encoder).__name__} of modality {name!r} returned embeddings of shape "
                f"{tuple(embeddings.shape)}, but declares the width {width}; set its attribute `embedding_dim` to "
                f"{embeddings.shape[1]}."
            )
        if embeddings.is_complex():
            raise TypeError(
                f"the encoder {type(encoder).__name__} of modality {name!r} returned complex embeddings, of which "
                "heads would read the real part alone; let it return real and imaginary parts side by side."
            )
        size = next(iter(inputs.values())).shape[0]
        if not torch.compiler.is_compiling() and embeddings.shape[0] != size:
            raise ValueError(
                f"the encoder {type(encoder).__name__} of modality {name!r} returned embeddings of shape "
                f"{tuple(embeddings.shape)} for {size} rows; let it return one for each."
            )
        return embeddings

    def head_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of one head, a scalar: the mean over its rows.

        The losses of both stages are sums of this one. To use another function or module, set the attribute:
        `model.head_loss = torch.nn.CrossEntropyLoss(weight=...)`. It is not saved, nor moved to another device.

        Args:
            logits: (N, C), of the rows that have this head's modality.
            labels: of these rows.
        """
        return mean_loss(logits, labels, self.problem_type, self.label_smoothing)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a module in a place where the method `head_loss` hides it.
        if name == "head_loss":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(
        self, labels: Tensor | None = None, present: Mapping[str, Tensor] | None = None, **inputs: Any
    ) -> FusionOutput:
        """Run the modalities whose inputs are passed.

        Args:
            labels: class indices (B,), or labels as the problem type asks for, or None.
            present: for each modality that some rows lack, which rows have it, (B,) bool. The other rows of its inputs
                may hold any values. If no row has the modality, its inputs may be left out.
            **inputs: for each modality its processed inputs, e.g. `image={"pixel_values": (B, 3, H, W)}`,
                or one tensor; a modality that is absent or None is missing in all rows.

        Returns:
            [`FusionOutput`].

        Raises:
            ValueError: an input that is no modality of this model, no modality at all in a row, a mask of another
                shape; labels that do not fit the problem type.
            TypeError: inputs that are no tensors, or `present` that is no mapping.
        """
        inputs.pop("return_dict", None)
        if not isinstance(present, Mapping | None):
            raise TypeError(f"present must map modalities to (B,) bool, got {type(present).__name__}.")
        unknown = [name for name in (*inputs, *(present or ())) if name not in self.modalities]
        if unknown:
            nested = nested_form(unknown, [*self.modalities])
            raise ValueError(
                f"inputs {unknown} are not modalities of this model; it has {list(self.modalities)}"
                f"{f': {nested}' if nested else ''}."
            )
        passed = {name: inputs[name] for name in self.modalities if inputs.get(name) is not None}
        if not passed:
            raise ValueError(f"no modality to run: give at least one of {list(self.modalities)}.")
        if torch.compiler.is_compiling() and not self.training:
            return self._without_host_reads(passed, present or {}, labels)
        size, device = size_and_device(passed, next(self.parameters()).device)
        if labels is not None:
            check_labels(labels, self.config.num_labels, self.problem_type)
            if len(labels) != size or labels.device.type == "meta" != device.type:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)} on {labels.device}; give one for each of the {size} "
                    f"rows, on {device}."
                )
        rows = rows_present(passed, present or {}, size, device)
        running = [name for name in self.modalities if name in rows and self._runs(name)]
        rows = {name: rows[name] for name in running}
        indices = {name: None if mask is None else mask.nonzero()[:, 0] for name, mask in rows.items()}
        every_row = torch.ones(size, dtype=torch.bool, device=device)
        masks = {name: every_row if mask is None else mask for name, mask in rows.items()}
        embeddings, unimodal_logits = {}, {}
        for name, index in indices.items():
            h, z = self._run(name, passed.get(name), index, self.encoders[name], self.heads[name])
            embeddings[name], unimodal_logits[name] = spread(h, index, size), spread(z, index, size)
        # Where the fused head is not trained, running it would put unused parameters into the graph.
        is_fused = bool(running) and (self.trains_fused_head or not self.training)
        logits = self.fuse(embeddings, unimodal_logits, masks) if is_fused else None
        if not self.training:
            for name in (name for name in running if name in self.best_heads):
                part, index = cast("nn.ModuleDict", self.best_heads[name]), indices[name]
                _, z = self._run(name, passed.get(name), index, part["encoder"], part["head"])
                unimodal_logits[name] = spread(z, index, size)
        combined = self._read_out(logits, unimodal_logits, masks)
        loss = None if labels is None else self.sum_of_losses(unimodal_logits, logits, labels, rows)
        return self._output(loss, logits, unimodal_logits, embeddings, masks, combined)

    def _output(
        self,
        loss: Tensor | None,
        logits: Tensor | None,
        unimodal_logits: dict[str, Tensor],
        embeddings: dict[str, Tensor],
        present: dict[str, Tensor],
        combined: Tensor | None,
    ) -> FusionOutput:
        """The output of `forward`; what the readout combines are probabilities, or predictions in regression."""
        regression = self.problem_type == REGRESSION
        return FusionOutput(
            loss=loss,
            logits=logits,
            unimodal_logits=unimodal_logits,
            embeddings=embeddings,
            present=present,
            probabilities=None if regression else combined,
            predictions=combined if regression else None,
        )

    def _without_host_reads(
        self, inputs: Mapping[str, Any], present: Mapping[str, Tensor], labels: Tensor | None
    ) -> FusionOutput:
        """What `forward` answers in evaluation, with no branch on data: for `torch.compile` and `torch.export`.

        Every encoder runs on every row, and the answers of rows that lack its modality are not used. Nothing is checked
        that would have to be read from the device: logits that are NaN give probabilities that are NaN.
        """
        first = next(iter(inputs.values()))
        # Not `len`, which would make the number of rows a constant of the graph.
        size = (first if isinstance(first, Tensor) else next(iter(first.values()))).shape[0]
        device = next(self.parameters()).device
        every_row = torch.ones(size, dtype=torch.bool, device=device)
        rows = {name: present.get(name) for name in inputs}
        masks = {name: every_row if mask is None else mask for name, mask in rows.items()}
        embeddings, unimodal_logits = {}, {}
        for name in inputs:
            h, z = self._run(name, inputs[name], None, self.encoders[name], self.heads[name])
            embeddings[name], unimodal_logits[name] = mask_rows(h, rows[name]), mask_rows(z, rows[name])
        logits = self.fuse(embeddings, unimodal_logits, masks)
        for name in (name for name in inputs if name in self.best_heads):
            part = cast("nn.ModuleDict", self.best_heads[name])
            _, z = self._run(name, inputs[name], None, part["encoder"], part["head"])
            unimodal_logits[name] = mask_rows(z, rows[name])
        combined = None
        if self.config.readout is not None:
            table = self._readout_table(tuple(inputs))
            combined = look_up(table, {FUSED: logits, **unimodal_logits}, masks, self.problem_type)
        loss = None if labels is None else self.sum_of_losses(unimodal_logits, logits, labels, rows)
        return self._output(loss, logits, unimodal_logits, embeddings, masks, combined)

    @torch.compiler.assume_constant_result
    def _readout_table(self, modalities: tuple[str, ...]) -> Table:
        """The readout as it is when the model is compiled."""
        return readout_table(Readout.from_dict(cast("dict[str, Any]", self.config.readout)), modalities)

    def _runs(self, name: str) -> bool:
        """Whether the modality is run: in training, a paused one is not."""
        return name in self.active or not self.training

    def _run(
        self, name: str, inputs: Any, index: Tensor | None, encoder: nn.Module, head: Any
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D_m) and logits (N, C) of the N rows of `index`, or of all rows where it is None."""
        # Encoders cannot be run on zero rows.
        if index is not None and not len(index):
            return head.weight.new_zeros(0, head.in_features), head.weight.new_zeros(0, head.out_features)
        if index is not None:
            inputs = take(inputs, index)
        embeddings = self.embed(name, inputs, encoder)
        if self.training and torch.is_grad_enabled():
            warn_without_gradient(name, encoder, embeddings)
        kind = embeddings.device.type
        by_autocast = torch.is_autocast_enabled(kind) and embeddings.dtype == torch.get_autocast_dtype(kind)
        # An encoder of the user's own may compute in another precision.
        if not by_autocast:
            embeddings = embeddings.to(head.weight.dtype)
        return embeddings, head(embeddings)

    def fuse(
        self,
        embeddings: Mapping[str, Tensor],
        unimodal_logits: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
    ) -> Tensor:
        """Run the fused head, with zeros where a modality is missing.

        Args:
            embeddings: (B, D_m) by modality; one that is left out is missing in all rows.
            unimodal_logits: (B, C) for the same modalities.
            present: (B,) bool for the same modalities: which rows have it.

        Returns:
            Logits (B, C).

        Raises:
            ValueError: the fused head, the user's own, returned something else.
        """
        some = next(iter(embeddings.values()))
        size = some.shape[0]
        h, z, masks = {}, {}, {}
        for name in self.modalities:
            if name in present:
                mask = present[name].unsqueeze(1)
                h[name], z[name] = embeddings[name].where(mask, 0.0), unimodal_logits[name].where(mask, 0.0)
                masks[name] = present[name]
            else:
                h[name] = some.new_zeros(size, self.embedding_dims[name])
                z[name] = some.new_zeros(size, self.config.num_labels)
                masks[name] = torch.zeros(size, dtype=torch.bool, device=some.device)
        with running_statistics_for_one_value(self.fusion, size):
            logits = self.fusion(h, z, masks)
        if not isinstance(logits, Tensor) or logits.shape != (size, self.config.num_labels):
            returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the fused head {type(self.fusion).__name__} returned {returned}; it must return logits of shape "
                f"{(size, self.config.num_labels)}."
            )
        return logits

    def sum_of_losses(
        self,
        unimodal_logits: Mapping[str, Tensor],
        logits: Tensor | None,
        labels: Tensor,
        present: Present,
        head_loss: HeadLoss | None = None,
    ) -> Tensor:
        """The loss of a batch in the present stage; see `ecsfusion.model.losses.sum_of_losses`.

        Args:
            unimodal_logits: (B, C) by modality that was run.
            logits: (B, C) of the fused head, or None if it was not run.
            labels: of all B rows.
            present: for each of these modalities, which rows have it, (B,) bool, or None for all rows.
            head_loss: the loss of one head; by default `self.head_loss`.

        Returns:
            A scalar.
        """
        return sum_of_losses(
            head_loss or self.head_loss,
            unimodal_logits,
            logits if self.trains_fused_head else None,
            labels,
            present,
            self.config.auxiliary_weight,
            (cast("nn.Linear", self.heads[name]) for name in self.active),
        )

    def fused_loss(self, logits: Tensor, labels: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """The fused head's part of the loss of a batch.

        Args:
            logits: (B, C).
            labels: of all B rows.
            present: for each modality that was run, which rows have it, (B,) bool.

        Returns:
            A scalar: the mean over the rows that have one of these modalities, times their share of all rows.
        """
        # Every row has a modality. So if all are run, no row is left out, and the device need not be waited for.
        all_run = len(self.active) == len(self.modalities)
        return loss_of_fused_head(self.head_loss, logits, labels, [None] if all_run else [*present.values()])

    @torch.no_grad()
    def predict(
        self, *, processor: FusionProcessor | None = None, top_k: int | None = None, **inputs: Any
    ) -> list[dict[str, Any]]:
        """Answer one row of raw values.

        The model is put into evaluation mode for it. For many rows use
        `pipeline("multimodal-classification", model=...)`.

        Args:
            processor: the processor; by default that in the folder, or the repository on the Hub, that the model was
                loaded from.
            top_k: how many classes to return; None for all.
            **inputs: by modality a raw value as `FusionProcessor` takes it, such as a path, a picture, an array of
                samples or a text. A modality that is left out or None is missing.

        Returns:
            `{"label": name, "score": probability}` for each class, the most probable first; in regression
            `{"label": name, "score": prediction}` for each target.

        Raises:
            ValueError: no processor is known; a value that cannot be read, or several rows; nothing answers for all
                modalities (a model of stage 1 without a readout).
            TypeError: a raw value of a wrong type.
        """
        was_training = self.training
        self.eval()
        try:
            batch = (processor or self.processor())(**inputs).to(self.device)
            answer = answer_of(self(**batch), self.config)
        finally:
            self.train(was_training)
        if len(answer) != 1:
            raise ValueError(
                f"the inputs are {len(answer)} rows; predict answers one: for several use "
                'pipeline("multimodal-classification", model=model, processor=processor).'
            )
        return labelled(answer[0], self.config, top_k)

    @property
    def hub_options(self) -> dict[str, Any]:
        """The options by which other files of where the model was loaded from are found, such as `revision`."""
        return dict(self._hub_options)

    def processor(self) -> FusionProcessor:
        """The processor in the folder, or the repository on the Hub, that the model was loaded from.

        Raises:
            ValueError: the model was not loaded, or there is no processor where it was loaded from.
        """
        if self._processor is None:
            source = self.name_or_path
            if not source:
                raise ValueError(
                    "the model was not loaded from a folder that has a processor; give processor=..., the one that "
                    "made the training rows."
                )
            try:
                self._processor = FusionProcessor.from_pretrained(source, **self._hub_options)
            except OSError as error:
                raise ValueError(
                    f"{error}; give processor=..., the one that made the training rows."
                ) from error
        return self._processor

    def export(
        self,
        folder: str | os.PathLike,
        format: str = "onnx",
        modalities: Sequence[str] | None = None,
        processor: FusionProcessor | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a folder with which the model answers without this library.

        It has the graph with the readout and the best heads in it, `export.json` (inputs, classes, preprocessing), a
        README with code that runs it, and the files of the processors. The number of rows is free, and so are lengths
        of texts, sounds and series where the encoder allows it. With several modalities, each has a mask of the rows
        that have it as a further input. The attention is the model's own; see `from_pretrained(attn_implementation=)`.

        Args:
            folder: where to write; it is made if it does not exist.
            format: "onnx", or "torch" for what `torch.export` makes.
            modalities: those that rows may have; None for all. The encoders of the others are left out.
            processor: as in `predict`; without any, the inputs are those that the encoders say of themselves.
            example: by modality, its part of a batch as the model takes it. It is needed for encoders of your own whose
                inputs no processor tells.

        Returns:
            What is in `export.json`, among it the largest difference from the model's answers on trial rows.

        Raises:
            ValueError: an unknown format or modality, a folder that holds a model, inputs that are not known, an answer
                that differs from the model's, a model of stage 1 without a readout, an encoder that cannot be exported,
                or a model that FSDP has sharded.
            ImportError: what the format needs is not installed.
        """
        check_whole(self, "export")
        if processor is None and (self._processor is not None or self.name_or_path):
            with contextlib.suppress(ValueError):
                processor = self.processor()
        return export_model(self, folder, format, modalities, processor, example)

    @torch.no_grad()
    def contributions(
        self, labels: Tensor | None = None, present: Mapping[str, Tensor] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Tell for each row how much each modality contributes to the model's answer: Shapley values.

        The answer from some of the modalities is that to a row that lacks the others; without any it is the class
        frequencies of the validation rows. See `ecsfusion.model.contributions`.

        Args:
            labels: (B,) class indices: the class whose probability is explained; None for the class that the model
                answers with. With several labels a row, (B, C) zeros and ones.
            present: as in `forward`.
            **inputs: as in `forward`.

        Returns:
            By modality (B,) float64, in bits: the part of log2 p(class | all modalities) - log2 p(class), of all labels
            of a row together; in regression (B, C), the part of the prediction's distance from the mean of the
            targets. A modality that a row lacks contributes 0.

        Raises:
            ValueError: the model is in training or has no readout; more than six modalities; labels that do not fit;
                as in `forward`.
            TypeError: labels that are no tensor; as in `forward`.
        """
        if self.training or self.config.readout is None:
            raise ValueError(
                "contributions are those to the calibrated answer: call model.eval(), and fit the readout "
                "(FusionTrainer does so after training; trainer.fit_readout())."
            )
        readout = Readout.from_dict(self.config.readout)
        outputs = self(labels=labels, present=present, **inputs)
        heads = {name: z.double() for name, z in {FUSED: outputs.logits, **outputs.unimodal_logits}.items()}
        embeddings = outputs.embeddings
        # Those of the first copies, which the fused head sees.
        logits = {name: self.heads[name](h.to(self.dtype)) for name, h in embeddings.items()}

        def fuse(given: Mapping[str, Tensor]) -> Tensor:
            return self.fuse(embeddings, logits, given).double()

        found = row_contributions(readout, heads, outputs.present, labels, fuse)
        absent = torch.zeros_like(next(iter(found.values())))
        return {name: found.get(name, absent) for name in self.modalities}

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


AutoModel.register(FusionConfig, FusionForClassification)
