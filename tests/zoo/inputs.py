"""What a forward pass of each model type is given: text, and pictures where it doesn't run without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["inputs_of"]

LENGTH = 16


def inputs_of(config: Any) -> dict[str, Any]:
    """A batch of two texts with labels, and what else the model type asks for."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 200, (2, LENGTH), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    more = MORE.get(config.model_type)
    return {**batch, **more(config, ids)} if more else batch


def _picture(config: Any, size: int | None = None) -> Any:
    import torch

    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
    side = size or vision.image_size
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def _pixels(config: Any, ids: Any) -> dict[str, Any]:
    return {"pixel_values": _picture(config)}


def _query(config: Any, ids: Any) -> dict[str, Any]:
    """A picture for a query transformer, whose tokens stand in front of the text."""
    import torch

    picture, asked = _picture(config), config.num_query_tokens
    front = torch.full((2, asked), config.image_token_id)
    ids = torch.cat([front, ids], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.clone(),
        "pixel_values": picture,
    }


def _instructed(config: Any, ids: Any) -> dict[str, Any]:
    return {
        **_query(config, ids),
        "qformer_input_ids": ids,
        "qformer_attention_mask": ids.new_ones(ids.shape),
    }


def _instructed_video(config: Any, ids: Any) -> dict[str, Any]:
    import torch

    frames = 4  # the number that the model multiplies its query tokens by
    picture = _picture(config)
    ids_with = torch.cat([torch.full((2, frames * config.num_query_tokens), config.video_token_id), ids], 1)
    return {
        "input_ids": ids_with,
        "attention_mask": torch.ones_like(ids_with),
        "labels": ids_with.clone(),
        "pixel_values": picture[:, None].repeat(1, frames, 1, 1, 1),
        "qformer_input_ids": ids,
        "qformer_attention_mask": ids.new_ones(ids.shape),
    }


def _kosmos(config: Any, ids: Any) -> dict[str, Any]:
    import torch

    count = config.latent_query_num
    longer = torch.cat([ids.new_full((2, count), 7), ids], 1)
    mask = torch.zeros_like(longer)
    mask[:, :count] = 1
    return {
        "input_ids": longer,
        "attention_mask": torch.ones_like(longer),
        "labels": longer.clone(),
        "pixel_values": _picture(config),
        "image_embeds_position_mask": mask,
    }


def _idefics(config: Any, ids: Any) -> dict[str, Any]:
    return {"pixel_values": _picture(config)[:, None], "image_attention_mask": ids.new_ones(*ids.shape, 1)}


def _pix2struct(config: Any, ids: Any) -> dict[str, Any]:
    import torch

    width = config.vision_config.patch_embed_hidden_size
    patches = torch.rand(2, 8, 2 + width, generator=torch.Generator().manual_seed(1))
    patches[..., :2] = 1
    return {"input_ids": None, "attention_mask": None, "flattened_patches": patches}


def _decoder_ids(config: Any, ids: Any) -> dict[str, Any]:
    return {"decoder_input_ids": ids}


def _boxes(config: Any, ids: Any) -> dict[str, Any]:
    import torch

    boxes = torch.rand(2, LENGTH, 4, generator=torch.Generator().manual_seed(1))
    return {"bbox": boxes, "decoder_input_ids": ids}


def _seen(config: Any, ids: Any) -> dict[str, Any]:
    return {"input_ids": None, "attention_mask": None, "pixel_values": _picture(config)}


def _robot(config: Any, ids: Any) -> dict[str, Any]:
    import torch

    actions = torch.rand(
        2, config.chunk_size, config.max_action_dim, generator=torch.Generator().manual_seed(2)
    )
    return {
        "labels": None,
        "state": torch.rand(2, config.max_state_dim, generator=torch.Generator().manual_seed(3)),
        "actions": actions,
        "noise": actions.flip(1),
        "timestep": torch.tensor([0.3, 0.7]),
        "pixel_values": _picture(config.vlm_config)[:, None],
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
        "input_ids": torch.cat([ids.new_full((2, 4), config.vlm_config.image_token_id), ids], 1),
        "attention_mask": torch.ones(2, LENGTH + 4, dtype=torch.long),
    }


MORE: Mapping[str, Callable[[Any, Any], dict[str, Any]]] = {
    "blip": _pixels,
    "blt": lambda config, ids: {"use_cache": False},
    "blip-2": _query,
    "git": _pixels,
    "idefics": _idefics,
    "instructblip": _instructed,
    "instructblipvideo": _instructed_video,
    "kosmos-2": _kosmos,
    "molmo2": lambda config, ids: {"mm_token_type_ids": ids.new_zeros(ids.shape)},
    "pi0": _robot,
    "pix2struct": _pix2struct,
    "pp_formulanet": lambda config, ids: {**_seen(config, ids), "labels": None, "decoder_input_ids": ids},
    "t5gemma2": _decoder_ids,
    "udop": _boxes,
    "vision-encoder-decoder": _seen,
}
