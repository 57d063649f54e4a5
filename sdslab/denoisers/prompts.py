"""Prompts: one for each side of the object, and their embeddings, kept between runs."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sdslab.denoisers.pipelines import PipelineSource
from sdslab.errors import UserError, first_line
from sdslab.files.atomic_write import atomic_write
from sdslab.files.disk_cache import cached_tensors, content_hash
from sdslab.files.weights import refuse_pickle, require_safetensors
from sdslab.tensor_types import map_tensors

_CACHE_VERSION = 1  # raise it whenever encoding changes
T5_LENGTH = 77  # tokens, of diffusers' IFPipeline
LONGEST_PROMPT = 100_000  # characters; an encoder reads the first 77 tokens or so

VIEW_NAMES = ("front view", "side view", "backside view", "top view", "bottom view")
FRONT, SIDE, BACK, TOP, BOTTOM = range(5)
STEEP_DEG = 45.0
# The sides that a view must not show, for each of the five: what a model likes to put everywhere.
OTHER_SIDES = ((SIDE, BACK), (FRONT, BACK), (FRONT, SIDE), (FRONT, BACK), (FRONT, BACK))


@dataclass(frozen=True, eq=False)
class Prompts:
    """The rows that `Condition.prompt` counts; the last one is the empty or negative prompt.

    Attributes:
        embeddings: [n, tokens, channels].
        pooled: [n, channels], for SDXL; or None.
    """

    embeddings: Tensor
    pooled: Tensor | None = None

    @property
    def unconditional(self) -> int:
        """The last row."""
        return len(self.embeddings) - 1

    def to(self, device: torch.device, dtype: torch.dtype) -> "Prompts":
        """The same prompts on a device, in a model's precision."""
        return map_tensors(self, lambda x: x.to(device, dtype))

    def save(self, path: Path) -> None:
        """Writes them as safetensors."""
        content = safetensors.torch.save(self._tensors())
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: Path, rows: int) -> "Prompts":
        """Reads what `save` wrote.

        Args:
            path: a safetensors file with ``embeddings`` [n, tokens, channels] and, for SDXL,
                ``pooled`` [n, channels].
            rows: how many prompts there must be: those of the views, then the negative one. Two
                rows, a prompt and a negative, serve all views alike.

        Raises:
            UserError: no such file, or other shapes.
        """
        refuse_pickle(path)
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            prompts = cls(tensors["embeddings"], tensors.get("pooled"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"--embeddings must be a safetensors file with a tensor named embeddings, got "
                f"{str(path)!r}: {first_line(error)}"
            ) from error
        shape = list(prompts.embeddings.shape)
        if len(shape) != 3 or shape[0] not in (2, rows):
            raise UserError(
                f"--embeddings must be [{rows}, tokens, channels] (five views, then the negative "
                f"prompt) or [2, tokens, channels], got {shape} in {str(path)!r}"
            )
        if not prompts.embeddings.isfinite().all():
            raise UserError(f"--embeddings must be finite, got NaN or infinite in {str(path)!r}")
        if shape[0] == 2 and rows != 2:
            order = torch.tensor([0] * (rows - 1) + [1])
            return map_tensors(prompts, lambda x: x[order])
        return prompts

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"embeddings": self.embeddings}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def view_prompts(prompt: str, names: Sequence[str] = VIEW_NAMES) -> list[str]:
    """The prompt with each of five names after a comma; an empty name adds nothing."""
    if len(names) != len(VIEW_NAMES):
        raise ValueError(f"names must be {len(VIEW_NAMES)}, got {len(names)}")
    return [f"{prompt}, {name.strip()}" if name.strip() else prompt for name in names]


def view_of(eye: Tensor) -> Tensor:
    """Index in `VIEW_NAMES` of the side that each eye sees.

    The azimuth is that around the *object*: it stays where it is here, and the light turns.

    Args:
        eye: [b, 3] around the origin in world space; azimuth φ = 90° is +Z, the front.

    Returns:
        [b] int64: top at an elevation of 45° and above, bottom at −45° and below; else front within
        45° of azimuth 90°, back within 45° of 270°, and side.

    Source: CasTex's public code (arXiv 2504.06856), which takes the world's azimuth.
    """
    x, y, z = eye.double().unbind(-1)
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    azimuth = torch.rad2deg(torch.atan2(z, x)) % 360
    view = torch.full_like(azimuth, SIDE, dtype=torch.int64)
    view[(azimuth >= 45) & (azimuth <= 135)] = FRONT
    view[(azimuth >= 225) & (azimuth <= 315)] = BACK
    view[elevation >= STEEP_DEG] = TOP
    view[elevation <= -STEEP_DEG] = BOTTOM
    return view


