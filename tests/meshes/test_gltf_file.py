"""The glTF reader against closed forms, and what it says of files that it does not read."""

import base64
import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdslab.meshes.gltf_file import read_gltf
from sdslab.meshes.mesh_file import MeshFile, MeshFileError
from sdslab.meshes.mesh_folder import MeshFolder
from tests.meshes.gltf_builder import SQUARE, SQUARE_FACES, SQUARE_UV, GltfBuilder

UP = np.stack([SQUARE_UV[:, 0], 1 - SQUARE_UV[:, 1]], 1)  # v up
NO_FOLDER = MeshFolder(Path("/nonexistent/mesh.glb"))


def read(file: GltfBuilder | bytes) -> MeshFile:
    return read_gltf(file.glb() if isinstance(file, GltfBuilder) else file, NO_FOLDER)


def lost(file: MeshFile) -> str:
    return "; ".join(file.lost)


def test_a_childs_matrix_comes_before_its_parents_quarter_turn():
    """A quarter turn about z after a shift by x: (x, y, z) ↦ (−y, x + 3, z)."""
    file = GltfBuilder(scenes=[{"nodes": [1]}])
    shift = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 3, 0, 0, 1]  # column by column
    file.square({"matrix": shift})
    half = 0.5**0.5
    file.json["nodes"].append({"children": [0], "rotation": [0, 0, half, half]})
    x, y, z = SQUARE.T
    np.testing.assert_allclose(read(file).positions, np.stack([-y, x + 3, z], 1), atol=1e-12)


def test_scale_comes_before_rotation_and_rotation_before_translation():
    file = GltfBuilder()
    half = 0.5**0.5
    file.square({"translation": [5, 6, 7], "rotation": [half, 0, 0, half], "scale": [2, 3, 4]})
    x, y, _ = SQUARE.T.astype(float)
    expected = np.stack([2 * x + 5, 0 * y + 6, 3 * y + 7], 1)
    np.testing.assert_allclose(read(file).positions, expected, atol=1e-12)


def test_normals_stay_orthogonal_under_uneven_scale():
    file = GltfBuilder()
    primitive = file.square({"scale": [4, 1, 1]})
    tilted = SQUARE.copy()
    tilted[:, 2] = tilted[:, 0]  # the plane z = x with the normal (−1, 0, 1)
    primitive["attributes"]["POSITION"] = file.accessor(tilted)
    normals = np.tile(np.array([-1, 0, 1], "f4") / np.float32(2**0.5), (4, 1))
    primitive["attributes"]["NORMAL"] = file.accessor(normals)
    placed = read(file)
    assert placed.normals is not None
    unit = placed.normals / np.linalg.norm(placed.normals, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, np.tile([-1, 0, 4], (4, 1)) / 17**0.5, atol=1e-7)


def test_a_mirrored_node_turns_faces_and_normals():
    file = GltfBuilder()
    primitive = file.square({"scale": [1, 1, -1]})
    normals = np.tile(np.array([0, 0, 1], "f4"), (4, 1))
    primitive["attributes"]["NORMAL"] = file.accessor(normals)
    placed = read(file)
    a, b, c = placed.positions[placed.faces].swapaxes(0, 1)
    assert placed.normals is not None
    assert (np.cross(b - a, c - a)[:, 2] < 0).all()
    assert (placed.normals[:, 2] < 0).all()
    assert np.cross(b - a, c - a)[0] @ placed.normals[0] > 0


def test_strips_turn_every_second_triangle_and_drop_their_joints():
    file = GltfBuilder()
    primitive = file.square(mode=5)
    primitive["indices"] = file.accessor(np.array([0, 1, 3, 2, 2, 1, 0], "u1"))
    assert read(file).faces.tolist() == [[0, 1, 3], [3, 1, 2], [2, 1, 0]]


def test_fans_share_their_first_vertex_with_or_without_indices():
    file = GltfBuilder()
    primitive = file.square(mode=6)
    del primitive["indices"]
    assert read(file).faces.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2"])
