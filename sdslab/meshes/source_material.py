"""What becomes of a file's materials: maps to start from, and what the result keeps as it is."""

import io
import warnings
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from sdslab.errors import first_line, one_line
from sdslab.meshes.material import (
    ALBEDO,
    CHANNELS,
    FLAT_NORMAL,
    METALLIC,
    NORMAL,
    ROUGHNESS,
    encode_normals,
    renormalized,
)
from sdslab.meshes.mesh import SourceMaterial
from sdslab.meshes.mesh_file import FileMaterial, Indices, MeshFile
from sdslab.meshes.uv_layout import AtlasTile, atlas_tiles
from sdslab.pictures.color import linear_to_srgb, srgb_to_linear

MOST_MATERIALS = 256
MOST_REPEATS = 2.0  # of a texture within one tile of a joint one


def source_material(
    file: MeshFile,
    faces: Indices,
    material_of_face: Indices,
    tile_of_face: Indices | None,
    notes: list[str],
) -> SourceMaterial | None:
    """A file's maps, those of several materials in one joint texture.

    Args:
        file: its materials and texture coordinates.
        faces: [f, 3] of the file's vertices.
        material_of_face: [f] index into the file's materials, −1 for none.
        tile_of_face: [f] the groups whose texture coordinates were laid side by side, or None.
        notes: gets a phrase on all that is left out.
    """
    corner_colors = _corner_colors(file, faces, notes)
    if not (material_of_face >= 0).any() and corner_colors is None:
        return None
    materials = [*file.materials, FileMaterial()]
    looks = [material.look() for material in materials]
    distinct = list(dict.fromkeys(looks))
    named = [materials[looks.index(look)] for look in distinct]  # for notes
    look_of_face = np.array([distinct.index(m) for m in looks])[material_of_face]  # −1: the last
    own_uv = file.uv if file.texture_uv is None else file.texture_uv
    if own_uv is None:
        uv = np.zeros((len(faces), 3, 2))
    else:
        uv = np.where(np.abs(own_uv) < 1e6, own_uv, 0.5)[faces]  # NaN is not less
    used = np.unique(look_of_face)
    opaque = all(distinct[k].alpha_mode == "OPAQUE" for k in used)
    if len(used) == 1:
        maps = material_maps(named[used[0]], notes)
    else:
        tile = 0 if tile_of_face is None else tile_of_face
        groups = tile * len(distinct) + look_of_face
        labels = np.unique(groups)
        members = [groups == label for label in labels]
        tiles: list[AtlasTile] = atlas_tiles([uv[m] for m in members])
        own = [int(look_of_face[m][0]) for m in members]
        repeats = [max(t.size) for t, k in zip(tiles, own, strict=True) if any(distinct[k].images)]
        if len(labels) > MOST_MATERIALS or max(repeats, default=0) > MOST_REPEATS:
            notes.append(f"the file's {len(used)} materials could not be joined")
            return None
        for tile, member in zip(tiles, members, strict=True):
            uv[member] = tile.place(uv[member])
        grid = round(1 / tiles[0].side)
        decoded = {k: material_maps(named[k], notes, grid) for k in dict.fromkeys(own)}
        maps = merge_maps([decoded[k] for k in own], tiles)
        notes.append(f"the file's {len(used)} materials joined")
    return SourceMaterial(
        maps[..., :CHANNELS].contiguous(),
        torch.from_numpy(uv.astype(np.float32)),
        None if opaque else maps[..., OPACITY].contiguous(),
        corner_colors,
    )


def _corner_colors(file: MeshFile, faces: Indices, notes: list[str]) -> torch.Tensor | None:
    """[f, 3, 3] the vertex colours, if any is not white."""
    if file.colors is None or (np.nan_to_num(file.colors, nan=1.0) == 1).all():
        return None
    notes.append(
        "vertex colours kept as _COLOR_0, since viewers multiply COLOR_0 with the new albedo"
    )
    colors = file.colors[faces][..., :3]
    return torch.from_numpy(np.where(np.isnan(colors), 1.0, colors).astype(np.float32))


def kept_materials(file: MeshFile, notes: list[str]) -> list[FileMaterial]:
    """What the result keeps of the file's materials, which pictures included."""
    return [
        replace(
            material.without_maps(),
            emissive_image=passed_picture(
                material.emissive_image, f"emissive picture of {material.name[:40]!r}", notes
            ),
            occlusion_image=passed_picture(
                material.occlusion_image, f"occlusion picture of {material.name[:40]!r}", notes
            ),
        )
        for material in file.materials
    ]


def opacity_notes(file: MeshFile, material_of_face: Indices) -> list[str]:
    """A phrase that names the materials with an opacity, if there are any."""
    used = [file.materials[k] for k in np.unique(material_of_face) if k >= 0]
    modes = [f"{m.alpha_mode} of {m.name[:40]!r}" for m in used if m.alpha_mode != "OPAQUE"]
    if not modes:
        return []
    return [f"opacity is kept ({', '.join(modes)}) and shown in the result, not while optimised"]


