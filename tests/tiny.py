"""A tiny detector and a tiny batch for tests."""

import torch

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection


def tiny_config(**overrides) -> SemiDetrConfig:
    """A detector of a few thousand parameters: width 32, 2 + 2 layers, 12 queries, 5 labels."""
    names = [f"class {i}" for i in range(5)]
    values = {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 12, 16, 20],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "freeze_backbone_norm": False,
        "num_frozen_backbone_stages": 0,
        "d_model": 32,
        "group_norm_groups": 8,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 12,
        "num_denoising_queries": 10,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return SemiDetrConfig(**{**values, **overrides})


def tiny_model(seed: int = 0, **overrides) -> SemiDetrForObjectDetection:
    """A tiny detector whose sampling offsets and box heads are not zero, so that every parameter matters."""
    torch.manual_seed(seed)
    model = SemiDetrForObjectDetection(tiny_config(**overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name and not parameter.any():
                parameter.normal_(std=0.05)
    return model.eval()


def tiny_batch(num_images: int = 2, size: tuple[int, int] = (64, 96), seed: int = 0):
    """Images, a mask that leaves the second one smaller, and labels (2, 1, 2, 1, ... boxes)."""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(num_images, 3, *size, generator=generator)
    pixel_mask = torch.ones(num_images, *size, dtype=torch.int64)
    if num_images > 1:
        pixel_mask[1, :, size[1] // 4 * 3 :] = 0
        pixel_values = pixel_values * pixel_mask[:, None]
    labels = []
    for i in range(num_images):
        count = 2 - i % 2
        centers = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
        sizes = torch.rand(count, 2, generator=generator) * 0.2 + 0.1
        labels.append(
            {
                "class_labels": torch.randint(0, 5, (count,), generator=generator),
                "boxes": torch.cat([centers, sizes], dim=-1),
            }
        )
    return pixel_values, pixel_mask, labels
