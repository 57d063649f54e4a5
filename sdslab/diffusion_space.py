"""Spaces that a diffusion model works in: pixels in [−1, 1], or the latents of an autoencoder."""

import json
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError, first_line
from sdslab.files.weights import ask_hub, not_available, require_hub_id, require_safetensors
from sdslab.kernels.validation import require_integer, require_layout
from sdslab.tensor_types import Diffused, Image, Maps

# AutoencoderKL, AutoencoderTiny and their like; diffusers annotates their outputs wrongly.
Autoencoder = Any

SHIPPED_VAE = Path(__file__).parent / "shipped_vae"
# What has a short name: the paper's model, and its distilled copy of a twentieth of the size.
NAMED_VAES = {
    "shipped": str(SHIPPED_VAE),
    "sd": "stabilityai/sd-vae-ft-mse",
    "taesd": "madebyollin/taesd",
}


class DiffusionSpace(ABC):
    """A differentiable way from images in [0, 1] to the variable z that is diffused, and back."""

    @abstractmethod
    def encode(self, image: Image) -> Diffused:
        """Maps sRGB-encoded images [b, 3, h, w] in [0, 1] to z."""

    @abstractmethod
    def decode(self, z: Diffused) -> Image:
        """Maps z back to images; values may leave [0, 1] and are not clamped."""


@final
class PixelSpace(DiffusionSpace):
    """z = 2 x − 1, at the diffusion model's own resolution.

    Args:
        size: height and width of z; images of another size are resized with antialiasing
            (bilinear). None keeps the image's own.
    """

    def __init__(self, size: int | None = None) -> None:
        if size is not None:
            require_integer("size", size)
        self.size = size

    def encode(self, image: Maps) -> Diffused:
        require_layout("image", image, "b c h w")
        if self.size is not None:
            image = resize(image, self.size)
        return 2 * image - 1

    def decode(self, z: Diffused) -> Image:
        return (z + 1) / 2


