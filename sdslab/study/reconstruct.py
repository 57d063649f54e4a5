"""One cell of a study: recovers an image by SDS against Eq. 3's denoiser, and measures it."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Denoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, weighting_named
from sdslab.diffusion_space import DiffusionSpace, LatentSpace, PixelSpace
from sdslab.distillation.objectives import OBJECTIVES
from sdslab.distillation.sds import exact_sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, SDSResult, philox_normal
from sdslab.kernels.philox import INITIALIZATION_STREAM
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig, OptimizerState
from sdslab.parameterizations.deep_image_prior import (
    DeepImagePrior,
    check_size,
    resolve_architecture,
)
from sdslab.parameterizations.latent import LatentGrid
from sdslab.parameterizations.parameterization import Parameterization, own_parameterization
from sdslab.parameterizations.pixel import PixelGrid
from sdslab.pictures.metrics import mse, psnr_db
from sdslab.runs.from_toml import OneOfOrOwn
from sdslab.shell.named_inputs import is_named_object
from sdslab.study.experiment import Result, Step
from sdslab.study.own_objects import (
    OBJECTIVE_NAMES,
    CellSetup,
    check_importable,
    objective_function,
    own_denoiser,
)

MEASUREMENTS = 60  # points of a convergence curve, spread evenly over log(step)


@dataclass(frozen=True)
class Optimization:
    """Fields of ``OptimizeConfig``, which explains and checks them."""

    steps: int
    optimizer: str = "adam"
    learning_rate: float = 0.01
    learning_rate_schedule: str = "constant"
    gradient_norm_limit: float = float("inf")
    converged_below: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One way of recovering an image: where diffusion happens, what θ is, how it is optimised."""

    name: str
    """For ``--only`` and file names: lower-case letters, digits and underscores."""
    label: str
    """For the table and the figure."""
    diffusion: Literal["pixel", "latent"]
    """The space of the diffusion model."""
    parameterization: Annotated[str, OneOfOrOwn("pixel", "dip", "latent")]
    """What θ is; MODULE:NAME is a function of a `CellSetup` that makes a `Parameterization`."""
    optimization: Optimization
    """How θ moves."""
    initialization: Literal["grey", "noise", "image", "network"] = "network"
    """θ at the start; "image" is the original itself, "network" a DIP's random weights."""
    network: str = "paint-it"
    """The DIP network."""
    width: int | None = None
    """The DIP network's channels; absent: its own."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the DIP network's convolutions multiply in."""
    weighting: str = "x0_unit"
    """w(t), a name of ``sdslab.denoisers.noise_schedule.WEIGHTINGS``."""
    noise: Literal["cancelled", "sampled"] = "cancelled"
    """Eq. 3 in closed form, or through a drawn ε, x_t and the printed ε̂."""
    denoiser: Annotated[str, OneOfOrOwn("exact")] = "exact"
    """Eq. 3's; MODULE:NAME is a function of a `CellSetup` that makes a `Denoiser`."""
    objective: Annotated[str, OneOfOrOwn(*OBJECTIVE_NAMES)] = "sds"
    """Eq. 1, or another row of docs/objectives.md, with its noise and t but the cell's weighting;
    MODULE:NAME is a function with the signature of `sds_gradient`."""
    pictured: bool = True
    """Whether the figure shows it; the table always does."""
    paper_psnr_db: dict[str, float] = field(default_factory=dict)
    """The paper's numbers by read-out: theta, decoded."""

    @property
    def named(self) -> tuple[str, str, str]:
        """What may be the user's own."""
        return self.parameterization, self.denoiser, self.objective


@dataclass(frozen=True)
class Problem:
    """An image to recover, with everything that does not depend on the cell.

    Attributes:
        image_name: for tables.
        image: x*, [1, 3, size, size], sRGB-encoded, in [0, 1].
        vae: the latent space, or None where no cell needs it.
        vae_ceiling: dec(enc(x*)), or None.
    """

    image_name: str
    image: Tensor
    vae: LatentSpace | None
    vae_ceiling: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, image_name: str, image: Tensor, vae: LatentSpace | None) -> "Problem":
        """Adds the autoencoder's own reconstruction to an image."""
        return cls(image_name, image, vae, vae.decode(vae.encode(image)) if vae else None)

    def space(self, cell: Cell) -> DiffusionSpace:
        """The space that the cell's diffusion model lives in."""
        if cell.diffusion == "pixel":
            return PixelSpace()
        assert self.vae is not None
        return self.vae


