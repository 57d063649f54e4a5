"""A glTF file's nodes and materials, and what of it the reader does not use."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from sdslab.errors import one_line
from sdslab.meshes.gltf_document import GltfDocument, JsonObject
from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    MeshFileError,
    TexturePlace,
    counted,
)


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
    if "EXT_mesh_gpu_instancing" not in node.object("extensions"):
        return np.eye(4)[None]
    attributes = node.extension("EXT_mesh_gpu_instancing").object("attributes")
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
    axis, unit = rotation[:, None, :3], np.eye(3)
    once = np.cross(axis, unit)  # of each unit vector: its image is v + 2 w q × v + 2 q × (q × v)
    columns = unit + 2 * (rotation[:, None, 3:] * once + np.cross(axis, once))
    matrices = np.tile(np.eye(4), (len(translation), 1, 1))
    matrices[:, :3, :3] = columns.swapaxes(1, 2) * scale[:, None]
    matrices[:, :3, 3] = translation
    return matrices


SPECULAR = "KHR_materials_pbrSpecularGlossiness"
# Extensions whose content is read, or told where it is left out; compression is refused where
# there is nothing else to read.
READ = {
    "KHR_texture_transform", "KHR_mesh_quantization", "KHR_lights_punctual", SPECULAR,
    "KHR_materials_emissive_strength", "EXT_mesh_gpu_instancing", "EXT_texture_webp",
    "KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression",
}  # fmt: skip
NEAREST = (9728, 9984, 9985, 9986)


class GltfMaterials:
    """A file's materials, each read when it is first asked for.

    Attributes:
        materials: those read so far.
        notes: pictures left out.
    """

    def __init__(self, document: GltfDocument) -> None:
        self.document = document
        self.materials: list[FileMaterial] = []
        self.notes: list[str] = []
        self.lost: list[str] = []
        self._read: dict[int, tuple[int, TexturePlace | None]] = {}

    def read(self, index: int, user: str) -> tuple[int, TexturePlace | None]:
        """A material's index in `materials`, and where its maps, if any, are looked up."""
        if index not in self._read:
            entry = self.document.entry("materials", index, user)
            material, place = self._material(entry)
            self._read[index] = len(self.materials), place
            self.materials.append(material)
        return self._read[index]

    def _material(self, entry: JsonObject) -> tuple[FileMaterial, TexturePlace | None]:
        name = entry.text("name")
        pbr, specular = entry.object("pbrMetallicRoughness"), entry.extension(SPECULAR)
        if SPECULAR not in entry.object("extensions") or pbr.values:
            factors = pbr.numbers("baseColorFactor", (1.0, 1.0, 1.0, 1.0))
            color, surface = pbr.object("baseColorTexture"), pbr.object("metallicRoughnessTexture")
            roughness, metallic = pbr.unit("roughnessFactor", 1.0), pbr.unit("metallicFactor", 1.0)
        else:
            factors = specular.numbers("diffuseFactor", (1.0, 1.0, 1.0, 1.0))
            color, surface = specular.object("diffuseTexture"), JsonObject({}, "")
            roughness, metallic = 1 - specular.unit("glossinessFactor", 1.0), 0.0
            self.lost.append(f"specular colour and glossiness map of {name!r}")
        normal = entry.object("normalTexture")
        place: TexturePlace | None = None
        images: dict[str, bytes | None] = {}
        for kind, reference in (
            ("base colour", color), ("metallic-roughness", surface), ("normal", normal),
        ):  # fmt: skip
            image, own = self._picture(reference, f"{kind} picture of {name!r}")
            if image is not None:
                place = place or own
                if place != replace(own, wrap=place.wrap):
                    image = None
                    self.lost.append(f"{kind} picture of {name!r} (it has coordinates of its own)")
            images[kind] = image
        emission = entry.extension("KHR_materials_emissive_strength")
        strength = emission.number("emissiveStrength", 1.0)
        emissive = entry.numbers("emissiveFactor", (0.0, 0.0, 0.0))
        glow, glow_place = self._picture(
            entry.object("emissiveTexture"), f"emissive picture of {name!r}"
        )
        occlusion = entry.object("occlusionTexture")
        shade, shade_place = self._picture(occlusion, f"occlusion picture of {name!r}")
        red, green, blue, alpha = (min(max(factor, 0.0), 1.0) for factor in factors)
        return FileMaterial(
            name=name,
            color=(red, green, blue),
            roughness=roughness,
            metallic=metallic,
            normal_scale=normal.number("scale", 1.0),
            color_image=images["base colour"],
            roughness_image=images["metallic-roughness"],
            metallic_image=images["metallic-roughness"],
            normal_image=images["normal"],
            double_sided=bool(entry.values.get("doubleSided")),
            alpha=alpha,
            alpha_mode=self._alpha_mode(entry),
            alpha_cutoff=max(entry.number("alphaCutoff", 0.5), 0.0),
            emissive=cast(Any, tuple(max(c, 0.0) * max(strength, 0.0) for c in emissive)),
            emissive_image=glow,
            emissive_place=glow_place,
            occlusion_strength=occlusion.unit("strength", 1.0),
            occlusion_image=shade,
            occlusion_place=shade_place,
        ), place

    def _alpha_mode(self, entry: JsonObject) -> Literal["OPAQUE", "MASK", "BLEND"]:
        mode = entry.text("alphaMode", "OPAQUE")
        if mode not in ("OPAQUE", "MASK", "BLEND"):
            self.notes.append(f"{entry.at('alphaMode')} {mode!r} read as OPAQUE")
            return "OPAQUE"
        return cast(Any, mode)

    def _picture(self, reference: JsonObject, what: str) -> tuple[bytes | None, TexturePlace]:
        """The bytes of the picture that a texture reference names, if any, and their place."""
        if not reference.values:
            return None, TexturePlace()
        try:
            document = self.document
            texture = document.named(reference, "index", "textures")
            place = _place(reference, self._sampler(texture, what))
            source = _image_user(texture)
            image = document.named(source, "source", "images")
            if "bufferView" in image:
                return bytes(document.view(image)), place
            return document.resource(image), place
        except MeshFileError as error:
            self.notes.append(f"{what} left out: {error}")
            return None, TexturePlace()

    def _sampler(self, texture: JsonObject, what: str) -> tuple[int, int]:
        if "sampler" not in texture:
            return 10497, 10497
        sampler = self.document.named(texture, "sampler", "samplers")
        if sampler.whole("magFilter", 9729) in NEAREST:
            self.lost.append(f"nearest filtering of the {what}")
        return sampler.whole("wrapS", 10497), sampler.whole("wrapT", 10497)


