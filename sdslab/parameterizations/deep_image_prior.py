"""θ is the weights of an untrained hourglass network that maps fixed noise to the picture."""

from dataclasses import dataclass, replace
from functools import cache
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdslab.errors import UserError
from sdslab.kernels.validation import require_integer, require_shape
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.tensor_types import Maps


@dataclass(frozen=True)
class Architecture:
    """An hourglass with skip connections, as deep-image-prior's ``skip`` builds it."""

    width: int
    """Channels of the down and up convolutions."""
    skip_width: int
    """Channels of the skip convolutions."""
    input_channels: int
    """Channels of the fixed noise input."""
    input_noise: str
    """"normal" (standardised per channel) or "uniform" (U(0, 0.1))."""
    upsampling: str
    """"nearest" or "bilinear"."""
    scales: int = 5
    """Halvings of the resolution."""

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return 2**self.scales


# Paint-it's network (arXiv 2312.11360), which is the paper's DIP; and the network of the original
# Deep Image Prior (arXiv 1711.10925).
ARCHITECTURES = {
    "paint-it": Architecture(128, 128, 3, "normal", "nearest"),
    "original": Architecture(128, 4, 32, "uniform", "bilinear"),
}

PRECISIONS = ("float32", "bfloat16")


@final
class DeepImagePrior(Parameterization):
    """Paint-it's or the original Deep Image Prior network on its own fixed noise input.

    Batch normalisation always uses the statistics of the current output, as in both sources.

    Args:
        shape: (b, c, h, w) of the output; each sample has its own noise input. h and w must be
            divisible by 32.
        seed: seed of the weights and of the input.
        network: a name of ``ARCHITECTURES``.
        width: channels of the down, up and (paint-it) skip convolutions; None keeps the network's.
        precision: what the convolutions, but the last, multiply in, and keep their outputs in.

    Returns:
        Maps in (0, 1): the last layer is a sigmoid.

    Raises:
        UserError: unknown network or precision, or a size that is not divisible.

    Source: Ulyanov et al. 2018 (arXiv 1711.10925); Youwang et al. 2024 (arXiv 2312.11360).
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        seed: int,
        network: str = "paint-it",
        width: int | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        require_shape("shape (b, c, h, w)", shape, 4)
        require_integer("seed", seed)
        architecture = resolve_architecture(network, width)
        if precision not in PRECISIONS:
            raise UserError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
        batch, channels, height, breadth = shape
        check_size(height, breadth, architecture)
        with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' too
            self.network = nn.Sequential(
                *_scale(architecture, 0),
                nn.Conv2d(architecture.width, channels, 1),
                nn.Sigmoid(),
            )
            size = (batch, architecture.input_channels, height, breadth)
            if architecture.input_noise == "normal":
                noise = torch.randn(size)
                deviation, mean = torch.std_mean(noise, dim=(2, 3), keepdim=True)
                noise = (noise - mean) / deviation
            else:
                noise = 0.1 * torch.rand(size)
        self.register_buffer("noise", noise)
        self.noise: Tensor
        self._in_bfloat16 = precision == "bfloat16"
        # Otherwise each convolution on a CPU puts the channels of a pixel side by side first.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self) -> Maps:
        with torch.autocast(self.noise.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            features = self.network[:-2](self.noise)
        return self.network[-2:](features.to(self.noise.dtype))


def resolve_architecture(network: str, width: int | None) -> Architecture:
    """Looks ``network`` up and gives it ``width`` channels."""
    if network not in ARCHITECTURES:
        raise UserError(f"network must be one of {', '.join(ARCHITECTURES)}, got {network!r}")
    architecture = ARCHITECTURES[network]
    if width is None:
        return architecture
    if width < 1:
        raise UserError(f"width must be a positive number of channels, got {width}")
    skip_width = width if architecture.skip_width == architecture.width else architecture.skip_width
    return replace(architecture, width=width, skip_width=skip_width)


def check_size(height: int, width: int, architecture: Architecture) -> None:
    """Refuses a size that the hourglass cannot halve down and double up again."""
    multiple = architecture.size_multiple
    smallest = 2 * multiple  # reflection padding needs two pixels at the deepest scale
    if height % multiple or width % multiple or min(height, width) < smallest:
        nearest = max(smallest, round(height / multiple) * multiple)
        raise UserError(
            f"a deep image prior's height and width must be divisible by {multiple} and at least "
            f"{smallest}, got {height}×{width}; use {nearest}"
        )


def _convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride,
            padding,
            padding_mode="reflect" if padding else "zeros",
        ),
        nn.BatchNorm2d(channels_out, track_running_stats=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]


class _Join(nn.Module):
    """A skip path and a deeper one of half the size: upsampled, concatenated and convolved.

    Each value that is upsampled to the nearest is convolved, with the 3×3 kernel's taps that fall
    on it summed, at its own size: 16 products instead of 36. Batch statistics are the same there.
    """

    def __init__(
        self,
        skip: nn.Module,
        deeper: nn.Module,
        upsampling: nn.Upsample,
        norm: nn.BatchNorm2d,
        convolution: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.skip, self.deeper, self.upsampling = skip, deeper, upsampling
        self.norm, self.convolution = norm, convolution

    def forward(self, x: Tensor) -> Tensor:
        skip, deeper = self.skip(x), self.deeper(x)
        if self.upsampling.mode != "nearest":
            joined = torch.cat((skip, self.upsampling(deeper)), dim=1)
            return self.convolution(self.norm(joined))
        ours, theirs = slice(skip.shape[1]), slice(skip.shape[1], None)
        kernel, bias = self.convolution.weight, self.convolution.bias
        skip = F.pad(self._normalized(skip, ours), (1, 1, 1, 1), mode="reflect")
        fine = F.conv2d(skip, kernel[:, ours], bias)
        return fine.add_(convolve_upsampled(self._normalized(deeper, theirs), kernel[:, theirs]))

    def _normalized(self, x: Tensor, channels: slice) -> Tensor:
        norm = self.norm
        weight, bias = norm.weight[channels], norm.bias[channels]
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)


def convolve_upsampled(x: Tensor, kernel: Tensor) -> Tensor:
    """A reflection-padded 3×3 convolution of ``x`` upsampled ×2 to the nearest.

    Args:
        x: [b, c, h, w], not yet upsampled.
        kernel: [k, c, 3, 3].

    Returns:
        [b, k, 2h, 2w].
    """
    taps = kernel.transpose(0, 1).flatten(2) @ _spread(kernel.device, kernel.dtype)
    # The reflection of an upsampled picture at its border is the border's own value.
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(padded, taps.unflatten(2, (4, 4)), stride=2, padding=3)


@cache
def _spread(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[9, 16]: where a 3×3 kernel's taps reach from a value that has become 2×2; made only once."""
    # Row i: where the taps of an axis reach from a value whose two copies lie side by side.
    axis = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=dtype, device=device)
    return torch.kron(axis, axis)


def _scale(architecture: Architecture, index: int) -> list[nn.Module]:
    """One level of the hourglass, with all deeper ones inside it."""
    channels_in = architecture.width if index else architecture.input_channels
    width, skip_width = architecture.width, architecture.skip_width
    inner = _scale(architecture, index + 1) if index + 1 < architecture.scales else []
    deeper = nn.Sequential(
        *_convolution(channels_in, width, 3, stride=2), *_convolution(width, width, 3), *inner
    )
    skip = nn.Sequential(*_convolution(channels_in, skip_width, 1))
    norm = nn.BatchNorm2d(width + skip_width, track_running_stats=False)
    convolution, *after = _convolution(width + skip_width, width, 3)
    assert isinstance(convolution, nn.Conv2d)
    upsampling = nn.Upsample(scale_factor=2, mode=architecture.upsampling)
    return [
        _Join(skip, deeper, upsampling, norm, convolution),
        *after,
        *_convolution(width, width, 1),
    ]