class CellProgress:
    """What a cell that was stopped goes on from, bit for bit on the CPU.

    Args:
        tensors: of an earlier `snapshot`; None starts anew.
        numbers: of the same `snapshot`.
    """

    def __init__(
        self, tensors: dict[str, Tensor] | None = None, numbers: dict[str, Any] | None = None
    ) -> None:
        numbers = numbers or {}
        self.loop = OptimizerState(tensors, numbers.get("loop"))
        self.latent_mse_start: float | None = numbers.get("latent_mse_start")
        # The step that the loop stood at is taken again, and measured again.
        self.curve: list[tuple[int, float]] = [
            (step, psnr) for step, psnr in numbers.get("curve", []) if step < self.loop.index
        ]

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able numbers, for a checkpoint."""
        tensors, loop = self.loop.snapshot()
        numbers = {
            "loop": loop,
            "latent_mse_start": self.latent_mse_start,
            "curve": self.curve,
        }
        return tensors, numbers


def with_steps(cell: Cell, steps: int) -> Cell:
    """The cell that takes so many steps."""
    optimization = dataclasses.replace(cell.optimization, steps=steps)
    return dataclasses.replace(cell, optimization=optimization)


def check_cell(cell: Cell, size: int, vae: LatentSpace | None) -> None:
    """Refuses, before anything runs or is written, a cell that cannot run at this size.

    Raises:
        UserError: unknown names, bad numbers, or an indivisible size.
    """
    try:
        weighting_named(cell.weighting)
        OptimizeConfig(**dataclasses.asdict(cell.optimization))
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from error
    for option in ("parameterization", "denoiser", "objective"):
        check_importable(f"cell {cell.name}: {option}", getattr(cell, option))
    if cell.parameterization == "dip":
        check_size(size, size, resolve_architecture(cell.network, cell.width))
    if cell.diffusion == "latent":
        assert vae is not None
        vae.check_size(size, size)


def run_cell(
    cell: Cell, problem: Problem, seed: int, progress: CellProgress | None = None
) -> Iterator[Step | Result]:
    """Runs one cell.

    Args:
        cell: what to run.
        problem: what to recover.
        seed: of θ and of the noise.
        progress: what to go on from; it follows the run, and can be saved after any step.

    Yields:
        Steps and, last, the result: pictures of θ [1, 3, h, w], not clamped, by read-out ("theta"
        always, "decoded" for latent diffusion), and the numbers that `_measured` describes.
    """
    progress = progress or CellProgress()
    theta = initial_theta(cell, problem, seed)
    space = problem.space(cell)
    z_star = space.encode(problem.image).detach()
    latest_image: Tensor | None = None

    def diffused(_: int) -> Tensor:  # every step sees the whole image
        nonlocal latest_image
        if isinstance(theta, LatentGrid):  # diffusion sees θ itself: there is no encoder in between
            return theta.latents
        image = theta()
        latest_image = image.detach()
        return space.encode(image)

    config = OptimizeConfig(**dataclasses.asdict(cell.optimization))
    gradient = gradient_of(cell, problem, z_star, seed)
    measured_at = {round(config.steps ** (i / MEASUREMENTS)) - 1 for i in range(MEASUREMENTS)}
    curve = progress.curve
    steps, seconds = progress.loop.index, progress.loop.seconds
    for step in optimize(theta.parameters(), diffused, gradient, config, state=progress.loop):
        steps, seconds = step.index + 1, step.seconds
        if step.index == 0:
            progress.latent_mse_start = mse(step.z, z_star)
        if step.index in measured_at:
            with torch.no_grad():
                image = theta() if latest_image is None else latest_image
            curve.append((step.index, psnr_db(image, problem.image)))
        yield Step(steps, f"{curve[-1][1]:.2f} dB", progress.snapshot)
        if step.gradient_norm <= config.converged_below:
            steps = step.index
    yield _measured(theta, problem, space, z_star, {"steps": steps, "seconds": seconds}, progress)


@torch.no_grad()
def _measured(
    theta: Parameterization,
    problem: Problem,
    space: DiffusionSpace,
    z_star: Tensor,
    loop: dict[str, Any],
    progress: CellProgress,
) -> Result:
    """The result.

    Its numbers are ``psnr``, of each picture as it is and clamped to [0, 1]; ``curve``, the PSNR of
    θ after some numbers of steps; ``steps``, updates of θ; ``seconds`` of the loop, measurements
    included; in latent space ``latent_mse``, mean squared error of z against enc(x*) in scaled
    latents, ``latent_mse_start``, the same before the first step, and ``vae_ceiling_db``, the PSNR
    of dec(enc(x*)); else those are None.
    """
    image, original = theta(), problem.image
    pictures = {"theta": image}
    numbers: dict[str, Any] = {"latent_mse": None, "latent_mse_start": None, "vae_ceiling_db": None}
    if isinstance(space, LatentSpace):
        assert problem.vae_ceiling is not None
        encoded = space.encode(image)
        z = theta.latents if isinstance(theta, LatentGrid) else encoded
        pictures["decoded"] = space.decode(encoded)
        numbers["latent_mse"] = mse(z, z_star)
        numbers["latent_mse_start"] = progress.latent_mse_start
        numbers["vae_ceiling_db"] = psnr_db(problem.vae_ceiling, original)
    psnr = {
        name: [psnr_db(picture, original), psnr_db(picture.clamp(0, 1), original)]
        for name, picture in pictures.items()
    }
    curve = [*progress.curve, (loop["steps"], psnr["theta"][0])]
    pictures = {name: picture.detach() for name, picture in pictures.items()}
    return Result(pictures, numbers | loop | {"curve": curve, "psnr": psnr})


def gradient_of(
    cell: Cell, problem: Problem, z_star: Tensor, seed: int
) -> Callable[[Tensor, int], SDSResult]:
    """The cell's distillation gradient as a function of (z, step index)."""
    if cell.noise == "cancelled":
        exact = exact_gradient_of(cell, z_star)
        return lambda z, index: exact(z, noise_and_timestep(cell, z, seed, index)[1])
    objective, weighting = objective_function(cell.objective), weighting_named(cell.weighting)
    denoiser: Denoiser = DegenerateDenoiser(z_star, _schedule(cell))
    if is_named_object(cell.denoiser):
        denoiser = own_denoiser(cell.denoiser, _setup(cell, problem, z_star, seed))

    def gradient(z: Tensor, index: int) -> SDSResult:
        key, t = noise_and_timestep(cell, z, seed, index)
        return objective(z, denoiser, t, key, weighting=weighting)

    return gradient