def test_normalised_integers_of_all_widths(kind: str):
    file = GltfBuilder()
    primitive = file.square()
    largest = np.iinfo(kind).max
    values = np.array([[0, largest], [largest, largest], [largest // 2, 0], [0, 1]], kind)
    if kind.startswith("i"):
        values[0, 0] = np.iinfo(kind).min  # both −largest and the number below it are −1
    primitive["attributes"]["TEXCOORD_0"] = file.accessor(values, normalized=True)
    uv = read(file).uv
    expected = np.maximum(values.astype(float) / largest, -1)
    assert uv is not None
    np.testing.assert_allclose(uv, np.stack([expected[:, 0], 1 - expected[:, 1]], 1), atol=1e-15)


def test_sparse_accessors_replace_some_of_zeros_or_of_others():
    file = GltfBuilder()
    primitive = file.square()
    where, what = np.array([1, 3], "u1"), np.array([[7, 8, 9], [4, 5, 6]], "f4")
    for base in (True, False):
        accessor = {"componentType": 5126, "count": 4, "type": "VEC3"}
        if base:
            accessor["bufferView"] = 0
        accessor["sparse"] = {
            "count": 2,
            "indices": {"bufferView": file.view(where.tobytes()), "componentType": 5121},
            "values": {"bufferView": file.view(what.tobytes())},
        }
        file.json["accessors"].append(accessor)
        primitive["attributes"]["POSITION"] = len(file.json["accessors"]) - 1
        expected = SQUARE.copy() if base else np.zeros_like(SQUARE)
        expected[where] = what
        np.testing.assert_array_equal(read(file).positions, expected)


def test_interleaved_attributes():
    file = GltfBuilder()
    primitive = file.square()
    rows = np.concatenate([np.full((4, 1), 9, "f4"), SQUARE, SQUARE_UV], axis=1)
    view = file.view(rows.tobytes(), byteStride=24)
    shape = {"bufferView": view, "componentType": 5126, "count": 4}
    file.json["accessors"] += [
        {**shape, "type": "VEC3", "byteOffset": 4},
        {**shape, "type": "VEC2", "byteOffset": 16},
    ]
    primitive["attributes"] = {"POSITION": 3, "TEXCOORD_0": 4}
    placed = read(file)
    np.testing.assert_array_equal(placed.positions, SQUARE)
    np.testing.assert_array_equal(placed.uv, UP)


def test_primitives_of_the_same_attributes_share_their_vertices():
    file = GltfBuilder()
    primitive = file.square()
    second = {**primitive, "indices": file.accessor(np.array([0, 2, 3], "u4"))}
    primitive["indices"] = file.accessor(np.array([0, 1, 2], "u1"))
    file.json["meshes"][0]["primitives"].append(second)
    placed = read(file)
    assert len(placed.positions) == 4
    assert placed.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert placed.face_part.tolist() == [0, 1]


def test_instances_are_placed_one_after_another():
    file = GltfBuilder()
    places = np.array([[10, 0, 0], [0, 20, 0]], "f4")
    scales = np.array([[1, 1, 1], [-1, 1, 1]], "f4")
    attributes = {"TRANSLATION": file.accessor(places), "SCALE": file.accessor(scales)}
    file.square({"extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}})
    placed = read(file)
    expected = np.concatenate([SQUARE * s + p for s, p in zip(scales, places, strict=True)])
    np.testing.assert_array_equal(placed.positions, expected)
    assert placed.faces.tolist() == [[0, 1, 2], [0, 2, 3], [6, 5, 4], [7, 6, 4]]
    assert placed.notes == ["2 instances of 'nodes[0]'"]


def test_default_weights_of_morph_targets_are_applied():
    file = GltfBuilder()
    primitive = file.square({"weights": [0.5, 0]})
    moved = file.accessor(np.full((4, 3), 2, "f4"))
    primitive["targets"] = [{"POSITION": moved}, {"POSITION": moved}]
    placed = read(file)
    np.testing.assert_array_equal(placed.positions, SQUARE + 1)
    assert "1 mesh with morph targets" in lost(placed)


def textured(place: dict[str, Any]) -> GltfBuilder:
    file = GltfBuilder()
    texture = {"index": file.image(b"some picture"), **place}
    file.json["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": texture}}]
    file.square(material=0)
    return file


def test_a_texture_transform_scales_turns_and_shifts():
    """A quarter turn counter-clockwise on the picture: (u, v) ↦ (v, −u), v down."""
    transform = {"offset": [0.25, 0.5], "rotation": np.pi / 2, "scale": [2, 3]}
    placed = read(textured({"extensions": {"KHR_texture_transform": transform}}))
    u, v = SQUARE_UV.T
    expected = np.stack([3 * v + 0.25, 1 - (-2 * u + 0.5)], 1)
    assert placed.texture_uv is not None
    np.testing.assert_allclose(placed.texture_uv, expected, atol=1e-12)
    np.testing.assert_array_equal(placed.uv, UP)


def test_an_identity_transform_changes_nothing():
    transform = {"offset": [0, 0], "scale": [1, 1]}
    placed = read(textured({"extensions": {"KHR_texture_transform": transform}}))
    assert placed.texture_uv is None
    assert placed.materials[0].color_image == b"some picture"


@pytest.mark.parametrize(
    "place",
    [{"texCoord": 1}, {"extensions": {"KHR_texture_transform": {"texCoord": 1}}}],
    ids=["texCoord", "transform"],
)
def test_the_second_set_of_coordinates(place: dict[str, Any]):
    file = textured(place)
    primitive = file.json["meshes"][0]["primitives"][0]
    primitive["attributes"]["TEXCOORD_1"] = file.accessor(SQUARE_UV / 2)
    placed = read(file)
    expected = np.stack([SQUARE_UV[:, 0] / 2, 1 - SQUARE_UV[:, 1] / 2], 1)
    np.testing.assert_array_equal(placed.extra_uv, expected)
    np.testing.assert_array_equal(placed.texture_uv, expected)


def test_maps_whose_coordinates_are_missing_or_others_are_told():
    placed = read(textured({"texCoord": 3}))
    assert "lacks TEXCOORD_3" in lost(placed)
    file = textured({})
    file.json["materials"][0]["normalTexture"] = {"index": file.image(b"bumps"), "texCoord": 1}
    placed = read(file)
    assert placed.materials[0].normal_image is None
    assert "normal picture of '' (it has coordinates of its own)" in lost(placed)


def test_specular_glossiness_gives_its_diffuse():
    file = GltfBuilder()
    look = {"diffuseTexture": {"index": file.image(b"diffuse")}, "glossinessFactor": 0.25}
    look["diffuseFactor"] = [0.5, 0.25, 0.125, 0.75]
    extensions = {"KHR_materials_pbrSpecularGlossiness": look}
    file.json["materials"] = [{"name": "Old", "extensions": extensions}]
    file.square(material=0)
    material = read(file).materials[0]
    assert (material.color_image, material.color) == (b"diffuse", (0.5, 0.25, 0.125))
    assert (material.alpha, material.roughness, material.metallic) == (0.75, 0.75, 0.0)


def test_the_inventory_names_what_is_not_read():
    file = GltfBuilder(animations=[{}, {}], skins=[{}], cameras=[{}], extras={"a": 1})
    paint = {"name": "Paint", "extensions": {"KHR_materials_clearcoat": {}}}
    file.json["materials"] = [paint]
    lights = {"lights": [{}, {}, {}]}
    file.json["extensions"] = {"KHR_lights_punctual": lights, "KHR_xmp_json_ld": {}}
    primitive = file.square({"extras": {"b": 2}}, material=0)
    for name in ("TEXCOORD_2", "_TEMPERATURE", "COLOR_1", "TANGENT", "JOINTS_0"):
        primitive["attributes"][name] = 1
    file.json["nodes"].append({"children": [0]})
    file.json["scenes"] = [{"nodes": [1]}, {"nodes": []}]
    assert read(file).lost == [
        "2 animations", "1 skin", "1 camera", "3 lights", "1 further scene",
        "the hierarchy of 2 nodes (their transforms are applied)", "KHR_xmp_json_ld",
        "KHR_materials_clearcoat of 'Paint'", "extras of 2 objects", "attribute COLOR_1",
        "tangents (made anew)", "attribute TEXCOORD_2", "attribute _TEMPERATURE",
    ]  # fmt: skip


def test_a_plain_file_loses_nothing():
    file = GltfBuilder()
    file.square()
    placed = read(file)
    assert (placed.lost, placed.notes, placed.colors, placed.extra_uv) == ([], [], None, None)


def test_a_root_that_is_a_child_too_is_placed_once():
    file = GltfBuilder()
    file.square()
    file.json["nodes"].append({"children": [0], "translation": [0, 0, 5]})
    placed = read(file)
    np.testing.assert_array_equal(placed.positions, SQUARE + np.array([0, 0, 5]))
    assert placed.notes == ["nodes[0] is a root and a child: it is placed as a child"]


@pytest.mark.parametrize("stated", [-4, 4, 1000])
def test_the_length_in_the_header_does_not_count(stated: int):
    file = GltfBuilder()
    file.square()
    content = bytearray(file.glb())
    content[8:12] = struct.pack("<I", len(content) + stated)
    placed = read(bytes(content))
    assert len(placed.faces) == 2
    assert len(placed.notes) == 1


def as_gltf(file: GltfBuilder, encode: Any) -> bytes:
    uri = "data:application/octet-stream;base64," + encode(base64.b64encode(file.binary).decode())
    document = {**file.json, "buffers": [{"byteLength": len(file.binary), "uri": uri}]}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text,
        lambda text: "\r\n".join(text[k : k + 76] for k in range(0, len(text), 76)),
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.replace("=", "%3D"),
    ],
    ids=["plain", "wrapped", "unpadded", "url-safe", "escaped"],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_data_uris_and_byte_order_marks(encode: Any, bom: bytes):
    file = GltfBuilder()
    file.square()
    file.binary += b"\xff\xfe\xfb?"  # both letters of the other alphabet, and padding
    placed = read(bom + as_gltf(file, encode))
    np.testing.assert_array_equal(placed.positions, SQUARE)


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ("KHR_draco_mesh_compression", "without Draco compression"),
        ("KHR_gaussian_splatting", "export it without"),
    ],
)
def test_extensions_that_change_the_triangles_are_refused_by_name(extension: str, message: str):
    file = GltfBuilder(extensionsRequired=[extension])
    primitive = file.square()
    assert len(read(file).faces) == 2, "required, but used nowhere"
    primitive["extensions"] = {extension: {}}
    with pytest.raises(MeshFileError, match=f"needs {extension}.*{message}"):
        read(file)