LARGEST_PICTURE = 8192
LARGEST_MAP = 2048
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF")
COLOR_CHUNKS = {"gamma", "chromaticity", "icc_profile"}  # of a PNG, which glTF ignores
OPACITY = CHANNELS  # the channel behind those of a material
# First bytes of formats that are not read; those of some begin at byte 4.
SIGNATURES = {
    b"\xabKTX": "KTX", b"DDS ": "DDS", b"v/1\x01": "OpenEXR", b"#?": "Radiance HDR",
    b"8BPS": "Photoshop", b"<svg": "SVG", b"<?xml": "SVG", b"\xff\x0a": "JPEG XL",
    b"ftypavif": "AVIF", b"ftypheic": "HEIC", b"JXL ": "JPEG XL", b"jP  ": "JPEG 2000",
    b"<!DOCTYPE": "an HTML page", b"<html": "an HTML page", b"version https://git-lfs": "Git LFS's",
}  # fmt: skip
# Of files that no reader knows: too short to be looked for in those that one may.
LAST_SIGNATURES = {
    b"P1": "PBM", b"P2": "PGM", b"P3": "PPM", b"P4": "PBM", b"P5": "PGM", b"P6": "PPM",
    b"\x0a\x05": "PCX", b"\x01\xda": "SGI", b"\0\0\1\0": "ICO", b"icns": "ICNS", b"%!PS": "EPS",
    b"%PDF": "PDF", b"\xff\x4f\xff\x51": "JPEG 2000", b"glTF": "a GLB", b"PK\x03\x04": "a ZIP",
}  # fmt: skip


