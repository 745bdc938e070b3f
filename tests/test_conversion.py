import re
from pathlib import Path

import pytest
import torch
from recorded import FIXTURES
from torch import Tensor

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.conversion import convert_dino_state_dict


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """All entries of a published checkpoint, in their shapes, without memory for the values."""
    lines = Path(FIXTURES / "dino_4scale_r50_keys.tsv").read_text().splitlines()[1:]
    shapes = dict(line.split("\t") for line in lines)
    assert len(shapes) == 626
    return {name: torch.zeros(1).expand([int(size) for size in shape.split("x")]) for name, shape in shapes.items()}


def test_every_entry_of_a_published_checkpoint_finds_its_place(published: dict[str, Tensor]) -> None:
    config = SemiDetrConfig.base(
        id2label={i: str(i) for i in range(91)}, label2id={str(i): i for i in range(91)}, label_embedding_rows=92
    )
    with torch.device("meta"):
        model = SemiDetrForObjectDetection(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in convert_dino_state_dict(published).items()}
    assert given == wanted


def test_values_arrive_unchanged_and_stacked_projections_are_cut() -> None:
    # Rows 0-1 are the query, 2-3 the key, 4-5 the value projection.
    stacked = torch.arange(12.0).view(6, 2)
    converted = convert_dino_state_dict(
        {
            "transformer.decoder.layers.3.self_attn.in_proj_weight": stacked,
            "transformer.decoder.layers.3.self_attn.in_proj_bias": torch.arange(6.0),
            "transformer.decoder.layers.3.norm1.weight": torch.tensor([7.0]),
        }
    )
    prefix = "model.decoder.layers.3"
    assert {name: tensor.tolist() for name, tensor in converted.items()} == {
        f"{prefix}.self_attn.q_proj.weight": [[0, 1], [2, 3]],
        f"{prefix}.self_attn.k_proj.weight": [[4, 5], [6, 7]],
        f"{prefix}.self_attn.v_proj.weight": [[8, 9], [10, 11]],
        f"{prefix}.self_attn.q_proj.bias": [0, 1],
        f"{prefix}.self_attn.k_proj.bias": [2, 3],
        f"{prefix}.self_attn.v_proj.bias": [4, 5],
        # The first norm of a published decoder layer follows the cross-attention.
        f"{prefix}.cross_attn_layer_norm.weight": [7],
    }


def test_equal_copies_of_a_head_become_one() -> None:
    head = torch.tensor([1.0, 2.0])
    names = ["class_embed.0.bias", "class_embed.1.bias", "transformer.decoder.class_embed.0.bias"]
    converted = convert_dino_state_dict({name: head.clone() for name in names})
    assert list(converted) == ["class_head.bias"]
    assert converted["class_head.bias"].tolist() == [1, 2]


def test_heads_that_differ_are_refused() -> None:
    state = {"bbox_embed.0.layers.0.bias": torch.zeros(2), "bbox_embed.4.layers.0.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=re.escape("bbox_embed.4.layers.0.bias differs from its copy")):
        convert_dino_state_dict(state)


def test_a_copy_without_its_original_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("class_embed.3.bias differs from its copy class_embed.0.bias")):
        convert_dino_state_dict({"class_embed.3.bias": torch.zeros(2)})


def test_unknown_entries_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'roi_head.weight'"):
        convert_dino_state_dict({"roi_head.weight": torch.zeros(1)})


def test_nothing_becomes_nothing() -> None:
    assert convert_dino_state_dict({}) == {}
