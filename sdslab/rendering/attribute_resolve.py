"""Attribute interpolation in plain torch, on any device and in any float dtype."""

from torch import Tensor, stack

from sdslab.rendering.render_backend import Fragments


def resolve(clip: Tensor, faces: Tensor, ids: Tensor, attributes: Tensor) -> Fragments:
    """Interpolates vertex attributes at the covered pixels: the reference of the CPU's kernel.

    With corners p_k = (x, y, w) and the pixel centre f = (f_x, f_y, 1), the edge functions
    a_k = f · (p_i × p_j) are the perspective-correct barycentrics up to their sum; they are affine
    in f, which gives the derivatives: ∂t/∂f_x = (Σ ∂a_k/∂f_x t_k − t Σ ∂a_k/∂f_x) / Σ a_k.

    Args:
        clip: [b, v, 4].
        faces: [f, 3].
        ids: [b, h, w] from `RenderBackend.visibility`.
        attributes: [v, k], texture coordinates first.

    Source: Olano and Greer 1997, "Triangle scan conversion using 2D homogeneous coordinates".
    """
    batch, height, width = ids.shape
    pixel = ids.flatten().nonzero()[:, 0]
    face = ids.flatten()[pixel].long() - 1
    sample = pixel // (height * width)
    row, column = pixel % (height * width) // width, pixel % width
    corners = faces.long()[face]  # [n, 3]
    clip_corners = clip[sample[:, None], corners]  # [n, 3, 4]
    x, y, z, w = clip_corners.unbind(-1)
    fx = ((2 * column + 1).to(clip) / width - 1)[:, None]
    fy = (1 - (2 * row + 1).to(clip) / height)[:, None]
    # Corners shifted by f w: the same edge functions with less cancellation.
    a = _edge_functions(x - fx * w, y - fy * w)  # [n, 3]
    total = a.sum(-1, keepdim=True)
    barycentrics = a / total
    determinant = (a * w).sum(-1)
    corner_attributes = attributes[corners]  # [n, 3, k]
    values = (barycentrics[..., None] * corner_attributes).sum(1)
    uv, uv_corners = values[:, :2], corner_attributes[..., :2]
    gradient_x, gradient_y = _edge_functions(y, w), _edge_functions(w, x)  # ∂a/∂f_x, ∂a/∂f_y
    by_x = (gradient_x[..., None] * (uv_corners - uv[:, None])).sum(1) / total * (2 / width)
    by_y = (gradient_y[..., None] * (uv_corners - uv[:, None])).sum(1) / total * (-2 / height)
    return Fragments(
        shape=(batch, height, width),
        pixel=pixel,
        face=face,
        front_facing=determinant > 0,
        barycentrics=barycentrics,
        depth=(a * z).sum(-1) / determinant,
        attributes=values,
        uv_derivatives=stack((by_x, by_y), -1).flatten(1),
    )


def _edge_functions(p: Tensor, q: Tensor) -> Tensor:
    """p_i q_j − q_i p_j for the corner pairs (1, 2), (2, 0), (0, 1) of [n, 3] coordinates."""
    p_next, q_next = p.roll(-1, -1), q.roll(-1, -1)
    p_last, q_last = p.roll(-2, -1), q.roll(-2, -1)
    return p_next * q_last - q_next * p_last