def material_maps(material: FileMaterial, notes: list[str], grid: int = 1) -> Tensor:
    """[h, w, 9]: as `material.py` describes and the opacity, sides powers of two up to 2048.

    Pictures that cannot be read are left out, with a note. The opacity of an OPAQUE material is 1.

    Args:
        material: as the file states it.
        notes: gets a line for each picture left out.
        grid: of how many tiles along a joint texture's side the material will fill one.
    """
    largest = max(1, LARGEST_MAP // (1 << (grid - 1).bit_length()))
    kinds = ("base colour", "roughness", "metallic", "normal")
    color, rough, metal, normal = (
        read_picture(content, f"{kind} picture{_of(material.name)}", largest, notes)
        for kind, content in zip(kinds, material.images, strict=True)
    )
    pictures = [p for p in (color, rough, metal, normal) if p is not None]
    height, width = (
        min(1 << (max([p.shape[k] for p in pictures], default=4) - 1).bit_length(), largest)
        for k in (1, 2)
    )
    maps = torch.ones(height, width, CHANNELS + 1)
    factor = torch.tensor(material.color)[:, None, None]
    albedo = factor.expand(3, height, width)
    if color is not None:
        *rgb, alpha = _resize(color, height, width)
        color = torch.stack(rgb)
        albedo = srgb_to_linear(color) * factor
        if material.alpha_mode != "OPAQUE":
            maps[..., OPACITY] = alpha
    if material.alpha_mode != "OPAQUE":
        maps[..., OPACITY] *= material.alpha
    encoded = color if color is not None and (factor == 1).all() else linear_to_srgb(albedo)
    maps[..., ALBEDO] = encoded.movedim(0, -1)
    for channel, value, picture, source in (
        (ROUGHNESS, material.roughness, rough, 1),
        (METALLIC, material.metallic, metal, 2),
    ):
        plane = 1.0 if picture is None else _resize(picture[source : source + 1], height, width)[0]
        maps[..., channel] = value * plane
    maps[..., NORMAL] = torch.tensor(FLAT_NORMAL)
    if normal is not None:
        direction = (2 * _resize(normal[:3], height, width) - 1).movedim(0, -1)
        scale = torch.tensor([material.normal_scale, material.normal_scale, 1.0])
        maps[..., NORMAL] = encode_normals(direction * scale)
    return maps.clamp_(0, 1).flip(0).contiguous()


def merge_maps(maps: list[Tensor], tiles: list[AtlasTile]) -> Tensor:
    """[s, s, 9]: the maps laid side by side in a joint texture, one tile each."""
    grid = round(1 / tiles[0].side)
    largest = max(max(m.shape[:2]) for m in maps)
    side = min(1 << (grid * largest - 1).bit_length(), LARGEST_MAP)
    centres = (np.arange(side) + 0.5) / side
    cell = np.minimum((centres * grid).astype(int), grid - 1)
    joint = torch.zeros(side, side, CHANNELS + 1)
    joint[..., NORMAL] = torch.tensor(FLAT_NORMAL)
    for own, tile in zip(maps, tiles, strict=True):
        column, row = (round(x * grid) for x in tile.origin)
        u, v = centres[cell == column], centres[cell == row]
        inside = tile.origin_of(np.stack(np.meshgrid(u, v), axis=-1))
        repeats = max(tile.size)
        most = max(1, round(side / grid / repeats))
        small = own.movedim(-1, 0)
        if max(own.shape[:2]) > most:
            shrink = most / max(own.shape[:2])
            small = _resize(small, *(max(1, round(n * shrink)) for n in own.shape[:2]))
        block = _repeat_sample(small.movedim(0, -1), torch.from_numpy(inside).float())
        rows, columns = (torch.from_numpy(np.flatnonzero(cell == k)) for k in (row, column))
        joint[rows[:, None], columns, :CHANNELS] = renormalized(block[..., :CHANNELS])
        joint[rows[:, None], columns, OPACITY] = block[..., OPACITY]
    return joint


def _repeat_sample(maps: Tensor, uv: Tensor) -> Tensor:
    """Bilinear, repeating; maps [h, w, c], uv [..., 2]."""
    height, width = maps.shape[:2]
    position = uv * torch.tensor([width, height]) - 0.5
    low = position.floor()
    share = position - low
    x, y = low.long().unbind(-1)
    result = torch.zeros(*uv.shape[:-1], maps.shape[-1])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (share[..., 0] if dx else 1 - share[..., 0]) * (
            share[..., 1] if dy else 1 - share[..., 1]
        )
        result += weight[..., None] * maps[(y + dy) % height, (x + dx) % width]
    return result


def read_picture(content: bytes | None, what: str, largest: int, notes: list[str]) -> Tensor | None:
    """[4, h, w] RGB and alpha in [0, 1], top row first; the size is read before the pixels are.

    Args:
        content: an encoded picture, or None.
        what: how notes call it.
        largest: pictures of more pixels a side are shrunk by a whole number, to that or more.
        notes: gets a line if there is a picture and it cannot be read.
    """
    if content is None:
        return None
    foreign = foreign_format(content)
    if foreign or not content:
        told = f"{foreign}, which is not read; convert it to PNG" if foreign else "empty"
        notes.append(f"{what} ignored: it is {told}")
        return None
    try:
        with warnings.catch_warnings():
            # it comes above 8192² pixels, which are refused
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > LARGEST_PICTURE**2:
            notes.append(f"{what} of {picture.width}×{picture.height} pixels ignored")
            return None
        shrink = max(1, min(picture.size) // largest)
        if picture.mode.startswith("I"):  # 16-bit grey, which a conversion to RGB would clip
            grey = np.asarray(picture, np.float32).clip(0, 65535) / 65535
            grey = np.asarray(Image.fromarray(grey).reduce(shrink))
            pixels = np.repeat(grey[..., None], 4, axis=2)
            pixels[..., 3] = 1
        else:
            # Apart: Pillow would blacken what is transparent.
            alpha = picture.convert("RGBA").getchannel("A").reduce(shrink)
            rgb = picture.convert("RGB").reduce(shrink)
            pixels = np.dstack((np.asarray(rgb), np.asarray(alpha))).astype(np.float32) / 255
    except UnidentifiedImageError:
        start = next((start for start in LAST_SIGNATURES if content.startswith(start)), None)
        told = f"begins with {content[:8]!r}" if start is None else f"is {LAST_SIGNATURES[start]}"
        notes.append(f"{what} ignored: it {told}, which is none of {', '.join(FORMATS)}")
        return None
    except Image.DecompressionBombError:
        notes.append(f"{what} of too many pixels ignored")
        return None
    except Exception as error:  # decoders raise whatever they like on damaged pictures
        notes.append(f"{what} ignored: it is damaged ({one_line(first_line(error))[:80]})")
        return None
    return torch.from_numpy(pixels).movedim(-1, 0)


def passed_picture(content: bytes | None, what: str, notes: list[str]) -> bytes | None:
    """A picture as a .glb may hold it: PNG, JPEG and WebP as they are, others as PNG.

    Returns:
        None where there is none or, with a note, where it cannot be read.
    """
    if read_picture(content, what, LARGEST_PICTURE, notes) is None or content is None:
        return None
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    plain = picture.format != "PNG" or not picture.info.keys() & COLOR_CHUNKS
    if picture.format in ("PNG", "JPEG", "WEBP") and plain and getattr(picture, "n_frames", 1) == 1:
        return content
    encoded = io.BytesIO()
    picture.convert("RGBA").save(encoded, "PNG", icc_profile=b"")
    return encoded.getvalue()


def foreign_format(content: bytes) -> str:
    """The name of a picture's format, if it is a known one that is not read; else ""."""
    for start, name in SIGNATURES.items():
        if content.startswith(start) or content[4 : 4 + len(start)] == start:
            return name
    return ""


def _of(name: str) -> str:
    return f" of {name[:40]!r}" if name else ""


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    return interpolate(
        picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]
