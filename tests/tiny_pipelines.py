"""Diffusion pipelines of real block types and random weights, small enough for a test to save.

Each function writes a folder as ``save_pretrained`` does and as the hub has it.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ("a", "cow", "in", "suit", "front", "side", "backside", "top", "bottom", "view", "stone")
TEXT_CHANNELS = 32
CASTEX_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
}


def save_deepfloyd_one(folder: Path, size: int = 16) -> Path:
    """IF-I: a UNet of pixels with six output channels, and T5."""
    _save(folder, "IFPipeline", unet=_if_unet(3, size), scheduler=DDPMScheduler(**CASTEX_SCHEDULER))
    _save_t5(folder)
    return folder


def save_deepfloyd_two(folder: Path, size: int = 32) -> Path:
    """IF-II: like IF-I, with the low-resolution picture beside x_t and its noise as a class."""
    _save(
        folder,
        "IFSuperResolutionPipeline",
        unet=_if_unet(6, size, class_embed_type="timestep", mid_block_scale_factor=1.414),
        scheduler=DDPMScheduler(**CASTEX_SCHEDULER),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    _save_t5(folder)
    return folder


def save_stable_diffusion(
    folder: Path, prediction_type: Literal["epsilon", "v_prediction"] = "epsilon", size: int = 8
) -> Path:
    """Stable Diffusion: latents of a small VAE, CLIP."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
    )
    _save(
        folder,
        "StableDiffusionPipeline",
        unet=_sd_unet(4, size),
        vae=_vae(),
        scheduler=scheduler,
        text_encoder=CLIPTextModel(_clip_config()),
    )
    _save_tokenizer(folder / "tokenizer")
    return folder


def save_sdxl(folder: Path, size: int = 8) -> Path:
    """SDXL: two text encoders, pooled text and sizes as added conditions."""
    unet = _sd_unet(
        4,
        size,
        cross_attention_dim=2 * TEXT_CHANNELS,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_CHANNELS + 6 * 8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    _save(
        folder,
        "StableDiffusionXLPipeline",
        {"force_zeros_for_empty_prompt": True},
        unet=unet,
        vae=_vae(),
        scheduler=scheduler,
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
    )
    _save_tokenizer(folder / "tokenizer")
    _save_tokenizer(folder / "tokenizer_2")
    return folder


def save_upscaler(folder: Path, size: int = 16) -> Path:
    """The ×4 upscaler: latents of a VAE of factor 4 beside a noised small picture."""
    _save(
        folder,
        "StableDiffusionUpscalePipeline",
        unet=_sd_unet(7, size, num_class_embeds=1000),
        vae=_vae(levels=3),
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        text_encoder=CLIPTextModel(_clip_config()),
    )
    _save_tokenizer(folder / "tokenizer")
    return folder


def _if_unet(in_channels: int, size: int, **options: Any) -> UNet2DConditionModel:
    torch.manual_seed(in_channels)
    return UNet2DConditionModel(
        sample_size=size,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=in_channels,
        out_channels=6,
        cross_attention_dim=TEXT_CHANNELS,
        encoder_hid_dim=TEXT_CHANNELS,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        **options,
    )


def _sd_unet(in_channels: int, size: int, **options: Any) -> UNet2DConditionModel:
    torch.manual_seed(in_channels)
    return UNet2DConditionModel(
        **{
            "sample_size": size,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "in_channels": in_channels,
            "out_channels": 4,
            "cross_attention_dim": TEXT_CHANNELS,
            "attention_head_dim": 4,
            **options,
        }
    )


def _vae(levels: int = 2) -> AutoencoderKL:
    torch.manual_seed(levels)
    options: dict[str, Any] = {  # diffusers annotates tuples of any length as of one
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return AutoencoderKL(norm_num_groups=4, latent_channels=4, sample_size=32, **options)


def _clip_config() -> CLIPTextConfig:
    torch.manual_seed(0)
    return CLIPTextConfig(
        hidden_size=TEXT_CHANNELS,
        intermediate_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=len(WORDS) + 3,
        max_position_embeddings=77,
        projection_dim=TEXT_CHANNELS,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def _save_t5(folder: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS) + 3, d_model=TEXT_CHANNELS, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    _name_in_index(folder, "text_encoder", "transformers", "T5EncoderModel")
    _save_tokenizer(folder / "tokenizer")


def _save_tokenizer(folder: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<pad>",
        model_max_length=77,
    ).save_pretrained(folder)
    _name_in_index(folder.parent, folder.name, "transformers", "PreTrainedTokenizerFast")


def _save(folder: Path, name: str, extra: dict[str, Any] | None = None, **parts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": name, "_diffusers_version": "0.35.0", **(extra or {})}
    # The parts that must never be loaded are named, as on the hub, and not there.
    index |= {"safety_checker": ["deepfloyd_if", "IFSafetyChecker"], "watermarker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, model in parts.items():
        model.save_pretrained(folder / part)
        library = "transformers" if part.startswith("text") else "diffusers"
        _name_in_index(folder, part, library, type(model).__name__)


def _name_in_index(folder: Path, part: str, library: str, name: str) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: [library, name]}))
