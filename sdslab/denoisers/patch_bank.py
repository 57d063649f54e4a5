"""The patches of a photograph, as few numbers each: what an exemplar denoiser knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

CONTEXT_PATCH = 5  # pixels of the low-resolution picture
CONTEXT_RANK = 16


@dataclass(frozen=True, eq=False)
class PatchBank:
    """k patches of P × P pixels in r principal coordinates.

    Attributes:
        mean: [c, P, P], of all patches.
        basis: [r, c, P, P], orthonormal.
        keys: [k, r], patch − mean in coordinates of the basis.
        tags: [k] int64, from which exemplar a patch comes.
        factor: of the low-resolution pictures, for super-resolution; 1 without.
        context_mean: [c, 5, 5], like ``mean``, of low-resolution patches.
        context_basis: [m, c, 5, 5].
        key_context: [k, m], of the low-resolution patch around each key; None without.
    """

    mean: Tensor
    basis: Tensor
    keys: Tensor
    tags: Tensor
    factor: int = 1
    context_mean: Tensor | None = None
    context_basis: Tensor | None = None
    key_context: Tensor | None = None

    @property
    def patch(self) -> int:
        """P."""
        return self.mean.shape[-1]

    @property
    def channels(self) -> int:
        """How many channels, c."""
        return self.mean.shape[0]

    @classmethod
    def of(
        cls,
        exemplars: Sequence[Tensor],
        patch: int = 7,
        rank: int = 31,
        count: int = 4096,
        factor: int = 1,
    ) -> "PatchBank":
        """Takes patches from photographs.

        Args:
            exemplars: [c, h, w] each, in the diffusion space; sides of at least ``patch``.
            patch: P.
            rank: r at most; c P² is exact, and so is the number of patches.
            count: k at most. Patches are taken evenly along their first coordinate, both ends
                included, so that rare ones (the brightest, the darkest) are there.
            factor: super-resolution from pictures that are smaller by it; 1 without.

        Returns:
            The patches in the precision of the first photograph.

        Raises:
            ValueError: a photograph is smaller than a patch.
        """
        for image in exemplars:
            if min(image.shape[-2:]) < patch:
                raise ValueError(
                    f"an exemplar's sides must be at least the patch's {patch} pixels, got "
                    f"{list(image.shape[-2:])}; enlarge it or take smaller patches"
                )
        dtype = exemplars[0].dtype
        patches = [F.unfold(image[None].double(), patch)[0].T for image in exemplars]
        tags = torch.cat([torch.full((len(p),), tag) for tag, p in enumerate(patches)])
        rows = torch.cat(patches)
        mean, basis, coordinates = _principal(rows, rank)
        order = coordinates[:, 0].argsort(stable=True)
        if len(order) > count:
            even = torch.linspace(0, len(order) - 1, count, dtype=torch.float64)
            order = order[even.round().long()]
        shape = (exemplars[0].shape[0], patch, patch)
        bank = cls(
            mean.view(shape).to(dtype),
            basis.view(-1, *shape).to(dtype),
            coordinates[order].to(dtype),
            tags[order],
        )
        if factor == 1:
            return bank
        contexts = torch.cat(
            [_context_rows(low_pass(image[None], factor), patch, factor) for image in exemplars]
        )
        mean, basis, coordinates = _principal(contexts.double(), CONTEXT_RANK)
        shape = (exemplars[0].shape[0], CONTEXT_PATCH, CONTEXT_PATCH)
        return cls(
            bank.mean,
            bank.basis,
            bank.keys,
            bank.tags,
            factor,
            mean.view(shape).to(dtype),
            basis.view(-1, *shape).to(dtype),
            coordinates[order].to(dtype),
        )

    def to(self, device: torch.device | str) -> "PatchBank":
        """The same patches on another device."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def project(self, x: Tensor, stride: int) -> Tensor:
        """Every ``stride``-th patch of pictures [b, c, h, w] in coordinates, [b, r, rows, columns].

        The mean is not subtracted.
        """
        return F.conv2d(x, self.basis, stride=stride)

    def project_mean(self) -> Tensor:
        """The mean patch in coordinates, [r]."""
        return (self.basis * self.mean).flatten(1).sum(1)

    def context(self, low_resolution: Tensor, stride: int) -> Tensor:
        """Features of the surroundings of each of `project`'s patches, [b, m, rows, columns].

        Args:
            low_resolution: [b, c, h, w], of the pictures' own size.
            stride: as for `project`.
        """
        assert self.context_mean is not None
        assert self.context_basis is not None
        padded = _pad_for_context(low_resolution, self.patch, self.factor)
        features = F.conv2d(padded, self.context_basis, stride=stride, dilation=self.factor)
        return features - (self.context_basis * self.context_mean).flatten(1).sum(1).view(-1, 1, 1)

    def overlap(self, coordinates: Tensor, stride: int) -> Tensor:
        """Undoes `project`: patches [b, r, rows, columns] averaged where they overlap."""
        ones = torch.ones_like(coordinates[:, :1])
        mean = F.conv_transpose2d(ones, self.mean[None], stride=stride)
        summed = F.conv_transpose2d(coordinates, self.basis, stride=stride) + mean
        count = F.conv_transpose2d(ones[:1], torch.ones_like(self.mean[:1])[None], stride=stride)
        return summed / count


def low_pass(x: Tensor, factor: int) -> Tensor:
    """Pictures [b, c, h, w] made smaller by a factor and large again, both bilinear."""
    size = [max(1, side // factor) for side in x.shape[-2:]]
    small = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def _principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [d], orthonormal basis [r, d] and coordinates [n, r] of rows [n, d], in float64."""
    mean = rows.mean(0)
    centred = rows - mean
    if len(rows) < rows.shape[1]:
        basis = torch.linalg.svd(centred, full_matrices=False).Vh[:rank]
    else:
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors  # ascending
        basis = vectors.T.flip(0)[:rank].contiguous()
    # LAPACK leaves the signs open; which keys are taken must not hang on it.
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return mean, basis, centred @ basis.T


def _pad_for_context(low_resolution: Tensor, patch: int, factor: int) -> Tensor:
    """So that a dilated 5 × 5 window around each patch's middle lies within the picture."""
    before = CONTEXT_PATCH // 2 * factor - patch // 2
    after = CONTEXT_PATCH // 2 * factor - (patch - 1) // 2  # an even patch's middle is its later
    mode = "replicate" if after > 0 else "constant"
    return F.pad(low_resolution, (before, after) * 2, mode=mode)


def _context_rows(low_resolution: Tensor, patch: int, factor: int) -> Tensor:
    padded = _pad_for_context(low_resolution, patch, factor)
    return F.unfold(padded, CONTEXT_PATCH, dilation=factor)[0].T
