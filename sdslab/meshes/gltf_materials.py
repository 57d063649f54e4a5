"""glTF's materials and pictures, and what of a file the reader does not use."""

from collections import defaultdict
from dataclasses import replace
from typing import Any, Literal, cast

from sdslab.errors import one_line
from sdslab.meshes.gltf_document import GltfDocument, JsonObject
from sdslab.meshes.mesh_file import FileMaterial, MeshFileError, TexturePlace

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
        if specular is None or pbr.values:
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
        emission, strength = entry.extension("KHR_materials_emissive_strength"), 1.0
        if emission is not None:
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
    if transform is None:
        return TexturePlace(uv_set, wrap=wrap)
    return TexturePlace(
        transform.whole("texCoord", uv_set),
        cast(Any, transform.numbers("offset", (0.0, 0.0))),
        transform.number("rotation", 0.0),
        cast(Any, transform.numbers("scale", (1.0, 1.0))),
        wrap,
    )


def _image_user(texture: JsonObject) -> JsonObject:
    """The object whose `source` names the picture to read: WebP, then PNG or JPEG, then others."""
    webp = texture.extension("EXT_texture_webp")
    if webp is not None:
        return webp
    if "source" not in texture:
        for name in texture.object("extensions").values:
            extension = texture.object("extensions").object(name)
            if "source" in extension:
                return extension
    return texture


def inventory(document: GltfDocument) -> list[str]:
    """What a file holds that its triangles and materials do not: a phrase each."""
    root, lists = document.root, document.lists
    lights = root.extension("KHR_lights_punctual")
    targets = sum(
        any(p.array("targets") for p in mesh.objects("primitives")) for mesh in lists["meshes"]
    )
    counts = [
        (len(lists["animations"]), "animation"),
        (len(lists["skins"]), "skin"),
        (targets, "mesh with morph targets", "meshes with morph targets"),
        (len(lists["cameras"]), "camera"),
        (len(lights.array("lights")) if lights else 0, "light"),
        (max(len(lists["scenes"]) - 1, 0), "further scene"),
    ]
    lost = [_counted(*entry) for entry in counts if entry[0]]
    if any(node.array("children") for node in lists["nodes"]):
        lost.append(f"the hierarchy of {len(lists['nodes'])} nodes (their transforms are applied)")
    users, extras = _extensions_and_extras(root)
    lost += [_phrase(name, document, owners) for name, owners in users.items() if name not in READ]
    declared = root.texts("extensionsUsed") | root.texts("extensionsRequired")
    lost += sorted(name for name in declared - READ - set(users) if "_texture_" not in name)
    if extras:
        lost.append(f"extras of {_counted(extras, 'object')}")
    return lost


def _counted(number: int, thing: str, things: str = "") -> str:
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


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