def encode_prompts(
    source: PipelineSource,
    prompts: Sequence[str],
    negative: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Prompts:
    """Encodes prompts with a pipeline's own text encoders, which are freed before it returns.

    The result is kept on disk under everything it depends on: the encoders, the precision and the
    texts. The next run loads no encoder.

    Args:
        source: the pipeline; stage II of DeepFloyd takes stage I's prompts.
        prompts: texts.
        negative: what guidance leads away from; may be empty.
        device: where the encoders run.
        dtype: precision of their weights.

    Raises:
        UserError: an empty prompt, or the encoders cannot be had.
    """
    texts = [*prompts, negative]
    for text in prompts:
        if not text.strip():
            raise UserError("--prompt must say something, got an empty text")
    longest = max(map(len, texts))
    if longest > LONGEST_PROMPT:
        raise UserError(f"--prompt must have at most {LONGEST_PROMPT} characters, got {longest}")
    index = source.index()
    kind = index["_class_name"]
    parts = [
        part
        for part in ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        if index.get(part, [None, None])[1] is not None
    ]
    if "text_encoder" not in parts:
        raise UserError(
            f"{source.option} {source.name} must have a text encoder, got a {kind} without one; "
            f"give --embeddings FILE"
        )
    key = content_hash(source.digest(parts), str(dtype), kind, texts, _CACHE_VERSION)
    tensors = cached_tensors(
        "prompts", key, lambda: _encode(source, parts, index, texts, device, dtype)._tensors()
    )
    return Prompts(tensors["embeddings"], tensors.get("pooled"))


def _encode(
    source: PipelineSource,
    parts: Sequence[str],
    index: dict[str, Any],
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Prompts:
    """Encodes as the kind's own pipeline of diffusers does.

    DeepFloyd: T5, in lower case, 77 tokens, the padding masked. Stable Diffusion: CLIP's last
    hidden state, padding included. SDXL: both encoders' last but one, and the second's projection.
    """
    kind = index["_class_name"]
    deepfloyd, sdxl = kind.startswith("IF"), kind == "StableDiffusionXLPipeline"
    names = ["T5EncoderModel" if deepfloyd else "CLIPTextModel"]
    if sdxl:
        names.append("CLIPTextModelWithProjection")
    folder = source.folder(parts, half=dtype != torch.float32)
    states, pooled = [], None
    for name, suffix in zip(names, ("", "_2"), strict=False):
        tokenizer = _tokenizer(folder / f"tokenizer{suffix}", source)
        encoder = _encoder(name, folder / f"text_encoder{suffix}", source, device, dtype)
        tokens = tokenizer(
            [text.lower().strip() for text in texts] if deepfloyd else list(texts),
            padding="max_length",
            max_length=T5_LENGTH if deepfloyd else tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        mask = {"attention_mask": tokens.attention_mask} if deepfloyd else {}
        with torch.no_grad():
            output = encoder(tokens.input_ids, output_hidden_states=sdxl, **mask)
        states.append((output.hidden_states[-2] if sdxl else output[0]).float().cpu())
        pooled = output[0].float().cpu() if sdxl else None
        del encoder, output
        _free()
    embeddings = torch.cat(states, dim=-1)
    if pooled is not None and not texts[-1] and index.get("force_zeros_for_empty_prompt", False):
        embeddings[-1] = 0
        pooled[-1] = 0
    return Prompts(embeddings, pooled)


def _tokenizer(folder: Path, source: PipelineSource) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types for a broken folder
        raise UserError(
            f"{source.option} {source.name}: the tokenizer cannot be loaded: {first_line(error)}; "
            f"download the pipeline again, or give --embeddings FILE"
        ) from error


def _encoder(
    name: str, folder: Path, source: PipelineSource, device: torch.device, dtype: torch.dtype
) -> Any:
    import transformers

    transformers.logging.disable_progress_bar()  # the program has a bar of its own
    options: dict[str, Any] = {}
    if device.type == "cuda" and name == "T5EncoderModel" and _has_bitsandbytes():
        # 15 GB instead of 20: T5-XXL fits a 16 GB card, if only to encode one prompt.
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    variant = "fp16" if any(folder.glob("*.fp16.safetensors")) and dtype != torch.float32 else None
    require_safetensors(f"{source.option} {source.name}", folder)
    try:
        encoder, loading = getattr(transformers, name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            variant=variant,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise UserError(
            f"{source.option} {source.name}: the text encoder cannot be loaded: "
            f"{first_line(error)}; download the pipeline again, or give --embeddings FILE"
        ) from error
    if loading["missing_keys"]:
        raise UserError(
            f"{source.option} {source.name}: {len(loading['missing_keys'])} weights of the text "
            f"encoder are missing; download the pipeline again"
        )
    return (encoder if options else encoder.to(device)).eval()


def _has_bitsandbytes() -> bool:
    import importlib.util

    return importlib.util.find_spec("bitsandbytes") is not None


def _free() -> None:
    """Gives the encoder's memory back before the UNet wants it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
