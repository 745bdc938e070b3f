"""Configuration of the Semi-DETR detector: everything inference needs, and the supervised loss.

Source of the defaults: DINO, 4-scale, ResNet-50 (arXiv 2203.03605) as used by Semi-DETR (arXiv 2307.08095).
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

# What other detectors call some of these fields.
_NAMES_ELSEWHERE = {
    "backbone": "backbone_config",
    "num_classes": "num_labels",
    "two_stage_num_proposals": "num_queries",
}
# Which file of a saved folder holds which class, for trust_remote_code=True.
AUTO_MAP = {
    "AutoConfig": "configuration_semidetr.SemiDetrConfig",
    "AutoModel": "modeling_semidetr.SemiDetrModel",
    "AutoModelForObjectDetection": "modeling_semidetr.SemiDetrForObjectDetection",
}
_COUNTS = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_n_points",
    "decoder_n_points",
    "num_feature_levels",
    "num_queries",
    "num_channels",
)
# Weights and scales: finite and not negative.
_NOT_NEGATIVE = (
    "class_cost",
    "bbox_cost",
    "giou_cost",
    "class_loss_coefficient",
    "bbox_loss_coefficient",
    "giou_loss_coefficient",
    "focal_gamma",
    "denoising_box_noise",
)
# Unlike infinity it is below the whole numbers that no float can hold.
_LARGEST = sys.float_info.max
DEFAULT_BACKBONE = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [2, 3, 4]}


@strict
class SemiDetrConfig(PreTrainedConfig):
    """Configuration of `SemiDetrModel` and `SemiDetrForObjectDetection`.

    Args:
        backbone_config: any backbone of transformers, as a config or a dictionary with `model_type`; default timm's
            ResNet-50 with strides 8, 16 and 32. Building a model never downloads weights.
        freeze_backbone_norm: replace batch norms of the backbone by frozen ones (fixed statistics and affine part).
        num_frozen_backbone_stages: this many first stages of the backbone are not trained. In a timm ResNet stage 1 is
            the stem and stage 2 the first residual layer; 0 trains everything.
        num_channels: channels of the input images.
        d_model: width of the transformer (also readable as `hidden_size`).
        encoder_layers, decoder_layers: number of layers.
        encoder_attention_heads, decoder_attention_heads: number of heads.
        encoder_ffn_dim, decoder_ffn_dim: width of the feed-forward networks.
        encoder_n_points, decoder_n_points: sampling points per head and level.
        num_feature_levels: levels of the pyramid; those beyond the backbone's come from stride-2 convolutions.
        group_norm_groups: groups of the norm after each projection; must divide `d_model`.
        num_queries: matching queries. An image with fewer tokens than this is decoded with as many queries as tokens.
        dropout: dropout everywhere in the transformer.
        activation_function: activation of the feed-forward networks.
        position_embedding_temperature: temperature of the sine encoding of the pyramid.
        inverse_sigmoid_eps: bound of the inverse sigmoid, 1e-5 in Semi-DETR's released code, 1e-3 in official DINO.
        num_denoising_queries: how many pairs of denoising queries fit one image; 0 switches denoising off.
        denoising_label_noise: twice the probability that a denoising query gets a random label.
        denoising_box_noise: scale of the noise on its box.
        label_embedding_rows: rows of the label table of denoising; None = number of labels. Published checkpoints have
            more.
        class_cost, bbox_cost, giou_cost: weights of the matching cost.
        matcher_eps: added inside the logarithms of the matching cost.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient: weights of the losses.
        focal_alpha, focal_gamma: focal loss.
        class_agnostic_encoder_loss: score encoder proposals as objects of label 0 (Semi-DETR's released code).
        auxiliary_loss: also score all decoder layers but the last.
        class_loss_normalizer: what the class loss is divided by: the number of boxes, as a mean over processes
            ("global", official DINO) or of each process alone ("process", Semi-DETR's released code).
        denoise_empty_images: the denoising queries of an image without boxes count as background (official DINO) or
            not at all (False, Semi-DETR's released code).
        category_ids: id in the data set, such as COCO's, of every label; None = unknown. Not used by the model.

    Raises:
        ValueError: naming the field and its value, if values do not fit together.
    """

    model_type = "semidetr"
    sub_configs = {"backbone_config": AutoConfig}
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    keys_to_ignore_at_inference = [
        "auxiliary_outputs",
        "last_hidden_state",
        "intermediate_hidden_states",
        "intermediate_reference_points",
        "encoder_last_hidden_state",
        "encoder_logits",
        "encoder_pred_boxes",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone_norm: bool = True
    num_frozen_backbone_stages: int = 2
    num_channels: int = 3
    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    num_feature_levels: int = 4
    group_norm_groups: int = 32
    num_queries: int = 900
    dropout: float | int = 0.0
    activation_function: str = "relu"
    position_embedding_temperature: float | int = 20
    inverse_sigmoid_eps: float = 1e-5
    num_denoising_queries: int = 100
    denoising_label_noise: float | int = 0.5
    denoising_box_noise: float | int = 0.4
    label_embedding_rows: int | None = None
    class_cost: float | int = 2.0
    bbox_cost: float | int = 5.0
    giou_cost: float | int = 2.0
    matcher_eps: float = 1e-8
    class_loss_coefficient: float | int = 2.0
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    class_agnostic_encoder_loss: bool = False
    auxiliary_loss: bool = True
    class_loss_normalizer: Literal["global", "process"] = "global"
    denoise_empty_images: bool = True
    category_ids: list[int] | None = None
    is_encoder_decoder: bool = True
    if TYPE_CHECKING:
        # A property of the library, typed as optional there; its __post_init__ always sets it.
        num_labels: int = 2

    def __post_init__(self, **kwargs: Any):
        # transformers stores arguments it does not know and ignores them. Only the names in this table are refused;
        # a typo of any other kind is still stored.
        unknown = [name for name in kwargs if name in _NAMES_ELSEWHERE]
        if unknown:
            raise ValueError(f"{unknown[0]} is not a field of SemiDetrConfig; use {_NAMES_ELSEWHERE[unknown[0]]}")
        backbone = self.backbone_config if self.backbone_config is not None else DEFAULT_BACKBONE
        if isinstance(backbone, dict):
            model_type = str(backbone.get("model_type"))
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config needs a model_type known to transformers, got {model_type!r}")
            backbone = CONFIG_MAPPING[model_type].from_dict({"num_channels": self.num_channels, **backbone})
        self.backbone_config = backbone
        super().__post_init__(**kwargs)
        # Always this folder's own files: saving writes them beside the weights (see model/__init__.py).
        self.auto_map = dict(AUTO_MAP)

    def validate_architecture(self):
        """Check widths and counts; called by transformers on construction and before saving."""
        for name in ("encoder_attention_heads", "decoder_attention_heads", "group_norm_groups"):
            if getattr(self, name) < 1 or self.d_model % getattr(self, name):
                raise ValueError(f"d_model = {self.d_model} is not divisible by {name} = {getattr(self, name)}")
        if self.d_model % 4:
            raise ValueError(f"d_model = {self.d_model} is not divisible by 4, which the sine encoding needs")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_denoising_queries", "num_frozen_backbone_stages"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def validate_ranges(self):
        """Check single values and the label table; called by transformers like `validate_architecture`."""
        if not 0 < self.inverse_sigmoid_eps < 0.5:
            raise ValueError(f"inverse_sigmoid_eps must lie between 0 and 0.5, got {self.inverse_sigmoid_eps}")
        backbone_channels = getattr(self.backbone_config, "num_channels", self.num_channels)
        if backbone_channels != self.num_channels:
            raise ValueError(f"num_channels = {self.num_channels}, but the backbone takes {backbone_channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        temperature = self.position_embedding_temperature
        if not 0 < temperature <= _LARGEST:
            raise ValueError(f"position_embedding_temperature must be finite and above 0, got {temperature}")
        if self.activation_function not in ACT2FN:
            known = ", ".join(ACT2FN)
            raise ValueError(f"activation_function must be one of {known}, got {self.activation_function!r}")
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}")
        rows = self.label_embedding_rows
        if rows is not None and rows < self.num_labels:
            raise ValueError(f"label_embedding_rows = {rows} is less than the {self.num_labels} labels of the model")

    def validate_loss(self):
        """Check what only the loss reads; called by transformers like `validate_architecture`."""
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("denoising_label_noise", "focal_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.matcher_eps <= _LARGEST:
            raise ValueError(f"matcher_eps must be finite and above 0, got {self.matcher_eps}")

    @classmethod
    def base(cls, **overrides: Any) -> "SemiDetrConfig":
        """Return the paper's size: ResNet-50, 6 + 6 layers, 900 queries, about 47 M parameters."""
        return cls(**overrides)

    @classmethod
    def small(cls, **overrides: Any) -> "SemiDetrConfig":
        """Return a size for one small GPU: ResNet-18, 3 + 3 layers, 300 queries, about 19 M parameters."""
        values: dict[str, Any] = {
            "backbone_config": {**DEFAULT_BACKBONE, "backbone": "resnet18"},
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_ffn_dim": 1024,
            "decoder_ffn_dim": 1024,
            "num_queries": 300,
        }
        return cls(**{**values, **overrides})

    @classmethod
    def nano(cls, **overrides: Any) -> "SemiDetrConfig":
        """Return a size that trains from scratch on a CPU with small images, under 2 M parameters."""
        values: dict[str, Any] = {
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 32,
                "hidden_sizes": [32, 64, 96, 128],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "freeze_backbone_norm": False,
            "num_frozen_backbone_stages": 0,
            "d_model": 128,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "num_queries": 20,
            "num_denoising_queries": 40,
        }
        return cls(**{**values, **overrides})
