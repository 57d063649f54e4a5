"""The photographs that a surface is to look like: pictures, maps, masks and tags."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.meshes.material import ALBEDO, NORMAL, ROUGHNESS
from sdslab.pictures.image_io import Photo, load_picture
from sdslab.shell.named_inputs import tag_and_file

LARGEST_SIDE = 1024  # pixels of a photo's shorter side that are used
LARGEST_ASPECT = 2.0  # of what is used of a photo; its middle
SAME_ASPECT = 0.02  # relative difference of a photo's and its maps' aspects
OPAQUE = 0.95  # share of a photo's largest opacity from which a pixel belongs to what it shows
DIRECTIONAL_FROM = 0.4  # of `anisotropy`: bricks have .5, gravel, grass and tissue .3


@dataclass(frozen=True, eq=False)
class Exemplar:
    """A photograph and what is known of its material.

    Attributes:
        channels: [c, h, w] in [0, 1]; of the material channels that are guided. Outside the mask
            they are those inside, mirrored at its border.
        mask: [1, h, w] bool, what of it may be copied; None is all.
        tag: its name for guidance by tag, or None.
    """

    channels: Tensor
    mask: Tensor | None = None
    tag: str | None = None

    def at_height(self, height: int, multiple: int) -> tuple[Tensor, Tensor | None]:
        """Channels in [−1, 1] and mask at another size, both sides multiples of ``multiple``."""
        old_height, old_width = self.channels.shape[1:]
        sides = (height, height * old_width / old_height)
        size = [max(1, round(side / multiple)) * multiple for side in sides]
        resized = F.interpolate(self.channels[None], size=size, mode="bilinear", antialias=True)
        mask = None
        if self.mask is not None:
            share = F.interpolate(self.mask[None].float(), size=size, mode="area")
            mask = share[0] > 0.999
        return 2 * resized[0] - 1, mask


@dataclass(frozen=True, eq=False)
class ExemplarSet:
    """All photographs of a run; their channels are the same.

    Attributes:
        exemplars: at least one.
        guided: indices of the material's channels that they show, in order.
    """

    exemplars: tuple[Exemplar, ...]
    guided: tuple[int, ...]

    @property
    def mean(self) -> Tensor:
        """Mean of each guided channel, [c]."""
        means = []
        for exemplar in self.exemplars:
            pixels = exemplar.channels.flatten(1)
            if exemplar.mask is not None:
                pixels = pixels[:, exemplar.mask.flatten()]
            means.append(pixels.mean(1))
        return torch.stack(means).mean(0)

    @property
    def height(self) -> int:
        """Pixels of the lowest photograph: no finer than this are any."""
        return min(exemplar.channels.shape[1] for exemplar in self.exemplars)

    @property
    def tags(self) -> tuple[str | None, ...]:
        """One for each exemplar."""
        return tuple(exemplar.tag for exemplar in self.exemplars)

    @property
    def is_directional(self) -> bool:
        """Whether it matters which way up a photograph lies: bricks, but not gravel."""
        return any(
            anisotropy(e.channels[ALBEDO], e.mask) > DIRECTIONAL_FROM for e in self.exemplars
        )


def load_exemplars(
    sources: Sequence[str],
    *,
    normals: Sequence[str] = (),
    roughness: Sequence[str] = (),
    masks: Sequence[str] = (),
) -> ExemplarSet:
    """Reads photographs, their maps and masks.

    Args:
        sources: files, or names of scikit-image's photographs; ``TAG=FILE`` gives one a tag.
        normals: tangent-space normal maps (+Y up), as many as photos or none.
        roughness: roughness maps, as many as photos or none.
        masks: pictures, bright where the photo may be used, as many as photos or none. Without one
            a photo may be used where it is opaque.

    Raises:
        UserError: a picture cannot be read, or they do not fit each other.
    """
    for option, given in (
        ("normal", normals), ("roughness", roughness), ("mask", masks)
    ):  # fmt: skip
        if given and len(given) != len(sources):
            raise UserError(
                f"--exemplar-{option} must be given once for each --exemplar, {len(sources)} "
                f"times, or not at all, got {len(given)}"
            )
    guided = tuple(range(ALBEDO.start, ALBEDO.stop))
    guided += (ROUGHNESS,) if roughness else ()
    guided += tuple(range(NORMAL.start, NORMAL.stop)) if normals else ()
    exemplars = []
    for number, source in enumerate(sources):
        tag, file = tag_and_file(source)
        photo = _read(file)
        channels = [photo.channels]
        if roughness:
            channels.append(_beside(photo, roughness[number], file).channels.mean(0, keepdim=True))
        if normals:
            channels.append(_beside(photo, normals[number], file).channels)
        if masks:
            mask = _beside(photo, masks[number], file).on(0.0).mean(0, keepdim=True) > 0.5
            if not mask.any():
                raise UserError(
                    f"--exemplar-mask must be bright where the photo may be used, got "
                    f"{masks[number]!r}, which is dark all over; invert it"
                )
        else:
            mask = _opaque(photo, file)
        stacked = torch.cat(channels)
        if mask is not None:
            stacked = _continued(stacked, mask)
        exemplars.append(Exemplar(stacked, mask, tag))
    return ExemplarSet(tuple(exemplars), guided)


def anisotropy(picture: Tensor, mask: Tensor | None = None) -> float:
    """How much more a picture [c, h, w] changes along one direction than across it, in [0, 1].

    The coherence of the structure tensor of the whole picture, of shapes of about its twentieth.
    """
    side = min(64, *picture.shape[1:])
    size = (side, max(1, round(side * picture.shape[2] / picture.shape[1])))
    grey = picture.mean(0, keepdim=True)
    small = F.interpolate(grey[None], size=size, mode="bilinear", antialias=True)[0, 0]
    if side < 3:
        return 0.0
    # Central differences: neighbouring ones along both axes would share a pixel, and its noise.
    along_y = small[2:, 1:-1] - small[:-2, 1:-1]
    along_x = small[1:-1, 2:] - small[1:-1, :-2]
    if mask is not None:
        share = F.interpolate(mask[None].float(), size=size, mode="area")[0, 0]
        inside = share[1:-1, 1:-1] > 0.999
        along_y, along_x = along_y[inside], along_x[inside]
    xx, yy = float(along_x.square().sum()), float(along_y.square().sum())
    xy = float((along_x * along_y).sum())
    return math.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)


def _read(source: str, *, colors: bool = True) -> Photo:
    """The middle of a picture, of an aspect of at most ``LARGEST_ASPECT``."""
    photo = load_picture(source, LARGEST_SIDE, colors=colors)
    height, width = photo.channels.shape[1:]
    longest = max(1, round(LARGEST_ASPECT * min(height, width)))
    top, left = (max(0, side - longest) // 2 for side in (height, width))

    def middle(picture: Tensor) -> Tensor:
        return picture[:, top : top + longest, left : left + longest].contiguous()

    return Photo(
        middle(photo.channels), photo.opacity if photo.opacity is None else middle(photo.opacity)
    )


def _beside(photo: Photo, source: str, of: str) -> Photo:
    """A map of a photo, at the photo's size."""
    other = _read(source, colors=False)
    size = photo.channels.shape[1:]
    aspects = [picture.shape[2] / picture.shape[1] for picture in (photo.channels, other.channels)]
    if abs(aspects[0] / aspects[1] - 1) > SAME_ASPECT:
        raise UserError(
            f"maps and masks must show what their photo shows, got {source!r} with an aspect of "
            f"{aspects[1]:.3g} for {of!r} with {aspects[0]:.3g}; crop one of them"
        )

    def resized(picture: Tensor) -> Tensor:
        return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]

    opacity = None if other.opacity is None else resized(other.opacity)
    return Photo(resized(other.channels).clamp(0, 1), opacity)


