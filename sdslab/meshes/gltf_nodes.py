"""The nodes of a glTF scene: which meshes it shows, and where."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sdslab.meshes.gltf_document import GltfDocument, JsonObject
from sdslab.meshes.mesh_file import MOST_FACES, Floats, MeshFileError


@dataclass(frozen=True, eq=False)
class MeshInstance:
    """A mesh under a node.

    Attributes:
        name: the node's or the mesh's.
        mesh: its entry.
        matrices: [n, 4, 4] from its coordinates to the world's; several where it is instanced.
        weights: of its morph targets.
    """

    name: str
    mesh: JsonObject
    matrices: Floats
    weights: tuple[float, ...]


def mesh_instances(document: GltfDocument, lost: list[str]) -> Iterator[MeshInstance]:
    """Every mesh in the scene with its node's name and its transforms, depth first."""
    nodes = document.lists["nodes"]
    if not nodes:
        for mesh in document.lists["meshes"]:
            yield MeshInstance(mesh.text("name"), mesh, np.eye(4)[None], _weights(mesh))
        return
    children = [node.wholes("children") for node in nodes]
    for node, own in zip(nodes, children, strict=True):
        for child in own:
            document.entry("nodes", child, node.at("children"))
    waiting = [(root, np.eye(4)) for root in reversed(_roots(document, children))]
    visited: set[int] = set()
    while waiting:
        index, parent = waiting.pop()
        node = nodes[index]
        if index in visited:
            document.notes.append(f"{node.path} has two parents: it is placed by the first")
            continue
        visited.add(index)
        matrix = parent @ _local_matrix(node)
        waiting += [(child, matrix) for child in reversed(children[index])]
        if "mesh" in node:
            mesh = document.named(node, "mesh", "meshes")
            name = node.text("name") or mesh.text("name")
            # glTF: the transform of a skinned mesh's own node is to be ignored
            place = np.eye(4) if "skin" in node else matrix
            matrices = place @ _gpu_instances(document, node, lost)
            weights = _weights(node if "weights" in node else mesh)
            yield MeshInstance(name, mesh, matrices, weights)


def _weights(user: JsonObject) -> tuple[float, ...]:
    return user.numbers("weights", (0.0,) * len(user.array("weights")))


def _roots(document: GltfDocument, children: list[list[int]]) -> list[int]:
    """The scene's roots, without those that are children of others too."""
    scenes = document.lists["scenes"]
    if not scenes:
        below = {child for own in children for child in own}
        return [index for index in range(len(children)) if index not in below]
    index = document.root.whole("scene", 0)
    scene = document.entry("scenes", index, "scene")
    roots = list(dict.fromkeys(scene.wholes("nodes")))
    for root in roots:
        document.entry("nodes", root, scene.at("nodes"))
    reached: set[int] = set()
    waiting = [child for root in roots for child in children[root]]
    while waiting:
        child = waiting.pop()
        if child not in reached:
            reached.add(child)
            waiting += children[child]
    inner = [root for root in roots if root in reached]
    document.notes += [f"nodes[{k}] is a root and a child: it is placed as a child" for k in inner]
    if inner and len(inner) == len(roots):
        raise MeshFileError(f"nodes[{inner[0]}] is its own ancestor")
    return [root for root in roots if root not in reached]


def _gpu_instances(document: GltfDocument, node: JsonObject, lost: list[str]) -> Floats:
    """[n, 4, 4] of EXT_mesh_gpu_instancing; one identity without."""
    extension = node.extension("EXT_mesh_gpu_instancing")
    if extension is None:
        return np.eye(4)[None]
    attributes = extension.object("attributes")
    read = {
        key: document.floats(attributes, key, width)
        for key, width in (("TRANSLATION", 3), ("ROTATION", 4), ("SCALE", 3))
        if key in attributes
    }
    if not read:
        lost.append(f"EXT_mesh_gpu_instancing of {node.path}, which has no instances")
        return np.eye(4)[None]
    counts = {len(values) for values in read.values()}
    if len(counts) > 1 or not 0 < min(counts) <= MOST_FACES:
        raise MeshFileError(f"{attributes.path} must name accessors of one length, above zero")
    document.notes.append(f"{max(counts):,} instances of {node.text('name') or node.path!r}")
    (n,) = counts
    return _matrices(
        read.get("TRANSLATION", np.zeros((n, 3))),
        read.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (n, 1))),
        read.get("SCALE", np.ones((n, 3))),
    )


def _local_matrix(node: JsonObject) -> Floats:
    """[4, 4]; glTF stores matrices column by column."""
    if "matrix" in node:
        return np.array(node.numbers("matrix", (0.0,) * 16)).reshape(4, 4).T
    translation = node.numbers("translation", (0.0,) * 3)
    rotation = node.numbers("rotation", (0.0, 0.0, 0.0, 1.0))
    scale = node.numbers("scale", (1.0,) * 3)
    return _matrices(*(np.array([values]) for values in (translation, rotation, scale)))[0]


def _matrices(translation: Floats, rotation: Floats, scale: Floats) -> Floats:
    """[n, 4, 4] of [n, 3], quaternions [n, 4] (x, y, z, w) and [n, 3]; scale comes first."""
    x, y, z, w = rotation.T
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrices = np.tile(np.eye(4), (len(translation), 1, 1))
    matrices[:, :3, :3] = turn.transpose(2, 0, 1) * scale[:, None]
    matrices[:, :3, 3] = translation
    return matrices
