"""glTF 2.0 and GLB: every node's triangles in the world's coordinates, materials, no animation."""

import re
from dataclasses import dataclass

import numpy as np

from sdslab.meshes.gltf_document import MOST_VERTICES, GltfDocument, JsonObject
from sdslab.meshes.gltf_scene import GltfMaterials, MeshInstance, inventory, mesh_instances
from sdslab.meshes.mesh_file import (
    MOST_FACES,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    TexturePlace,
    strips,
)
from sdslab.meshes.mesh_folder import MeshFolder

# Extensions of buffers, accessors, meshes and primitives that leave the triangles as they are.
HARMLESS = re.compile(
    r"KHR_(materials_|xmp|mesh_quantization)|FB_ngon_encoding|CESIUM_primitive_outline"
    r"|EXT_(mesh_features|structural_metadata|mesh_manifold)"
)
WITHOUT = {
    "KHR_draco_mesh_compression": "without Draco compression",
    "EXT_meshopt_compression": "without compression (gltfpack: no -c)",
    "KHR_meshopt_compression": "without compression (gltfpack: no -c)",
}
ATTRIBUTES = {"POSITION", "NORMAL", "TEXCOORD_0", "TEXCOORD_1", "COLOR_0"}
SKELETON = re.compile(r"(JOINTS|WEIGHTS)_\d+")  # told with the skins
WIDTHS = {"positions": 3, "normals": 3, "uv": 2, "extra_uv": 2, "texture_uv": 2, "colors": 4}


@dataclass(frozen=True, eq=False)
class _Vertices:
    """Vertices of one node and set of attributes; primitives that name the same ones share them.

    Attributes:
        start: index of the first among all.
        count: of one instance.
        mirrored: [n] bool, for each of the node's instances.
    """

    start: int
    count: int
    mirrored: np.ndarray


