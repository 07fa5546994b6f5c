"""The configuration of a fusion model: what is needed to build it again, as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig


class FusionConfig(PreTrainedConfig):
    """Configuration of [`FusionForClassification`].

    Args:
        encoders: configuration of each modality's encoder by name, as a plain dictionary with its `model_type`.
        modalities: names of the modalities, in the order of the fused head's inputs; by default the order of
            `encoders`.
        fusion: name of the fused head: a key of `ecsfusion.model.fused_heads.FUSION_HEADS`, or the name of the class
            of the user's own head.
        fusion_options: keyword arguments of the fused head, such as `{"width": 256}` for cross-attention.
        adapters: PEFT configurations (LoRA and others) inside the encoders: by modality, then by adapter.
        embedding_dims: width of the embedding of each modality, as it was measured when the model was made. Where it is
            missing, it is measured or read from the encoder's configuration.
        unpadded: modalities whose encoder was found to mix padding into the rest, so that it is run on the rows of each
            length without padding.
        best_heads: modalities whose unimodal logits come from a second copy of their encoder and head, with the
            weights of another step (see `ecsfusion.training.best_heads`). Models that earlier versions saved have it
            under the name `standalone`, which is read too.
        dtypes: floating-point types of saved weights that have another one than the heads, by the beginning of their
            names.
        auxiliary_weight: weight of each unimodal loss in the joint stage (arXiv 2509.20840 uses 0.6).
        stage: "unimodal" (stage 1) or "joint" (stage 2): the stage that these weights come from.
        step: optimizer step at which these weights were saved, or None.
        readout: calibrated combination of the heads (see `ecsfusion.model.readout`), or None before it is fitted.
        **kwargs: fields of every `PreTrainedConfig`, among them `num_labels`, `id2label`, and `problem_type` (see
            `ecsfusion.model.problem_types`).
    """

    if TYPE_CHECKING:
        # transformers allows other types, but not once its `__init__` has run.
        id2label: dict[int, str]
        num_labels: int

    model_type = "ecsfusion"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "unimodal_logits",
        "embeddings",
        "present",
        "probabilities",
        "predictions",
    ]

    def __init__(
        self,
        encoders: dict[str, dict[str, Any]] | None = None,
        modalities: list[str] | None = None,
        fusion: str = "concatenation",
        fusion_options: dict[str, Any] | None = None,
        adapters: dict[str, dict[str, Any]] | None = None,
        embedding_dims: dict[str, int] | None = None,
        unpadded: list[str] | None = None,
        best_heads: list[str] | None = None,
        dtypes: dict[str, str] | None = None,
        auxiliary_weight: float = 0.6,
        stage: str = "joint",
        step: int | None = None,
        readout: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        older_best_heads = kwargs.pop("standalone", None)
        # The order is kept in a list of its own, because the keys of a saved configuration are sorted.
        self.modalities = list(modalities or encoders or ())
        self.encoders = {name: (encoders or {})[name] for name in self.modalities}
        self.fusion = fusion
        self.fusion_options = dict(fusion_options or {})
        self.adapters = dict(adapters or {})
        self.embedding_dims = dict(embedding_dims or {})
        self.unpadded = list(unpadded or ())
        self.best_heads = list(best_heads or older_best_heads or ())
        self.dtypes = dict(dtypes or {})
        self.auxiliary_weight = auxiliary_weight
        self.stage = stage
        self.step = step
        self.readout = readout
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration; with `return_unused_kwargs` as a pair with what is meant for the model.

        `AutoModel.from_pretrained(..., encoders=...)` gives it the user's own modules, which are not what `encoders`
        and `fusion` are here.
        """
        modules = {key: kwargs.pop(key) for key in ("encoders", "fusion") if _holds_modules(kwargs.get(key))}
        made: Any = super().from_dict(config_dict, **kwargs)
        return (made[0], made[1] | modules) if kwargs.get("return_unused_kwargs") else made


def _holds_modules(value: Any) -> bool:
    """Whether a value is the user's own module, or has some by modality, and is no part of a configuration."""
    values = value.values() if isinstance(value, Mapping) else [value]
    return any(hasattr(each, "state_dict") for each in values)


AutoConfig.register(FusionConfig.model_type, FusionConfig)