def _place(reference: JsonObject, wrap: tuple[int, int]) -> TexturePlace:
    uv_set = reference.whole("texCoord", 0)
    transform = reference.extension("KHR_texture_transform")
    return TexturePlace(
        transform.whole("texCoord", uv_set),
        cast(Any, transform.numbers("offset", (0.0, 0.0))),
        transform.number("rotation", 0.0),
        cast(Any, transform.numbers("scale", (1.0, 1.0))),
        wrap,
    )


def _image_user(texture: JsonObject) -> JsonObject:
    """The object whose `source` names the picture to read: WebP, then PNG or JPEG, then others."""
    extensions = texture.object("extensions")
    if "EXT_texture_webp" in extensions:
        return extensions.object("EXT_texture_webp")
    others = (extensions.object(name) for name in extensions.values)
    return texture if "source" in texture else next((o for o in others if "source" in o), texture)


def inventory(document: GltfDocument) -> list[str]:
    """What a file holds that its triangles and materials do not: a phrase each."""
    root, lists = document.root, document.lists
    targets = sum(
        any(p.array("targets") for p in mesh.objects("primitives")) for mesh in lists["meshes"]
    )
    counts = [
        (len(lists["animations"]), "animation"),
        (len(lists["skins"]), "skin"),
        (targets, "mesh with morph targets", "meshes with morph targets"),
        (len(lists["cameras"]), "camera"),
        (len(root.extension("KHR_lights_punctual").array("lights")), "light"),
        (max(len(lists["scenes"]) - 1, 0), "further scene"),
    ]
    lost = [counted(*entry) for entry in counts if entry[0]]
    if any(node.array("children") for node in lists["nodes"]):
        lost.append(f"the hierarchy of {len(lists['nodes'])} nodes (their transforms are applied)")
    users, extras = _extensions_and_extras(root)
    lost += [_phrase(name, document, owners) for name, owners in users.items() if name not in READ]
    declared = root.texts("extensionsUsed") | root.texts("extensionsRequired")
    lost += sorted(name for name in declared - READ - set(users) if "_texture_" not in name)
    if extras:
        lost.append(f"extras of {counted(extras, 'object')}")
    return lost


def _phrase(name: str, document: GltfDocument, owners: list[tuple[str, int]]) -> str:
    materials = sorted({index for kind, index in owners if kind == "materials"})
    if not materials:
        return name
    if len(materials) > 1:
        return f"{name} of {len(materials)} materials"
    return f"{name} of {document.lists['materials'][materials[0]].text('name')!r}"


def _extensions_and_extras(root: JsonObject) -> tuple[dict[str, list[tuple[str, int]]], int]:
    """Who uses each extension (top-level list and index), and how many objects have extras."""
    users: dict[str, list[tuple[str, int]]] = defaultdict(list)
    extras = 0
    waiting: list[tuple[Any, tuple[str, int]]] = []
    names = dict.fromkeys(root.object("extensions").values)
    top = {"extensions": names, "extras": root.values.get("extras")}
    for kind, value in [*root.values.items(), ("", top)]:
        entries = value if isinstance(value, list) else [value]
        if kind != "extras":
            waiting += [(entry, (kind, index)) for index, entry in enumerate(entries)]
    while waiting:
        value, owner = waiting.pop()
        if isinstance(value, list):
            waiting += [(item, owner) for item in value if isinstance(item, dict | list)]
        elif isinstance(value, dict):
            extras += bool(value.get("extras"))
            found = value.get("extensions")
            if isinstance(found, dict) and owner[0] != "extensions":
                for name in found:
                    if "_texture_" not in name:
                        users[one_line(name)[:80]].append(owner)
            waiting += [(v, owner) for k, v in value.items() if k != "extras"]
    return users, extras
