"""The renderer's backend for any CPU: numba kernels on a pool of threads."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from sdslab.machine import run_all, split, worker_count
from sdslab.rendering.cpu_rasterizer import interpolate, visible_faces
from sdslab.rendering.cpu_texture import sample_texture_cpu
from sdslab.rendering.render_backend import Fragments, RenderBackend


@final
class CpuBackend(RenderBackend):
    """float32 in and out; results do not depend on the number of threads."""

    def visibility(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Tensor:
        height, width = resolution
        ids = torch.zeros(len(clip), height, width, dtype=torch.int32)
        bands = split(height, -(-worker_count() // len(clip)))
        run_all(
            visible_faces,
            [
                (clip_of_view, faces.numpy(), band.start, band.stop, ids_of_view)
                for clip_of_view, ids_of_view in zip(
                    clip.contiguous().numpy(), ids.numpy(), strict=True
                )
                for band in bands
            ],
        )
        return ids

    def resolve(self, clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
        views = ids.numpy()
        ends = np.cumsum(np.count_nonzero(views, axis=(1, 2)))
        n, k = int(ends[-1]), attributes.shape[1]
        fragments = Fragments(
            shape=(len(ids), ids.shape[1], ids.shape[2]),
            pixel=torch.empty(n, dtype=torch.int64),
            face=torch.empty(n, dtype=torch.int64),
            front_facing=torch.empty(n, dtype=torch.bool),
            barycentrics=torch.empty(n, 3),
            depth=torch.empty(n),
            attributes=torch.empty(n, k),
            uv_derivatives=torch.empty(n, 4),
        )
        outputs = tuple(
            tensor.numpy()
            for tensor in (
                fragments.pixel, fragments.face, fragments.front_facing, fragments.barycentrics,
                fragments.depth, fragments.attributes, fragments.uv_derivatives,
            )
        )  # fmt: skip
        shared = (faces.numpy(), attributes.contiguous().numpy())
        run_all(
            interpolate,
            [
                (clip_of_view, shared[0], views[view], shared[1], view, offset, *outputs)
                for view, (clip_of_view, offset) in enumerate(
                    zip(clip.contiguous().numpy(), [0, *ends[:-1]], strict=True)
                )
            ],
        )
        return fragments

    def sample_texture(self, maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
        return sample_texture_cpu(maps, uv, uv_derivatives)
