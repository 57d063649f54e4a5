"""What no view has looked at takes the colours of the nearest place that one has."""

import torch
from torch import Tensor

from sdslab.meshes.mesh import Mesh
from sdslab.rendering.render_backend import make_backend
from sdslab.rendering.texel_coverage import rasterize_texels


def fill_unseen(maps: Tensor, seen: Tensor, mesh: Mesh) -> Tensor:
    """Copies to each covered texel that was not seen the nearest seen one, on the surface in 3-D.

    Args:
        maps: [h, w, c], on the CPU.
        seen: [h, w] bool.
        mesh: whose texture it is.

    Returns:
        A new [h, w, c].
    """
    from scipy.spatial import KDTree

    height, width = maps.shape[:2]
    corners = mesh.render_positions[mesh.faces.long()]
    # The rasteriser takes two attributes as texture coordinates: give it those before the place.
    attributes = torch.cat((mesh.uv[mesh.faces.long()], corners), dim=-1)
    backend = make_backend("cpu", torch.device("cpu"))
    texels = rasterize_texels(mesh, (height, width), backend, attributes)
    place = texels.attributes[:, 2:]
    known = seen.view(-1)[texels.pixel]
    result = maps.clone().view(height * width, -1)
    if known.all() or not known.any():
        return result.view_as(maps)
    _, nearest = KDTree(place[known].numpy()).query(place[~known].numpy())
    result[texels.pixel[~known]] = result[texels.pixel[known][torch.from_numpy(nearest)]]
    return result.view_as(maps)