def exact_gradient_of(cell: Cell, z_star: Tensor) -> Callable[[Tensor, Tensor], SDSResult]:
    """The cell's gradient in closed form as a function of (z, t), whatever its noise is."""
    denoiser = DegenerateDenoiser(z_star, _schedule(cell))
    weighting = weighting_named(cell.weighting)
    return lambda z, t: exact_sds_gradient(z, denoiser, t, weighting=weighting)


def _setup(cell: Cell, problem: Problem, z_star: Tensor, seed: int) -> CellSetup:
    return CellSetup(problem.image, z_star, _schedule(cell), seed)


def _schedule(cell: Cell) -> NoiseSchedule:
    pixels = cell.diffusion == "pixel"
    return NoiseSchedule.deepfloyd_if() if pixels else NoiseSchedule.stable_diffusion()


def noise_and_timestep(cell: Cell, z: Tensor, seed: int, index: int) -> tuple[NoiseKey, Tensor]:
    """The key of a step's ε, and its t, [b] int64."""
    objective = OBJECTIVES.get(cell.objective, OBJECTIVES["sds"])
    key = NoiseKey(seed, index, torch.arange(len(z), device=z.device))
    t = objective.timesteps(key, index / cell.optimization.steps)
    return (dataclasses.replace(key, step=0) if objective.noise == "fixed" else key), t


def initial_theta(cell: Cell, problem: Problem, seed: int) -> Parameterization:
    """θ before the first step, on the image's device and of its dtype."""
    image = problem.image
    batch, channels, height, width = image.shape
    shape = (batch, channels, height, width)
    if is_named_object(cell.parameterization):
        setup = _setup(cell, problem, problem.space(cell).encode(image).detach(), seed)
        return own_parameterization(
            cell.parameterization, f"cell {cell.name}: parameterization", setup, shape, image
        )
    if cell.parameterization == "dip":
        network = DeepImagePrior(shape, seed, cell.network, cell.width, cell.precision)
        return network.to(image.device, image.dtype)
    if cell.parameterization == "latent":
        assert problem.vae is not None
        return LatentGrid(_initial_latents(cell, problem.vae, image, seed), problem.vae.decode)
    match cell.initialization:
        case "noise":
            grid = PixelGrid.uniform_noise(shape, seed, image.dtype)
        case "grey":
            grid = PixelGrid.grey(shape, image.dtype)
        case _:
            grid = PixelGrid(image)
    return grid.to(image.device)


@torch.no_grad()
def _initial_latents(cell: Cell, vae: LatentSpace, image: Tensor, seed: int) -> Tensor:
    match cell.initialization:
        case "noise":
            sample = torch.arange(len(image), device=image.device)
            key = NoiseKey(seed, 0, sample, INITIALIZATION_STREAM)
            size = (vae.channels, *(extent // vae.factor for extent in image.shape[-2:]))
            return philox_normal(key, size, dtype=image.dtype, device=image.device)
        case "grey":
            return vae.encode(torch.full_like(image, 0.5))
        case _:
            return vae.encode(image)
