"""Foundation models as hubs publish them, of random weights and small enough to run in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def saved(model: Any, folder: Path) -> Any:
    """`model` of transformers in evaluation mode, its folder written."""
    with torch.no_grad():
        for parameter in model.parameters():  # some begin at zero, and would hide what is wrong
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def dinov2(folder: Path) -> Any:
    """As Rad-DINO is published: DINOv2 in transformers."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(**TOWER | {"patch_size": 14, "image_size": 42})
    return saved(transformers.Dinov2Model(config), folder)


def siglip(folder: Path) -> Any:
    """As MedSigLIP is published: both towers of a SigLIP."""
    import transformers

    torch.manual_seed(0)
    config = transformers.SiglipConfig(vision_config=TOWER, text_config=TEXT)
    return saved(transformers.SiglipModel(config), folder)


def clip(folder: Path) -> Any:
    """Both towers of a CLIP in transformers."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=TOWER, text_config=TEXT)
    return saved(transformers.CLIPModel(config), folder)


def biomedclip(folder: Path) -> Any:
    """As BiomedCLIP is published: a tower of timm in OpenCLIP, and a text tower that is a hub's."""
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    tower = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    text = {"hf_model_name": "a-hub/text-model", "proj": "mlp"}
    model = {
        "embed_dim": 24,
        "vision_cfg": tower | {"timm_model_pretrained": True, "image_size": 160},
        "text_cfg": text,
    }
    visual = TimmModel("test_vit", 24, 160, pool="", proj="linear").eval()
    state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    folder.mkdir()
    save_file(state | {"text.proj.weight": torch.ones(2)}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return visual