def read_gltf(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads all triangles of the scene; several nodes or primitives become parts.

    Raises:
        MeshFileError: the file is damaged, or a buffer lies outside the folder, or the file needs
            an extension, such as compression, that changes its triangles and is not read.
    """
    document = GltfDocument(content, folder)
    _check_extensions(document)
    with np.errstate(all="ignore"):
        return _Reader(document).read()


def _check_extensions(document: GltfDocument) -> None:
    required = document.root.texts("extensionsRequired")
    for kind in ("meshes", "accessors", "bufferViews", "buffers"):
        for entry in document.lists[kind]:
            used = set(entry.object("extensions").values)
            for primitive in entry.objects("primitives"):
                used |= set(primitive.object("extensions").values)
            for name in sorted(required & used):
                if not HARMLESS.match(name):
                    how = WITHOUT.get(name, "without")
                    raise MeshFileError(f"it needs {name[:60]}, which is not read; export it {how}")


class _Reader:
    """Collects the scene's triangles."""

    def __init__(self, document: GltfDocument) -> None:
        self.document = document
        self.materials = GltfMaterials(document)
        self.lost: list[str] = []
        self.blocks: dict[str, list[tuple[int, Floats]]] = {name: [] for name in WIDTHS}
        self.vertices = 0
        self.faces: list[Indices] = []
        self.names: list[str] = []
        self.mesh_names: list[str] = []
        self.part_material: list[int] = []

    def read(self) -> MeshFile:
        for instance in mesh_instances(self.document, self.lost):
            self._read_mesh(instance)
        if not self.faces:
            raise MeshFileError("its scene holds no triangles")
        arrays = {name: self._joined(name) for name in WIDTHS}
        uv, texture_uv = arrays["uv"], arrays["texture_uv"]
        if texture_uv is not None and uv is not None and np.array_equal(uv, texture_uv, True):
            del arrays["texture_uv"]
        return MeshFile(
            **arrays,  # type: ignore[arg-type]
            faces=np.concatenate(self.faces),
            face_part=np.repeat(np.arange(len(self.faces)), [len(f) for f in self.faces]),
            part_names=self.names,
            part_material=self.part_material,
            mesh_names=self.mesh_names,
            lost=list(dict.fromkeys([*inventory(self.document), *self.lost, *self.materials.lost])),
            materials=self.materials.materials,
            notes=list(dict.fromkeys([*self.document.notes, *self.materials.notes])),
        )

    def _joined(self, name: str) -> Floats | None:
        """[v, w] of all blocks, NaN where there is none; None where there are none at all."""
        joined = np.full((self.vertices, WIDTHS[name]), np.nan)
        for start, block in self.blocks[name]:
            joined[start : start + len(block)] = block
        return joined if self.blocks[name] else None

    def _read_mesh(self, instance: MeshInstance) -> None:
        shared: dict[tuple[object, ...], _Vertices] = {}
        primitives = instance.mesh.objects("primitives")
        for number, primitive in enumerate(primitives):
            mode = primitive.whole("mode", 4)
            if mode not in (4, 5, 6):
                self.lost.append("points and lines")
                continue
            material, place = -1, None
            if "material" in primitive:
                index = primitive.whole("material")
                material, place = self.materials.read(index, primitive.at("material"))
            attributes = primitive.object("attributes")
            key = (
                str(sorted(attributes.values.items())),
                str(primitive.values.get("targets")),
                place,
            )
            if key not in shared:
                shared[key] = self._read_vertices(primitive, place, instance)
            vertices = shared[key]
            faces = self._faces(primitive, mode, vertices.count)
            copies = len(vertices.mirrored)
            if sum(len(f) for f in self.faces) + copies * len(faces) > MOST_FACES:
                raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
            starts = vertices.start + np.arange(copies) * vertices.count
            placed = [
                (faces[:, ::-1] if mirrored else faces) + start
                for start, mirrored in zip(starts, vertices.mirrored, strict=True)
            ]
            self.faces.append(np.concatenate(placed))
            several = len(primitives) > 1
            label = self.materials.materials[material].name if material >= 0 else ""
            self.names.append(
                f"{instance.name} {label or number}".strip() if several else instance.name
            )
            self.mesh_names.append(instance.mesh.text("name"))
            self.part_material.append(material)

    def _read_vertices(
        self, primitive: JsonObject, place: TexturePlace | None, instance: MeshInstance
    ) -> _Vertices:
        document, attributes = self.document, primitive.object("attributes")
        if "KHR_draco_mesh_compression" in primitive.object("extensions"):
            accessor = document.named(attributes, "POSITION", "accessors")
            if "bufferView" not in accessor:
                raise MeshFileError("it is compressed by Draco; export it without")
        count, copies = document.count(attributes, "POSITION"), len(instance.matrices)
        if self.vertices + count * copies > MOST_VERTICES:  # said before any of them is copied
            raise MeshFileError(f"its primitives name more than {MOST_VERTICES:,} vertices")
        arrays = {"positions": document.floats(attributes, "POSITION", 3)}
        for name, key, widths in (
            ("normals", "NORMAL", (3,)), ("uv", "TEXCOORD_0", (2,)),
            ("extra_uv", "TEXCOORD_1", (2,)), ("colors", "COLOR_0", (3, 4)),
        ):  # fmt: skip
            if key in attributes:
                arrays[name] = document.floats(attributes, key, *widths)
                if len(arrays[name]) != count:
                    raise MeshFileError(
                        f"{attributes.at(key)} names {len(arrays[name]):,} elements, POSITION "
                        f"{count:,}"
                    )
        self._morph(primitive, instance.weights, arrays)
        others = sorted(
            key for key in set(attributes.values) - ATTRIBUTES if not SKELETON.fullmatch(key)
        )
        self.lost += [
            "tangents (made anew)" if k == "TANGENT" else f"attribute {k[:40]}" for k in others
        ]
        self._place_textures(arrays, place, primitive)
        if "material" in primitive:
            self._note_passed_pictures(primitive, arrays)
        if "colors" in arrays:
            colors = arrays["colors"].clip(0, 1)
            arrays["colors"] = np.pad(
                colors, ((0, 0), (0, 4 - colors.shape[1])), constant_values=1.0
            )
        mirrored = self._transform(arrays, instance.matrices)
        for name, array in arrays.items():
            self.blocks[name].append((self.vertices, array))
        vertices = _Vertices(self.vertices, count, mirrored)
        self.vertices += count * copies
        return vertices

    def _morph(
        self, primitive: JsonObject, weights: tuple[float, ...], arrays: dict[str, Floats]
    ) -> None:
        """Adds the morph targets whose weights are not zero."""
        for weight, target in zip(weights, primitive.objects("targets"), strict=False):
            for name, key in (("positions", "POSITION"), ("normals", "NORMAL")):
                if weight and key in target and name in arrays:
                    moved = self.document.floats(target, key, 3)
                    if len(moved) != len(arrays[name]):
                        raise MeshFileError(f"{target.at(key)} differs in length from its mesh")
                    arrays[name] = arrays[name] + weight * moved

    def _place_textures(
        self, arrays: dict[str, Floats], maps_place: TexturePlace | None, primitive: JsonObject
    ) -> None:
        """Turns v up, and adds where the material's maps, if any, are looked up."""
        for name in ("uv", "extra_uv"):
            if name in arrays:
                u, v = arrays[name].T
                arrays[name] = np.stack([u, 1 - v], axis=1)  # glTF's v points down
        place = maps_place or TexturePlace()
        source = arrays.get("uv" if place.uv_set == 0 else "extra_uv" if place.uv_set == 1 else "")
        if source is None:
            if maps_place is not None:
                self.lost.append(
                    f"the maps of {primitive.path}, which lacks TEXCOORD_{place.uv_set} for them"
                )
            return
        arrays["texture_uv"] = place.apply(source)
        outside = (arrays["texture_uv"] < -1e-4).any(0) | (arrays["texture_uv"] > 1 + 1e-4).any(0)
        if (outside & (np.array(place.wrap) != TexturePlace().wrap)).any():
            self.lost.append("the wrap modes of textures, which all repeat")

    def _note_passed_pictures(self, primitive: JsonObject, arrays: dict[str, Floats]) -> None:
        index, _ = self.materials.read(primitive.whole("material"), primitive.path)
        material = self.materials.materials[index]
        for what, image, place in (
            ("emissive", material.emissive_image, material.emissive_place),
            ("occlusion", material.occlusion_image, material.occlusion_place),
        ):
            if image is not None and ("uv", "extra_uv", "")[min(place.uv_set, 2)] not in arrays:
                self.lost.append(
                    f"the {what} picture of {primitive.path}, which lacks TEXCOORD_{place.uv_set}"
                )

    def _transform(self, arrays: dict[str, Floats], matrices: Floats) -> np.ndarray:
        """Places one copy of the vertices for each matrix; returns which are mirrored."""
        linear, copies = matrices[:, :3, :3], len(matrices)
        mirrored = np.linalg.det(linear) < 0
        for name, array in arrays.items():
            if name == "positions" and not (matrices == np.eye(4)).all():
                placed = array @ linear.swapaxes(1, 2) + matrices[:, None, :3, 3]
                arrays[name] = placed.reshape(-1, 3)
            elif name == "normals" and not (matrices == np.eye(4)).all():
                # cofactors: the inverse's transpose times the determinant, so mirrors turn normals
                cofactors = np.cross(linear[:, [1, 2, 0]], linear[:, [2, 0, 1]])
                turned = array @ cofactors.swapaxes(1, 2)
                arrays[name] = np.where(mirrored[:, None, None], -turned, turned).reshape(-1, 3)
            elif copies > 1:
                arrays[name] = np.tile(array, (copies, 1))
        return mirrored

    def _faces(self, primitive: JsonObject, mode: int, count: int) -> Indices:
        """[f, 3] of a list, a strip or a fan of triangles."""
        if "indices" in primitive:
            indices = self.document.indices(primitive, "indices")
        else:
            indices = np.arange(count)
        if len(indices) and indices.max() >= count:
            raise MeshFileError(
                f"{primitive.at('indices')} names vertex {indices.max():,} of {count:,}"
            )
        if mode == 4:
            return indices[: len(indices) // 3 * 3].reshape(-1, 3)
        if mode == 5:
            faces = strips(indices, np.array([len(indices)]))[0].reshape(-1, 3)
            # Strips are joined by triangles that name a vertex twice.
            return faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
        first = np.broadcast_to(indices[:1], (max(len(indices) - 2, 0),))
        return np.stack([first, indices[1:-1], indices[2:]], axis=1)
