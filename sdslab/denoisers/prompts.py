"""Prompts as embeddings: encoded once, in a step of their own, and kept between runs."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sdslab.denoisers.pipeline_source import PipelineSource
from sdslab.errors import UserError, first_line
from sdslab.files.atomic_write import atomic_write
from sdslab.files.disk_cache import cached_tensors, content_hash
from sdslab.files.pickles import refuse_pickle, refuse_pickled_weights

_CACHE_VERSION = 1  # raise it whenever encoding changes
T5_LENGTH = 77  # tokens, of diffusers' IFPipeline
LONGEST_PROMPT = 100_000  # characters; an encoder reads the first 77 tokens or so


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
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Prompts(self.embeddings.to(device, dtype), pooled)

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
            pooled = None if prompts.pooled is None else prompts.pooled[order]
            return cls(prompts.embeddings[order], pooled)
        return prompts

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"embeddings": self.embeddings}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


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
        dtype: of their weights.

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
    encode = {"StableDiffusionXLPipeline": _encode_sdxl}.get(
        kind, _encode_t5 if kind.startswith("IF") else _encode_clip
    )
    tensors = cached_tensors(
        "prompts", key, lambda: encode(source, parts, index, texts, device, dtype)._tensors()
    )
    return Prompts(tensors["embeddings"], tensors.get("pooled"))


def _encode_t5(
    source: PipelineSource,
    parts: Sequence[str],
    index: dict[str, Any],
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Prompts:
    """As diffusers' IFPipeline does: lower case, 77 tokens, padded, with the padding masked."""
    del index
    folder = source.folder(parts, half=dtype != torch.float32)
    tokenizer = _tokenizer(folder / "tokenizer", source)
    encoder = _encoder("T5EncoderModel", folder / "text_encoder", source, device, dtype)
    tokens = tokenizer(
        [text.lower().strip() for text in texts],
        padding="max_length",
        max_length=T5_LENGTH,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    ).to(device)
    with torch.no_grad():
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    result = Prompts(states.float().cpu())
    del encoder, states
    _free()
    return result


def _encode_clip(
    source: PipelineSource,
    parts: Sequence[str],
    index: dict[str, Any],
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Prompts:
    """As diffusers' StableDiffusionPipeline does: the last hidden state, padding included."""
    del index
    folder = source.folder(parts, half=dtype != torch.float32)
    tokenizer = _tokenizer(folder / "tokenizer", source)
    encoder = _encoder("CLIPTextModel", folder / "text_encoder", source, device, dtype)
    with torch.no_grad():
        states = encoder(_clip_tokens(tokenizer, texts).to(device))[0]
    result = Prompts(states.float().cpu())
    del encoder, states
    _free()
    return result


def _encode_sdxl(
    source: PipelineSource,
    parts: Sequence[str],
    index: dict[str, Any],
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Prompts:
    """As diffusers' StableDiffusionXLPipeline does: both encoders' last but one hidden states."""
    folder = source.folder(parts, half=dtype != torch.float32)
    states, pooled = [], None
    for suffix, name in (("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")):
        tokenizer = _tokenizer(folder / f"tokenizer{suffix}", source)
        encoder = _encoder(name, folder / f"text_encoder{suffix}", source, device, dtype)
        with torch.no_grad():
            output = encoder(_clip_tokens(tokenizer, texts).to(device), output_hidden_states=True)
        states.append(output.hidden_states[-2].float().cpu())
        pooled = output[0].float().cpu()
        del encoder, output
        _free()
    embeddings = torch.cat(states, dim=-1)
    assert pooled is not None
    if not texts[-1] and index.get("force_zeros_for_empty_prompt", False):
        embeddings[-1] = 0
        pooled[-1] = 0
    return Prompts(embeddings, pooled)


def _clip_tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


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
    refuse_pickled_weights(folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{source.option} {source.name} must have safetensors weights (pickles are never "
            f"read), got none in {folder.name}; save the pipeline with save_pretrained"
        )
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
