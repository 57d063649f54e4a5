"""The only folder that the files which a mesh names are read from."""

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from sdslab.meshes.mesh_file import MeshFileError

LARGEST_FILE = 512 * 2**20
# What pictures of formats that are not read begin with, or hold after four bytes.
OTHER_PICTURES = {
    b"\x76\x2f\x31\x01": "an OpenEXR picture", b"#?RADIANCE": "a Radiance picture",
    b"#?RGBE": "a Radiance picture", b"DDS ": "a DDS texture", b"\xabKTX": "a KTX texture",
    b"8BPS": "a Photoshop document", b"<svg": "an SVG drawing", b"<?xml": "an SVG drawing",
    b"ftypavif": "an AVIF picture", b"ftyphei": "a HEIF picture", b"%PDF": "a PDF document",
}  # fmt: skip


class MeshFolder:
    """Reads files beside a mesh and below, and no others."""

    def __init__(self, mesh: Path) -> None:
        self.root = mesh.parent.resolve()

    def read(self, uri: str) -> bytes:
        """The bytes of a file that a glTF mesh names by a relative URI.

        Raises:
            MeshFileError: the name leaves the folder (by "..", an absolute path, a URI scheme or a
                symbolic link), or there is no such file, or it is too large.
        """
        name = unquote(uri.strip()).replace("\\", "/")
        if ".." in name.split("/"):
            raise MeshFileError(f"{name[:80]!r} lies outside the mesh's folder")
        return self.load(self._checked(name, self.root))

    def find(self, name: str, near: str = "") -> tuple[bytes, str]:
        """The bytes of a file as OBJ and PLY files name them, often on another machine.

        The file is looked for in the folder `near`, then beside the mesh; then by its last part
        alone; then, in the same order, by a name that differs in case or in how Unicode composes
        its letters.

        Args:
            name: perhaps with backslashes, percent-encoded, or Latin-1 where the system is not.
            near: folder of the file that names it, from the mesh's own.

        Returns:
            The content, and the folder that it lies in, from the mesh's own.

        Raises:
            MeshFileError: as for `read`; nothing that lies elsewhere is read.
        """
        name = name.strip().replace("\\", "/")
        names = [name, unquote(name)]
        if not name.isascii():
            names.append(os.fsdecode(name.encode("latin-1", "replace")))
        names = list(dict.fromkeys([*names, *(n.rsplit("/", 1)[-1] for n in names)]))
        folders = list(dict.fromkeys([self.root / near, self.root]))
        reasons = []
        for same_case in (True, False):
            for spelled in filter(None, names):
                for folder in folders:
                    try:
                        path = self._checked(spelled, folder, same_case)
                        return self.load(path), str(path.parent.relative_to(self.root))
                    except MeshFileError as error:
                        reasons.append(error)
        reasons += [MeshFileError("a file without a name")]
        raise next((r for r in reasons if "outside" in str(r)), reasons[0])

    def picture(self, name: str, near: str = "") -> bytes:
        """The bytes of a picture of a format that is read, found as `find` does.

        Raises:
            MeshFileError: as for `find`, or it is a picture of another kind.
        """
        content, _ = self.find(name, near)
        for start, kind in OTHER_PICTURES.items():
            if content[: len(start)] == start or content[4 : 4 + len(start)] == start:
                raise MeshFileError(f"{name[:80]!r} is {kind}, which is not read; make it a PNG")
        return content

    def _checked(self, name: str, folder: Path, same_case: bool = True) -> Path:
        shown = repr(name[:80])
        if "\0" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|/", name):
            raise MeshFileError(f"{shown} lies outside the mesh's folder")
        try:
            path = folder
            for part in name.split("/"):
                path = (path / part).resolve() if same_case else _any_case(path, part).resolve()
                if not path.is_relative_to(self.root):
                    raise MeshFileError(f"{shown} lies outside the mesh's folder")
            if not os.path.isfile(path):
                raise MeshFileError(f"{shown} is missing")
        except OSError as error:
            raise MeshFileError(f"{shown} cannot be read ({error.strerror})") from error
        return path

    def load(self, path: Path) -> bytes:
        """The bytes of a file in the folder; all that is read comes through here."""
        shown = repr(str(path.relative_to(self.root))[:80])
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise MeshFileError(f"{shown} is larger than {LARGEST_FILE >> 20} MiB")
            return path.read_bytes()
        except OSError as error:
            raise MeshFileError(f"{shown} cannot be read ({error.strerror})") from error


def _any_case(folder: Path, name: str) -> Path:
    """The first entry of a folder whose name differs at most in case and composition."""
    if name in ("", ".", "..") or not folder.is_dir():
        return folder / name
    wanted = unicodedata.normalize("NFC", name).casefold()
    entries = sorted(os.listdir(folder))
    same = (e for e in entries if unicodedata.normalize("NFC", e).casefold() == wanted)
    return folder / next(same, name)