def test_meshopt_is_refused_by_name():
    file = GltfBuilder(extensionsRequired=["EXT_meshopt_compression"])
    file.square()
    file.json["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {}}
    with pytest.raises(MeshFileError, match="gltfpack: no -c"):
        read(file)


@pytest.mark.parametrize(
    "name",
    ["KHR_texture_basisu", "EXT_texture_avif", "KHR_animation_pointer", "KHR_materials_variants"],
)
def test_other_required_extensions_are_not(name: str):
    file = GltfBuilder(extensionsRequired=[name])
    file.json["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": file.image(b"\xabKTX 20\xbb")}}}
    ]
    if "texture" in name:
        file.json["textures"] = [{"extensions": {name: file.json["textures"][0]}}]
    file.square(material=0)
    placed = read(file)
    assert len(placed.faces) == 2
    assert (name in lost(placed)) == ("texture" not in name)
    assert placed.materials[0].color_image == b"\xabKTX 20\xbb"  # named where it is decoded


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("accessors/0/componentType", None, r"accessors\[0\] lacks componentType"),
        ("accessors/0/componentType", 5130, r"accessors\[0\].componentType must be one of glTF's"),
        ("accessors/0/count", -1, r"accessors\[0\].count must be a whole number from 0, it is -1"),
        ("accessors/0/count", 10**400, "must be a number"),
        ("accessors/0/type", "MAT4", r"accessors\[0\] must hold 3 numbers each"),
        ("accessors/2/componentType", 5122, "must name unsigned whole numbers"),
        ("accessors/1/count", 3, r"attributes.TEXCOORD_0 names 3 elements, POSITION 4"),
        ("accessors/0/bufferView", 20, r"names bufferViews\[20\], of which there are 3"),
        ("bufferViews/0/byteLength", 20, r"accessors\[0\] needs 48 bytes of bufferViews\[0\]"),
        ("bufferViews/0/byteLength", 9999, "ends at byte 9,999 of a buffer of 92"),
        ("bufferViews/0/buffer", 1, r"bufferViews\[0\].buffer names buffers\[1\]"),
        ("meshes/0/primitives/0/attributes/POSITION", None, "attributes lacks POSITION"),
        ("meshes/0/primitives", {}, r"meshes\[0\].primitives must be a list, it is an object"),
        ("meshes/0/primitives/0/material", 0, r"names materials\[0\], of which there are 0"),
        ("nodes/0/mesh", 5, r"nodes\[0\].mesh names meshes\[5\]"),
        ("nodes/0/matrix", [1], r"nodes\[0\].matrix must hold 16 numbers"),
        ("nodes/0/children", [0], "is its own ancestor"),
        ("nodes/0/scale", "x", r"nodes\[0\].scale must be a list"),
        ("scene", 3, r"scene names scenes\[3\]"),
        ("nodes", 7, "nodes must be a list, it is 7"),
        ("asset", None, "it is glTF missing, not 2.0"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(path: str, value: Any, message: str):
    file = GltfBuilder(scene=0, scenes=[{"nodes": [0]}])
    file.square()
    *parents, last = [int(k) if k.isdigit() else k for k in path.split("/")]
    target: Any = file.json
    for key in parents:
        target = target[key]
    target[last] = value
    with pytest.raises(MeshFileError, match=message):
        read(file)


def every_path(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, child in children:
        nested = isinstance(child, dict | list)
        found += every_path(child, (*path, key)) if nested else [(*path, key)]
    return found


@pytest.mark.parametrize(
    "value", [None, -1, 99, 1e300, "x", [], {}, [[]], True, [0, 0, 0]], ids=repr
)
def test_any_value_anywhere_is_read_or_refused_in_one_line(value: Any):
    """Nothing but `MeshFileError` leaves the reader, whatever stands where."""
    file = GltfBuilder(scene=0, scenes=[{"nodes": [1]}], animations=[{"channels": [{}]}])
    texture: dict[str, Any] = {"index": file.image(b"p"), "texCoord": 0}
    transform = {"offset": [0, 0], "rotation": 1, "scale": [1, 1], "texCoord": 0}
    texture["extensions"] = {"KHR_texture_transform": transform}
    look = {"baseColorTexture": texture, "baseColorFactor": [1, 1, 1, 1]}
    file.json["materials"] = [
        {"pbrMetallicRoughness": look, "emissiveTexture": texture, "alphaMode": "MASK"}
    ]
    file.json["textures"][0]["sampler"] = 0
    file.json["samplers"] = [{"wrapS": 33071}]
    places = {"TRANSLATION": file.accessor(np.zeros((2, 3), "f4"))}
    node = {"extensions": {"EXT_mesh_gpu_instancing": {"attributes": places}}, "weights": [0.5]}
    primitive = file.square(node, material=0)
    primitive["targets"] = [{"POSITION": primitive["attributes"]["POSITION"]}]
    file.json["nodes"].append({"children": [0], "rotation": [0, 0, 0, 1], "scale": [1, 1, 1]})
    sound = file.json
    assert len(read(file).faces) == 4
    for path in every_path(sound):
        file.json = copy.deepcopy(sound)
        target: Any = file.json
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        try:
            placed = read(file)
        except MeshFileError as error:
            assert "\n" not in str(error), path  # noqa: PT017
        else:
            assert placed.faces.max() < len(placed.positions), path


def test_deeply_nested_json_is_refused():
    with pytest.raises(MeshFileError, match="its JSON is nested too deeply"):
        read(b'{"asset": ' + b"[" * 200_000)


def test_faces_name_vertices_that_exist():
    file = GltfBuilder()
    primitive = file.square()
    primitive["indices"] = file.accessor(SQUARE_FACES + 1)
    with pytest.raises(MeshFileError, match="indices names vertex 4 of 4"):
        read(file)