def _opaque(photo: Photo, source: str) -> Tensor | None:
    """Where a photo shows something, [1, h, w] bool; None is everywhere.

    Raises:
        UserError: nowhere.
    """
    if photo.opacity is None:
        return None
    most = float(photo.opacity.max())
    if most < 0.5:
        raise UserError(
            f"--exemplar must show something, got {source!r}, which is transparent all over; "
            f"remove its alpha channel, or give --exemplar-mask"
        )
    mask = photo.opacity >= OPAQUE * most
    return None if mask.all() else mask


def _continued(channels: Tensor, mask: Tensor) -> Tensor:
    """[c, h, w] whose values outside a mask [1, h, w] are those inside, mirrored at its border."""
    from scipy.ndimage import distance_transform_edt

    inside = mask[0].numpy()
    nearest = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    here = np.indices(inside.shape)
    limits = np.array(inside.shape)[:, None, None] - 1
    across = np.clip(2 * nearest - here, 0, limits)
    row, column = torch.from_numpy(np.where(inside[across[0], across[1]], across, nearest)).long()
    return channels[:, row, column]


def turned(
    picture: Tensor, mask: Tensor | None, angle: float, guided: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Turns a picture counter-clockwise.

    Args:
        picture: [c, h, w] in [−1, 1].
        mask: [1, h, w] bool, or None for all of it.
        angle: in radians.
        guided: which material channels the c are; normals turn with the picture.

    Returns:
        The picture of the same size, mirrored where it has nothing to show, and a mask of where it
        has; None for all.
    """
    if angle == 0:
        return picture, mask
    height, width = picture.shape[1:]
    cosine, sine = math.cos(angle), math.sin(angle)
    # From a place of the result, y down, to where it is taken from; in units of half the sides.
    back = torch.tensor([[[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]])
    grid = F.affine_grid(back.to(picture), [1, 1, height, width], align_corners=False)
    result = F.grid_sample(
        picture[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )[0].clamp(-1, 1)
    known = torch.ones_like(picture[:1]) if mask is None else mask.to(picture)
    shown = F.grid_sample(known[None], grid, padding_mode="zeros", align_corners=False)[0] > 0.99
    if NORMAL.start in guided:
        first = guided.index(NORMAL.start)
        x, y = result[first].clone(), result[first + 1].clone()
        result[first], result[first + 1] = cosine * x - sine * y, sine * x + cosine * y
    return result, shown
