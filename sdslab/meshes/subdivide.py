"""More faces on the same surface: for measuring what a number of faces costs."""

import dataclasses

import torch

from sdslab.meshes.mesh import Mesh


def subdivide(mesh: Mesh) -> Mesh:
    """Splits every face into four at the middles of its edges.

    Attributes of new vertices are means of their edge's ends; parts keep their faces.
    """
    corners = mesh.faces.long()
    edges = torch.stack((corners, corners.roll(-1, 1)), -1).sort(-1).values  # [f, 3, 2]
    unique, index = edges.flatten(0, 1).unique(dim=0, return_inverse=True)
    middle = len(mesh.positions) + index.view(-1, 3)  # of edges 01, 12, 20
    (a, b, c), (ab, bc, ca) = corners.unbind(1), middle.unbind(1)
    faces = torch.stack((a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca), 1).view(-1, 3)

    def extended(values: torch.Tensor) -> torch.Tensor:
        return torch.cat((values, values[unique].mean(1)))

    normals = torch.nn.functional.normalize(extended(mesh.normals), dim=1)
    tangents = extended(mesh.tangents)
    direction = torch.nn.functional.normalize(tangents[:, :3], dim=1)
    handedness = torch.where(tangents[:, 3:] < 0, -1.0, 1.0)
    return dataclasses.replace(
        mesh,
        positions=extended(mesh.positions),
        faces=faces.int(),
        uv=extended(mesh.uv),
        normals=normals,
        tangents=torch.cat((direction, handedness), 1),
        parts=tuple(
            dataclasses.replace(part, faces=range(4 * part.faces.start, 4 * part.faces.stop))
            for part in mesh.parts
        ),
        source_vertex=torch.cat((mesh.source_vertex, mesh.source_vertex[unique[:, 0]])),
        source_material=None,
    )
