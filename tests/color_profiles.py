"""ICC profiles written by hand: primaries or grey, and one exponent for all channels."""

import struct
from collections.abc import Sequence

import numpy as np

D65 = (0.95047, 1.0, 1.08883)
D50 = (0.96422, 1.0, 0.82521)
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def rgb_to_xyz(primaries: Sequence[tuple[float, float]]) -> np.ndarray:
    """[3, 3] from linear RGB with a D65 white to XYZ under it."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def rgb_profile(primaries: Sequence[tuple[float, float]], exponent: float) -> bytes:
    """A version 2 matrix profile, adapted to D50 as the format wants."""
    cones = (BRADFORD @ np.array(D50)) / (BRADFORD @ np.array(D65))
    adapted = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ rgb_to_xyz(primaries)
    tags = {f"{name}XYZ": _xyz(adapted[:, i]) for i, name in enumerate("rgb")}
    return _profile(b"RGB ", tags | {f"{name}TRC": _curve(exponent) for name in "rgb"})


def grey_profile(exponent: float) -> bytes:
    """A version 2 grey profile."""
    return _profile(b"GRAY", {"kTRC": _curve(exponent)})


def _profile(space: bytes, tags: dict[str, bytes]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {"desc": text, "wtpt": _xyz(D50), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    first = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name.encode(), first + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    length = first + len(body)
    header = struct.pack(">I4xI4s4s4s", length, 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in D50))
    return header + bytes(128 - len(header)) + table + body


def _xyz(values: Sequence[float] | np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def _curve(exponent: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256)) + bytes(2)
