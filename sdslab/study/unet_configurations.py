"""DeepFloyd's UNets as their public configurations describe them, and tiny ones of the same blocks.

With random weights they cost what the real ones cost: no published weights are needed to time them.
"""

from typing import Any

import torch

_SHARED: dict[str, Any] = {
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim_type": "text_proj",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
_OF_FOUR_LEVELS = {
    "down_block_types": ("ResnetDownsampleBlock2D", *3 * ("SimpleCrossAttnDownBlock2D",)),
    "up_block_types": (*3 * ("SimpleCrossAttnUpBlock2D",), "ResnetUpsampleBlock2D"),
}
_OF_TWO_LEVELS = {
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
_REAL: dict[str, Any] = {
    **_SHARED, "attention_head_dim": 64, "addition_embed_type_num_heads": 64,
    "encoder_hid_dim": 4096,
}  # fmt: skip
_TINY: dict[str, Any] = {
    **_SHARED, "attention_head_dim": 8, "addition_embed_type_num_heads": 2, "encoder_hid_dim": 32,
}  # fmt: skip


def _stage_one(shared: dict[str, Any], size: int, widths: tuple[int, ...]) -> dict[str, Any]:
    return {
        **shared,
        "sample_size": size,
        "in_channels": 3,
        "block_out_channels": widths,
        "cross_attention_dim": widths[-1],
    }


def _stage_two(shared: dict[str, Any], size: int, widths: tuple[int, ...]) -> dict[str, Any]:
    """The low-resolution picture lies beside x_t, and its noise level is a class."""
    return {
        **_stage_one(shared, size, widths),
        "in_channels": 6,
        "class_embed_type": "timestep",
        "mid_block_scale_factor": 2**0.5,
    }


# Source: the unet/config.json of DeepFloyd/IF-I-XL-v1.0 and IF-II-L-v1.0. IF-I-M's is inferred:
# IF-I-XL's with a width of 192 in place of 704 has 372 M parameters, and 0.4 B are published.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "IF-I-M": {
        **_stage_one(_REAL, 64, (192, 384, 576, 768)), **_OF_FOUR_LEVELS, "layers_per_block": 3,
    },
    "IF-I-XL": {
        **_stage_one(_REAL, 64, (704, 1408, 2112, 2816)), **_OF_FOUR_LEVELS, "layers_per_block": 3,
    },
    "IF-II-L": {
        **_stage_two(_REAL, 256, (160, 320, 640, 960, 1280)),
        "layers_per_block": (2, 2, 3, 5, 5),
        "resnet_out_scale_factor": 2**0.5,
        "resnet_skip_time_act": True,
        "down_block_types": (
            *3 * ("ResnetDownsampleBlock2D",), *2 * ("SimpleCrossAttnDownBlock2D",),
        ),
        "up_block_types": (*2 * ("SimpleCrossAttnUpBlock2D",), *3 * ("ResnetUpsampleBlock2D",)),
    },
    "tiny-I": {**_stage_one(_TINY, 32, (32, 32)), **_OF_TWO_LEVELS},
    "tiny-II": {**_stage_two(_TINY, 64, (32, 32)), **_OF_TWO_LEVELS},
}  # fmt: skip
STAGE_TWO = ("IF-II-L", "tiny-II")


def build_unet(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Any:
    """A frozen UNet of random weights, the same at every call.

    Args:
        name: of `CONFIGURATIONS`.
        device: "meta" gives it shapes and no memory.
        dtype: of its weights.
    """
    from diffusers import UNet2DConditionModel

    device = torch.device(device)
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), device:
        torch.default_generator.manual_seed(0)
        if on_gpu:
            torch.cuda.manual_seed(0)
        before = torch.get_default_dtype()
        # Made in its own precision: the largest would not fit twice.
        torch.set_default_dtype(dtype)
        try:
            unet = UNet2DConditionModel(**CONFIGURATIONS[name])
        finally:
            torch.set_default_dtype(before)
    return unet.eval().requires_grad_(False)


def parameter_count(name: str) -> int:
    """How many numbers the UNet of `CONFIGURATIONS` learns."""
    return sum(parameter.numel() for parameter in build_unet(name, "meta").parameters())
