"""The posterior's mode made coherent: every place of a surface shows a place of a photograph.

Eq. 3 for a photograph's patches is a mean, and means blur: pebbles become worms. As the temperature
falls to 0 it picks one patch, and neighbours can be asked to agree on where theirs comes from. What
is shown are then the photograph's own pixels, as sharp as they are.

A place p has a source position S_p in a photograph and an angle θ_p. Its neighbour q, displaced by
δ in p's frame, agrees if S_q = S_p + R(θ_p) δ. Candidates are what the neighbours say, and the best
is the one whose patch of the photograph is most like the colours around p: coherent search
(Ashikhmin 2001) as the M step of texture optimisation (Kwatra et al. 2005) at σ → 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sdslab.exemplar_texturing.surface_points import Neighbours
from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count

Array = np.ndarray[Any, Any]

COMPONENTS = 31  # of patches, that nearest ones are sought by
BALANCE = 0.1  # of the median distance; how little a patch's own best match counts
SUBSETS = 4  # of points that move at once, in a pass
ANGLES = 8  # that patches are tried at first, where any will do
MOST_KEYS = 8192  # patches that nearest ones are sought among; neighbours find those between
QUERIES = 4096  # at once
SAME = 0.05  # pixels between a suggestion and what a point has, which are then the same
DISAGREEMENT = 5.0  # of a photograph's variance: what a neighbour's disagreement costs


def window() -> Array:
    """[33, 2] offsets in pixels: 3×3 at a pixel, 5×5 at two; the first eight are next to it."""
    fine = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1) if (x, y) != (0, 0)]
    wide = [(2 * x, 2 * y) for y in range(-2, 3) for x in range(-2, 3) if (x, y) != (0, 0)]
    return np.array([*fine, *wide], dtype=np.float32)


CANDIDATES = np.array(
    [number for number, (x, y) in enumerate(window()) if max(abs(x), abs(y)) <= 2], dtype=np.int32
)
NEXT = 8  # of the window's offsets lie beside the point


@dataclass(frozen=True, eq=False)
class Photographs:
    """Photographs of one height, side by side in one array.

    Attributes:
        pixels: [k, h, w, c] float32; to the right of a narrower one its last column goes on.
        usable: [k, h, w] bool, what may be copied.
        widths: [k] int64.
    """

    pixels: Array
    usable: Array
    widths: Array

    @classmethod
    def of(cls, pictures: list[tuple[torch.Tensor, torch.Tensor | None]]) -> "Photographs":
        """Photographs [c, h, w] of one height, each with its mask [1, h, w] or None for all."""
        widths = np.array([picture.shape[2] for picture, _ in pictures])
        widest = int(widths.max())
        pixels, usable = [], []
        for picture, mask in pictures:
            beyond = widest - picture.shape[2]
            shown = picture.permute(1, 2, 0).numpy()
            known = np.ones(shown.shape[:2], bool) if mask is None else mask[0].numpy()
            pixels.append(np.pad(shown, ((0, 0), (0, beyond), (0, 0)), mode="edge"))
            usable.append(np.pad(known, ((0, 0), (0, beyond))))
        return cls(np.stack(pixels).astype(np.float32), np.stack(usable), widths)

    def matched(self, colours: Array) -> Array:
        """Colours [n, c] with the photographs' mean and deviation: stage I has less contrast."""
        shown = self.pixels[self.usable]
        scale = shown.std(0) / np.maximum(colours.std(0), 1e-6)
        return (shown.mean(0) + (colours - colours.mean(0)) * scale).astype(np.float32)

    def at(self, place: Array, photo: Array) -> Array:
        """[n, c] of the pixels at places [n, 2] of photographs [n], bilinear."""
        result = np.empty((len(place), self.pixels.shape[3]), dtype=np.float32)
        calls = [
            (self.pixels, self.widths, place, photo, result, part.start, part.stop)
            for part in split(len(place), 4 * worker_count())
        ]
        run_all(_look_up, calls)
        return result

    def sharpened(self, amount: float) -> "Photographs":
        """Each pixel moved away from the mean of its 3×3 by a share of its distance."""
        pixels = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        mean = F.avg_pool2d(F.pad(pixels, (1,) * 4, mode="replicate"), 3, 1)
        sharp = (pixels + amount * (pixels - mean)).permute(0, 2, 3, 1).contiguous()
        return Photographs(sharp.numpy(), self.usable, self.widths)

    @property
    def variance(self) -> float:
        """Mean variance of a channel, of what may be copied."""
        return float(self.pixels[self.usable].var(0).mean())


@dataclass(frozen=True, eq=False)
class Sources:
    """Where each point's colour comes from.

    Attributes:
        place: [n, 2] float32 (x, y) in the photograph's pixels; a pixel's middle is an integer.
        angle: [n] float32, that its frame is turned by in the photograph, from right to down.
        photo: [n] int32.
    """

    place: Array
    angle: Array
    photo: Array

    def copy(self) -> "Sources":
        """The same in memory of its own."""
        return Sources(self.place.copy(), self.angle.copy(), self.photo.copy())

    def colours(self, photographs: Photographs) -> Array:
        """[n, c] of the photographs' pixels there, bilinear."""
        return photographs.at(self.place, self.photo)


