"""The patches of a photograph, as few numbers each: what an exemplar denoiser knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.tensor_types import map_tensors

CONTEXT_PATCH = 5  # pixels of the low-resolution picture
CONTEXT_RANK = 16
CANDIDATES = 4  # times as many patches are looked at as are kept of a pose


@dataclass(frozen=True, eq=False)
class PatchBank:
    """k patches of P × P pixels in r principal coordinates.

    Attributes:
        mean: [c, P, P], of all patches.
        basis: [r, c, P, P], orthonormal.
        keys: [k, r], patch − mean in coordinates of the basis.
        tags: [k] int64, from which exemplar a patch comes.
        factor: reduction of the low-resolution pictures, for super-resolution; 1 without.
        context_mean: [c, 5, 5], like ``mean``, of low-resolution patches.
        context_basis: [m, c, 5, 5].
        key_context: [k, m], of the low-resolution patch around each key; None without.
        poses: [k] int64, how far the exemplar was turned that a patch comes from, in steps of
            2π / ``pose_count``, counter-clockwise.
        pose_count: 1 where no exemplar was turned.
    """

    mean: Tensor
    basis: Tensor
    keys: Tensor
    tags: Tensor
    factor: int = 1
    context_mean: Tensor | None = None
    context_basis: Tensor | None = None
    key_context: Tensor | None = None
    poses: Tensor | None = None
    pose_count: int = 1

    @property
    def patch(self) -> int:
        """Side of a patch in pixels, P."""
        return self.mean.shape[-1]

    @property
    def channels(self) -> int:
        """Number of channels, c."""
        return self.mean.shape[0]

    @classmethod
    def of(
        cls,
        exemplars: Sequence[Tensor],
        patch: int = 7,
        rank: int = 31,
        count: int = 4096,
        factor: int = 1,
        *,
        masks: Sequence[Tensor | None] | None = None,
        tags: Sequence[int] | None = None,
        poses: Sequence[int] | None = None,
        pose_count: int = 1,
    ) -> "PatchBank":
        """Takes patches from photographs.

        Args:
            exemplars: [c, h, w] each, in the diffusion space; sides of at least ``patch``.
            patch: P.
            rank: r at most; c P² is exact, and so is the number of patches.
            count: k at most, of each pose. Patches are taken evenly along their first coordinate,
                both ends included, so that rare ones (the brightest, the darkest) are there.
            factor: super-resolution from pictures that are smaller by it; 1 without.
            masks: [1, h, w] bool each or None; only patches wholly inside are keys.
            tags: a tag for each exemplar; its place in the list where None.
            poses: a pose for each exemplar, in [0, ``pose_count``); all 0 where None.
            pose_count: how many poses there are.

        Returns:
            The patches in the precision of the first photograph.

        Raises:
            ValueError: a photograph is smaller than a patch, or masks leave none of some pose.
        """
        for image in exemplars:
            if min(image.shape[-2:]) < patch:
                raise ValueError(
                    f"an exemplar's sides must be at least the patch's {patch} pixels, got "
                    f"{list(image.shape[-2:])}; enlarge it or take smaller patches"
                )
        dtype = exemplars[0].dtype
        inside = [
            _inside(mask, image, patch, CANDIDATES * count)
            for image, mask in zip(exemplars, masks or [None] * len(exemplars), strict=True)
        ]
        patches = [
            F.unfold(image[None], patch)[0].T[kept].double()
            for image, kept in zip(exemplars, inside, strict=True)
        ]
        tag_of, pose_of = (
            torch.cat([torch.full((len(p),), n) for n, p in zip(numbers, patches, strict=True)])
            for numbers in (
                tags if tags is not None else range(len(exemplars)),
                poses if poses is not None else [0] * len(exemplars),
            )
        )
        empty = [pose for pose in range(pose_count) if not (pose_of == pose).any()]
        if empty:
            raise ValueError(
                f"masks must leave whole patches of {patch}×{patch} pixels in every pose, got none "
                f"in pose {empty[0]}; enlarge the mask or the photograph, or take smaller patches"
            )
        rows = torch.cat(patches)
        mean, basis, coordinates = _principal(rows, rank)
        order = torch.cat(
            [_evenly(coordinates[:, 0], pose_of == pose, count) for pose in range(pose_count)]
        )
        shape = (exemplars[0].shape[0], patch, patch)
        bank = cls(
            mean.view(shape).to(dtype),
            basis.view(-1, *shape).to(dtype),
            coordinates[order].to(dtype),
            tag_of[order],
            poses=pose_of[order] if pose_count > 1 else None,
            pose_count=pose_count,
        )
        if factor == 1:
            return bank
        contexts = torch.cat(
            [
                _context_rows(low_pass(image[None], factor), patch, factor)[kept]
                for image, kept in zip(exemplars, inside, strict=True)
            ]
        )
        mean, basis, coordinates = _principal(contexts.double(), CONTEXT_RANK)
        shape = (exemplars[0].shape[0], CONTEXT_PATCH, CONTEXT_PATCH)
        return replace(
            bank,
            factor=factor,
            context_mean=mean.view(shape).to(dtype),
            context_basis=basis.view(-1, *shape).to(dtype),
            key_context=coordinates[order].to(dtype),
        )

    def to(self, device: torch.device | str) -> "PatchBank":
        """The same patches on another device."""
        return map_tensors(self, lambda x: x.to(device))

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


def _inside(mask: Tensor | None, image: Tensor, patch: int, most: int) -> Tensor:
    """Numbers of the patches that lie wholly inside a mask, evenly thinned out to ``most``."""
    rows, columns = (side - patch + 1 for side in image.shape[-2:])
    numbers = torch.arange(rows * columns, device=image.device)
    if mask is not None:
        outside = F.max_pool2d((~mask)[None].float(), patch, stride=1)
        numbers = numbers[outside.flatten() == 0]
    if len(numbers) > most:
        even = torch.linspace(0, len(numbers) - 1, most, dtype=torch.float64)
        numbers = numbers[even.round().long().to(numbers.device)]
    return numbers


def _evenly(coordinate: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Takes at most ``count`` numbers of chosen rows, evenly along their order by a coordinate."""
    numbers = chosen.nonzero()[:, 0]
    order = numbers[coordinate[numbers].argsort(stable=True)]
    if len(order) > count:
        even = torch.linspace(0, len(order) - 1, count, dtype=torch.float64)
        order = order[even.round().long().to(order.device)]
    return order


def _principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [d], orthonormal basis [r, d] and coordinates [n, r] of rows [n, d], in float64."""
    mean = rows.mean(0)
    centred = rows - mean
    if len(rows) < rows.shape[1]:
        basis = torch.linalg.svd(centred, full_matrices=False).Vh[:rank]
    else:
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors  # ascending
        basis = vectors.T.flip(0)[:rank].contiguous()
    # LAPACK leaves the signs open; which keys are taken must not depend on it.
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return mean, basis, centred @ basis.T


def _pad_for_context(low_resolution: Tensor, patch: int, factor: int) -> Tensor:
    """Pads so that a dilated 5 × 5 window around each patch's middle lies within the picture."""
    before = CONTEXT_PATCH // 2 * factor - patch // 2
    after = CONTEXT_PATCH // 2 * factor - (patch - 1) // 2  # an even patch's middle is its later
    mode = "replicate" if after > 0 else "constant"
    return F.pad(low_resolution, (before, after) * 2, mode=mode)


def _context_rows(low_resolution: Tensor, patch: int, factor: int) -> Tensor:
    padded = _pad_for_context(low_resolution, patch, factor)
    return F.unfold(padded, CONTEXT_PATCH, dilation=factor)[0].T
