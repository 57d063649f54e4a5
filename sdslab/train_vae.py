"""Trains the small KL autoencoder that ships with sdslab: ``python -m sdslab.train_vae FOLDER``.

Photographs may come from anywhere; the shipped weights used the wallpapers that Debian packages
under free licences (see ``sdslab/shipped_vae/README.md`` for the commands). The four scikit-image
photographs that the study uses are only ever evaluated on.
"""

import csv
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image

from sdslab.diffusion_space import Autoencoder, LatentSpace
from sdslab.errors import UserError, exit_on_user_error
from sdslab.files.atomic_write import check_writable
from sdslab.optimization.muon import Muon
from sdslab.pictures.image_io import load_image
from sdslab.pictures.metrics import psnr_db
from sdslab.runs.folder import check_inputs_apart, check_output_folder, own_files
from sdslab.shell.command_line import parse
from sdslab.shell.process import keep_streams

HELD_OUT = ("astronaut", "chelsea", "coffee", "rocket")  # never trained on
HELD_OUT_SIZE = 256
SHORT_SIDES = (192, 288, 432, 640)  # every photograph is cropped at these scales, in pixels
CROP_PIXELS = 64 * 64
EVALUATE_EVERY_SECONDS = 180
CURVE = "training_curve.csv"
CURVE_COLUMNS = ("step", "minutes", "loss", "crops_psnr_db")


@dataclass(frozen=True)
class TrainVaeConfig:
    """Trains the small KL autoencoder that ships with sdslab.

    The result is a folder in diffusers' own AutoencoderKL format.

    Example:
      python -m sdslab.train_vae photographs --minutes 60 --out vae
    """

    folders: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FOLDER [FOLDER ...]", help_behavior_hint="(required)"),
    ]
    """Folders searched recursively for .jpg, .jpeg, .png and .webp photographs."""
    out: Path = Path("vae")
    """Folder for config.json, the safetensors weights and training_curve.csv."""
    steps: int = 20_000
    """Optimisation steps; the learning rate falls to zero over them."""
    minutes: float = math.inf
    """Wall-clock budget; the schedule follows whichever of steps and minutes is nearer its end."""
    batch: int = 8
    """64² crops a step; larger crops are fewer, for about as many pixels."""
    crop_sides: tuple[int, ...] = (64, 128, 192)
    """Crop sizes in pixels, each for an equal share of the run; group norm makes the result vary
    with the picture's size, so that whole pictures suffer where all crops were small."""
    initial: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: none)")
    ] = None
    """Folder of a model to go on from, instead of random weights."""
    channels: tuple[int, int, int, int] = (24, 48, 96, 96)
    """Channels at full, half, quarter and eighth resolution."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 is faster where the CPU multiplies it itself (AMX)."""
    learning_rate: float = 5e-3
    """Peak learning rate of Muon (convolution kernels); AdamW (the rest) has 0.3 of it."""
    seed: int = 0
    """Seed of the initial weights and of the crops."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    threads: int = 0
    """CPU threads; 0 keeps torch's own choice."""


def find_photographs(folders: tuple[Path, ...]) -> list[Path]:
    """Lists the pictures below ``folders``, one of each set of sizes.

    Wallpaper packages hold one picture as ``1080x1920.jpg``, ``3840x2160.png``, …: the largest is
    kept. Files named ``screenshot`` are their thumbnails and are left out.
    """
    largest: dict[Path, tuple[int, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"each FOLDER must be an existing folder, got {folder}")
        for path in sorted(folder.rglob("*")):
            suffix = path.suffix.lower()
            if suffix not in {".jpg", ".jpeg", ".png", ".webp"} or path.stem == "screenshot":
                continue
            size = re.fullmatch(r"(\d+)x(\d+)", path.stem)
            group, area = (path.parent, int(size[1]) * int(size[2])) if size else (path, 0)
            if group not in largest or area > largest[group][0]:
                largest[group] = (area, path)
    return sorted(path for _, path in largest.values())


def load_scales(paths: list[Path]) -> list[np.ndarray]:
    """Decodes each photograph at every scale of ``SHORT_SIDES`` that it is large enough for."""
    scales = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.draft("RGB", (2 * max(SHORT_SIDES), 2 * max(SHORT_SIDES)))
                picture = picture.convert("RGB")
        except (OSError, ValueError) as error:
            raise UserError(f"{str(path)!r} must be a readable picture: {error}") from error
        for short_side in SHORT_SIDES:
            factor = short_side / min(picture.size)
            if factor <= 1:
                size = (round(picture.width * factor), round(picture.height * factor))
                scales.append(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)))
    return scales