@final
class LatentSpace(DiffusionSpace):
    """The scaled latents of a diffusers autoencoder.

    z = (posterior mean − shift) · scale, with the model's own ``scaling_factor``, ``shift_factor``,
    ``latents_mean`` and ``latents_std``. The mean, not a sample: sampling would inject noise of its
    own into the gradient.

    Args:
        vae: an ``AutoencoderKL``, ``AutoencoderTiny`` or any diffusers model like them; its weights
            are frozen in place.
        size: height and width of the pictures that are encoded; those of another size are resized
            with antialiasing (bilinear). None keeps the picture's own.
    """

    def __init__(self, vae: Autoencoder, size: int | None = None) -> None:
        if not hasattr(vae, "config"):
            raise TypeError(
                f"vae must be a diffusers autoencoder, got a {type(vae).__name__}; "
                f"LatentSpace.load(folder or hub id) loads one"
            )
        self.size = size
        self.vae = vae.eval().requires_grad_(False)
        config = dict(vae.config)
        channels = config["latent_channels"]
        self.scale = _per_channel(1.0, channels) * (config.get("scaling_factor") or 1.0)
        self.shift = _per_channel(config.get("shift_factor") or 0.0, channels)
        if config.get("latents_mean") and config.get("latents_std"):
            self.shift = _per_channel(config["latents_mean"], channels)
            self.scale = self.scale / _per_channel(config["latents_std"], channels)
        blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
        self.scale, self.shift = self.scale.to(vae.device), self.shift.to(vae.device)
        self.channels: int = channels
        self.factor: int = 2 ** (len(blocks) - 1)

    def encode(self, image: Image) -> Diffused:
        require_layout("image", image, "b c h w", c=3)
        if self.size is not None:
            image = resize(image, self.size)
        self.check_size(*image.shape[-2:])
        encoded = self.vae.encode((2 * image - 1).to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    def check_size(self, height: int, width: int) -> None:
        """Refuses a picture that the encoder's strides do not divide.

        Raises:
            UserError: says which size would do.
        """
        if height % self.factor or width % self.factor:
            raise UserError(
                f"the VAE needs a height and width divisible by {self.factor}, got "
                f"{height}×{width}; use {max(1, round(height / self.factor)) * self.factor}"
            )

    def decode(self, z: Diffused) -> Image:
        require_layout("z", z, "b c h w", c=self.channels)
        decoded = self.vae.decode(z / self.scale.to(z) + self.shift.to(z))
        return (decoded.sample + 1) / 2

    @classmethod
    def load(
        cls,
        source: str | Path = SHIPPED_VAE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "LatentSpace":
        """Loads an autoencoder through diffusers, from safetensors only.

        Args:
            source: a name of ``NAMED_VAES``, a folder with ``config.json`` and safetensors
                weights, a pipeline's folder with such a ``vae`` folder in it, or a hub id.
            device: where the weights go.
            dtype: precision of the weights, and so of the latents; float32 in place of float16
                where the config says ``force_upcast``, as SDXL's does, which overflows otherwise.

        Raises:
            UserError: nothing there, not an autoencoder, or the hub cannot be reached.
        """
        if source == "shipped" or not Path(source).is_dir():  # a folder of the user's goes first
            source = NAMED_VAES.get(str(source), source)
        folder = Path(source)
        if (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        if folder.is_dir():
            return cls._of_model(_from_folder(folder, dtype).to(device), str(source))
        require_hub_id("--vae", str(source), "stabilityai/sd-vae-ft-mse")
        return cls._of_model(_from_hub(str(source), dtype).to(device), str(source))

    @classmethod
    @torch.no_grad()
    def _of_model(cls, vae: Autoencoder, source: str) -> "LatentSpace":
        """Makes the space and tries it, for diffusers has autoencoders of many other shapes."""
        # Convolutions want the channels of a pixel side by side, on CPUs and tensor cores alike.
        vae.to(memory_format=torch.channels_last)
        try:
            space = cls(vae)
            image = torch.zeros(1, 3, 8 * space.factor, 8 * space.factor)
            decoded = space.decode(space.encode(image.to(vae.device, vae.dtype)))
            fits = decoded.shape == image.shape
        except Exception as error:  # whatever a model of another kind raises
            raise UserError(
                f"--vae must be an image autoencoder like AutoencoderKL, got {source!r}, which "
                f"fails on a small picture: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not fits:
            raise UserError(
                f"--vae must give back pictures of the size it got, got {source!r}, which turns "
                f"{list(image.shape)} into {list(decoded.shape)}"
            )
        return space


def resize(image: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing, to size × size; nothing changes where it is that already."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)


def _per_channel(value: float | list[float], channels: int) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64).expand(channels)
    return values.view(1, channels, 1, 1)


def _model_class(name: str, source: str) -> type[Autoencoder]:
    import diffusers

    if not name.startswith(("Autoencoder", "AsymmetricAutoencoder")):
        raise UserError(
            f"--vae must name a diffusers autoencoder, got a {name or 'config without _class_name'}"
            f" in {source!r}; give the pipeline's vae folder"
        )
    model_class = getattr(diffusers, name, None)
    if model_class is None:
        raise UserError(f"diffusers {diffusers.__version__} has no {name}, which {source!r} names")
    return model_class


def _safe_precision(config: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 where the activations of the autoencoder leave float16's range."""
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def load_whole(
    model_class: type[Autoencoder], source: str | Path, dtype: torch.dtype, **options: Any
) -> Autoencoder:
    """``from_pretrained``, but a checkpoint that lacks weights is an error, not a random model."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what is wrong is raised below, in one line
    try:
        model, loading = model_class.from_pretrained(
            source,
            use_safetensors=True,
            torch_dtype=dtype,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    if loading["missing_keys"]:
        raise ValueError(f"{len(loading['missing_keys'])} of its weights are missing")
    return model


def _from_folder(folder: Path, dtype: torch.dtype) -> Autoencoder:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(
            f"a VAE folder must hold config.json and safetensors weights, got no config.json in "
            f"{str(folder)!r}; save the model there with save_pretrained"
        )
    require_safetensors(f"the VAE in {str(folder)!r}", folder)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        model_class = _model_class(config.get("_class_name", ""), str(folder))
        variant = None if any(folder.glob("*model.safetensors*")) else "fp16"
        dtype = _safe_precision(config, dtype)
        return load_whole(model_class, folder, dtype, local_files_only=True, variant=variant)
    except UserError:
        raise
    except Exception as error:  # diffusers and safetensors raise a dozen types for a broken folder
        raise UserError(
            f"the VAE in {str(folder)!r} cannot be loaded: {first_line(error)}; download or save "
            f"it again"
        ) from error


def _from_hub(hub_id: str, dtype: torch.dtype) -> Autoencoder:
    from diffusers import AutoencoderKL

    answer = ask_hub(hub_id)
    local = isinstance(answer, Exception)  # then a copy that was downloaded before will do
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own calls to the hub are deprecated ones
            config: Any = AutoencoderKL.load_config(hub_id, local_files_only=local)
            model_class = _model_class(config.get("_class_name", ""), hub_id)
            dtype = _safe_precision(config, dtype)
            return load_whole(model_class, hub_id, dtype, local_files_only=local)
    except UserError:
        raise
    except Exception as error:
        cause = answer if isinstance(answer, Exception) else error
        raise not_available("--vae", hub_id, cause) from error