def nearest_patches(
    colours: Array, near: Neighbours, photographs: Photographs, *, turned: bool
) -> Sources:
    """For each point the patch most like the colours around it, patches used about equally.

    Args:
        colours: [n, c] of the points.
        near: the points around each, at ``window()``'s offsets.
        photographs: whose patches they are.
        turned: try them at ``ANGLES`` angles, not only upright.
    """
    own = np.arange(len(colours), dtype=near.index.dtype)[:, None]
    around = np.where(near.index >= 0, near.index, own)
    queries = torch.from_numpy(colours[np.concatenate((own, around), 1)].reshape(len(own), -1))
    angles = [2 * np.pi * number / ANGLES for number in range(ANGLES if turned else 1)]
    photo, y, x = (torch.from_numpy(values) for values in np.nonzero(_inside(photographs)))
    if not len(photo):
        photo, y, x = (torch.from_numpy(values) for values in np.nonzero(photographs.usable))
    most = MOST_KEYS // len(angles)
    if len(photo) > most:
        some = torch.linspace(0, len(photo) - 1, most).round().long()
        photo, y, x = photo[some], y[some], x[some]
    places = torch.stack((x, y), 1).float()
    offsets = np.concatenate((np.zeros((1, 2), np.float32), window()))
    patches = []
    for angle in angles:
        around_it = places.numpy()[:, None] + rotated(offsets, np.array(angle, dtype=np.float32))
        shown = photographs.at(
            around_it.reshape(-1, 2).astype(np.float32), np.repeat(photo.numpy(), len(offsets))
        )
        patches.append(torch.from_numpy(shown).view(len(places), -1))
    keys = torch.cat(patches)
    mean = keys.mean(0)
    components = min(COMPONENTS, *keys.shape)
    covariance = (keys - mean).double().T @ (keys - mean).double()
    basis = torch.linalg.eigh(covariance)[1][:, -components:].float()
    keys, queries = (keys - mean) @ basis, (queries - mean) @ basis
    best = _balanced_nearest(queries, keys)
    of_place = best % len(places)
    return Sources(
        places[of_place].numpy().copy(),
        np.array(angles, dtype=np.float32)[(best // len(places)).numpy()],
        photo[of_place].numpy().astype(np.int32),
    )


def _inside(photographs: Photographs) -> Array:
    """Which pixels may be copied and have a patch's surroundings within their photograph."""
    height = photographs.pixels.shape[1]
    columns = np.arange(photographs.pixels.shape[2])
    rows = np.arange(height)
    margin = 2
    across = (columns >= margin) & (columns < photographs.widths[:, None] - margin)
    down = (rows >= margin) & (rows < height - margin)
    return photographs.usable & across[:, None] & down[None, :, None]


def _balanced_nearest(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[n] the key of the least squared distance, relative to how near any query comes to the key.

    Otherwise few patches, those near the mean, would answer nearly all.
    """
    norms = keys.square().sum(1)
    nearest = torch.full((len(keys),), torch.inf)

    def distances(chunk: torch.Tensor) -> torch.Tensor:
        products = torch.addmm(norms, chunk, keys.T, alpha=-2)
        return products.add_(chunk.square().sum(1, keepdim=True)).clamp_min_(0)

    for chunk in queries.split(QUERIES):
        nearest = torch.minimum(nearest, distances(chunk).amin(0))
    weight = 1 / (nearest + BALANCE * nearest.median() + 1e-12)
    return torch.cat([(distances(chunk) * weight).argmin(1) for chunk in queries.split(QUERIES)])


def settle(
    sources: Sources,
    colours: Array,
    near: Neighbours,
    photographs: Photographs,
    passes: int,
    *,
    turned: bool,
    seed: int = 0,
    follow: Callable[[int], None] = lambda _: None,
) -> Sources:
    """Lets neighbours agree: each point takes the best of what those around it suggest.

    Args:
        sources: to start from.
        colours: [n, c] that the first pass compares with; later ones take the sources' own.
        near: the points around each, at ``window()``'s offsets.
        photographs: what is copied.
        passes: over all points.
        turned: whether angles follow the frames, or stay as they are.
        seed: of the order in which points move.
        follow: is told after each pass how many are done.
    """
    sources = sources.copy()
    penalty = DISAGREEMENT * photographs.variance
    random = np.random.default_rng(seed)
    for number in range(passes):
        for subset in np.array_split(random.permutation(len(colours)), SUBSETS):
            before = sources.copy()  # what moves at once does not see each other's moves
            calls = [
                (subset[part.start : part.stop], before.place, before.angle, before.photo,
                 sources.place, sources.angle, sources.photo, colours, near.index,
                 near.displacement, near.turn, photographs.pixels, photographs.usable,
                 photographs.widths, CANDIDATES, penalty, turned)
                for part in split(len(subset), 4 * worker_count())
            ]  # fmt: skip
            run_all(_improve, calls)
            if number:
                colours = sources.colours(photographs)
        colours = sources.colours(photographs)
        follow(number + 1)
    return sources


def rotated(steps: Array, angle: Array) -> Array:
    """Steps [..., 2] of a frame (right, down) as those in the photograph, R(θ) δ."""
    cosine, sine, (x, y) = np.cos(angle), np.sin(angle), np.moveaxis(steps, -1, 0)
    return np.stack((cosine * x - sine * y, sine * x + cosine * y), -1)


def agreement(sources: Sources, near: Neighbours) -> float:
    """Share of neighbouring points whose sources lie as far apart as they do, to half a pixel."""
    index = near.index[:, :NEXT]
    step = near.displacement[:, :NEXT]
    turned = rotated(step, sources.angle[:, None])
    gap = sources.place[index] - sources.place[:, None] - turned
    same = sources.photo[index] == sources.photo[:, None]
    agree = (np.abs(gap).max(-1) < 0.5) & same
    return float(agree[index >= 0].mean())


@njit(nogil=True, cache=True)
def _look_up(pixels, widths, place, photo, result, first, last):
    for n in range(first, last):
        k = photo[n]
        x = min(max(place[n, 0], 0.0), widths[k] - 1.0)
        y = min(max(place[n, 1], 0.0), pixels.shape[1] - 1.0)
        x0, y0 = int(x), int(y)
        x1, y1 = min(x0 + 1, widths[k] - 1), min(y0 + 1, pixels.shape[1] - 1)
        fx, fy = np.float32(x - x0), np.float32(y - y0)
        for c in range(pixels.shape[3]):
            above = pixels[k, y0, x0, c] + fx * (pixels[k, y0, x1, c] - pixels[k, y0, x0, c])
            below = pixels[k, y1, x0, c] + fx * (pixels[k, y1, x1, c] - pixels[k, y1, x0, c])
            result[n, c] = above + fy * (below - above)


@njit(nogil=True, cache=True)
def _improve(
    subset, place, angle, photo, new_place, new_angle, new_photo, colours, index, displacement,
    turn, pixels, usable, widths, candidates, penalty, turned,
):  # fmt: skip
    channels = pixels.shape[3]
    for entry in range(len(subset)):
        n = subset[entry]
        best = np.inf
        for number in range(-1, len(candidates)):
            if number < 0:  # what it has
                x, y, tilt, k = place[n, 0], place[n, 1], angle[n], photo[n]
            else:
                q = index[n, candidates[number]]
                if q < 0:
                    continue
                k = photo[q]
                tilt = angle[q] - turn[n, candidates[number]] if turned else angle[q]
                a, b = displacement[n, candidates[number]]
                x = place[q, 0] - (np.cos(tilt) * a - np.sin(tilt) * b)
                y = place[q, 1] - (np.sin(tilt) * a + np.cos(tilt) * b)
                column, row = int(np.rint(x)), int(np.rint(y))
                if column < 0 or row < 0 or column >= widths[k] or row >= pixels.shape[1]:
                    continue
                if not usable[k, row, column]:
                    continue
                if (
                    k == photo[n]
                    and abs(x - place[n, 0]) + abs(y - place[n, 1]) < SAME
                    and np.hypot(np.sin(tilt - angle[n]), 1 - np.cos(tilt - angle[n])) < SAME / 4
                ):
                    continue
            cosine, sine = np.cos(tilt), np.sin(tilt)
            cost = 0.0
            for j in range(index.shape[1]):
                q = index[n, j]
                if q < 0 or cost >= best:
                    continue
                a, b = displacement[n, j]
                sx, sy = x + cosine * a - sine * b, y + sine * a + cosine * b
                if j < NEXT and (
                    photo[q] != k or abs(place[q, 0] - sx) > 0.5 or abs(place[q, 1] - sy) > 0.5
                ):
                    cost += penalty
                sx = min(max(sx, 0.0), widths[k] - 1.0)
                sy = min(max(sy, 0.0), pixels.shape[1] - 1.0)
                x0, y0 = int(sx), int(sy)
                x1, y1 = min(x0 + 1, widths[k] - 1), min(y0 + 1, pixels.shape[1] - 1)
                fx, fy = sx - x0, sy - y0
                error = 0.0
                for c in range(channels):
                    above = pixels[k, y0, x0, c] * (1 - fx) + pixels[k, y0, x1, c] * fx
                    below = pixels[k, y1, x0, c] * (1 - fx) + pixels[k, y1, x1, c] * fx
                    error += (above * (1 - fy) + below * fy - colours[q, c]) ** 2
                cost += error / channels
            if cost < best:
                best = cost
                new_place[n, 0], new_place[n, 1], new_angle[n], new_photo[n] = x, y, tilt, k