def random_crops(
    scales: list[np.ndarray], rng: np.random.Generator, count: int, side: int
) -> torch.Tensor:
    """Draws ``count`` crops [count, 3, side, side] in [−1, 1], each the livelier of two candidates.

    Crops are flipped, transposed and, three times in ten, have their colour channels permuted: a
    few hundred photographs hold too few colours otherwise.
    """
    fitting = [scale for scale in scales if min(scale.shape[:2]) >= side]

    def candidate() -> np.ndarray:
        scale = fitting[rng.integers(len(fitting))]
        row, column = (rng.integers(extent - side + 1) for extent in scale.shape[:2])
        return scale[row : row + side, column : column + side]

    crops = []
    for _ in range(count):
        crop = max(candidate(), candidate(), key=np.std)
        crop = crop[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        if rng.random() < 0.5:
            crop = crop.swapaxes(0, 1)
        if rng.random() < 0.3:
            crop = crop[..., rng.permutation(3)]
        crops.append(crop)
    return torch.from_numpy(np.stack(crops)).movedim(-1, 1).float() / 127.5 - 1


def build_vae(channels: tuple[int, int, int, int]) -> Autoencoder:
    """An f8, 4-channel ``AutoencoderKL`` with one residual block a level and no attention."""
    from diffusers import AutoencoderKL

    model_class: type[Autoencoder] = AutoencoderKL
    return model_class(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=HELD_OUT_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def loss_of(vae: Autoencoder, x: torch.Tensor) -> torch.Tensor:
    """Mean squared error, a little of its image gradients' L1 error, and 1e-6 of the KL term."""
    posterior = vae.encode(x).latent_dist
    reconstruction = vae.decode(posterior.mode()).sample.float()
    edges = sum(
        F.l1_loss(torch.diff(reconstruction, dim=dim), torch.diff(x, dim=dim)) for dim in (2, 3)
    )
    return F.mse_loss(reconstruction, x) + 0.02 * edges + 1e-6 * posterior.kl().mean()


@torch.no_grad()
def reconstruction_psnrs_db(vae: Autoencoder, x: torch.Tensor) -> list[float]:
    """PSNR of each clamped reconstruction of ``x`` [b, 3, h, w] in [−1, 1]."""
    decoded = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    return [psnr_db(*pair) for pair in zip((decoded + 1) / 2, (x + 1) / 2, strict=True)]


@torch.no_grad()
def finished(vae: Autoencoder, crops: torch.Tensor) -> Autoencoder:
    """A half-precision copy of ``vae``, scaled so that the latents of ``crops`` have variance 1."""
    copy = type(vae).from_config({k: v for k, v in vae.config.items() if not k.startswith("_")})
    copy.load_state_dict(vae.state_dict())
    latents = torch.cat([vae.encode(crop[None]).latent_dist.mode() for crop in crops])
    copy.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return copy.half()


def training_steps(
    config: TrainVaeConfig, vae: Autoencoder, scales: list[np.ndarray]
) -> Iterator[tuple[int, float, float]]:
    """Trains ``vae`` in place, yielding (step, share of the run done, loss) after each step."""
    rng = np.random.default_rng(config.seed)
    kernels = [p for p in vae.parameters() if p.ndim == 4 and min(p.shape[0], p[0].numel()) > 8]
    rest = [p for p in vae.parameters() if all(p is not kernel for kernel in kernels)]
    rate = config.learning_rate
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0, fused=True)
    optimizers = ((Muon(kernels, rate), rate), (adam, 0.3 * rate))
    precision = getattr(torch, config.precision)
    device_type = torch.device(config.device).type
    autocast = torch.autocast(device_type, precision, enabled=precision != torch.float32)
    start, done, step = time.perf_counter(), 0.0, 0
    while done < 1:
        side = config.crop_sides[int(done * len(config.crop_sides))]
        count = max(1, config.batch * CROP_PIXELS // side**2)
        x = random_crops(scales, rng, count, side).to(config.device)
        with autocast:
            loss = loss_of(vae, x)
        vae.zero_grad()
        loss.backward()
        for optimizer, peak in optimizers:
            warm_up = min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = peak * warm_up * (0.5 + 0.5 * math.cos(math.pi * done))
            with autocast:
                optimizer.step()
        step += 1
        elapsed_minutes = (time.perf_counter() - start) / 60
        done = max(step / config.steps, elapsed_minutes / config.minutes)
        yield step, done, loss.item()


def train(config: TrainVaeConfig) -> None:
    """Trains, evaluates every few minutes and leaves the averaged weights in ``config.out``."""
    from rich.progress import track

    if config.steps < 1 or not config.minutes > 0 or config.batch < 1:
        raise UserError(
            f"--steps, --minutes and --batch must be positive, got {config.steps}, "
            f"{config.minutes} and {config.batch}"
        )
    _check_out(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    paths = find_photographs(config.folders)
    scales = load_scales(list(track(paths, f"reading {len(paths)} pictures")))
    if not scales:
        raise UserError(
            f"FOLDER must hold pictures of at least {min(SHORT_SIDES)} pixels, got "
            f"{len(paths)} pictures in {', '.join(map(str, config.folders))}"
        )
    held_out = torch.stack([load_image(name, HELD_OUT_SIZE)[0] for name in HELD_OUT])
    held_out = (2 * held_out - 1).to(config.device)
    known = random_crops(scales, np.random.default_rng(config.seed + 1), 32, 128).to(config.device)

    torch.manual_seed(config.seed)
    vae = build_vae(config.channels)
    if config.initial is not None:
        vae = LatentSpace.load(config.initial).vae.train().requires_grad_(True)
        vae.register_to_config(scaling_factor=1.0)
    vae = vae.to(config.device, memory_format=torch.channels_last)
    average = type(vae).from_config(dict(vae.config)).to(config.device)
    average.load_state_dict(vae.state_dict())
    config.out.mkdir(parents=True, exist_ok=True)
    start, evaluated = time.perf_counter(), 0.0
    with (config.out / CURVE).open("w", newline="") as file:
        curve = csv.writer(file)
        curve.writerow([*CURVE_COLUMNS, *HELD_OUT, "mean_psnr_db"])
        for step, done, loss in training_steps(config, vae, scales):
            decay = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
            elapsed = time.perf_counter() - start
            if elapsed - evaluated < EVALUATE_EVERY_SECONDS and done < 1:
                continue
            evaluated = elapsed
            psnrs = reconstruction_psnrs_db(average, held_out)
            crops_db = float(np.mean(reconstruction_psnrs_db(average, known)))
            row = [loss, crops_db, *psnrs, float(np.mean(psnrs))]
            curve.writerow([step, f"{elapsed / 60:.1f}", *(f"{value:.4f}" for value in row)])
            file.flush()
            finished(average, known).save_pretrained(config.out)
            print(  # noqa: T201
                f"step {step} ({done:.0%}): held-out {np.mean(psnrs):.2f} dB, "
                f"crops {crops_db:.2f} dB",
                flush=True,
            )


def _check_out(config: TrainVaeConfig) -> None:
    """Refuses to write over anything but an earlier training's result.

    Raises:
        UserError: the folder cannot be written, holds what is not ours, or an input.
    """

    def was_trained_here(folder: Path) -> bool:
        curve = folder / CURVE
        if curve.is_symlink() or not curve.is_file():
            return False
        with curve.open("rb") as file:
            return file.readline(1000).startswith(",".join(CURVE_COLUMNS).encode())

    check_writable(config.out)
    check_output_folder(config.out, was_trained_here, "--out")
    inputs = {f"FOLDER {n}": folder for n, folder in enumerate(config.folders, 1)}
    inputs |= {"--initial": config.initial} if config.initial is not None else {}
    check_inputs_apart(config.out, inputs, "--out")
    written = ("config.json", "diffusion_pytorch_model.safetensors", CURVE)
    own_files(config.out, written, None, "--out")


def main() -> None:
    """Entry point of ``python -m sdslab.train_vae``."""
    keep_streams()
    with exit_on_user_error():
        train(parse(TrainVaeConfig, "python -m sdslab.train_vae", sys.argv[1:]))


if __name__ == "__main__":
    main()
