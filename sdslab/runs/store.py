"""Finished pieces of a run on disk: tensors and numbers in one file each, whole or not at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sdslab.errors import one_line
from sdslab.files.atomic_write import atomic_write
from sdslab.files.disk_cache import content_hash
from sdslab.runs.checkpoint import Checkpoints, OtherCodeError, code_changes

PACKAGE = Path(__file__).parents[1]
Result = tuple[dict[str, Tensor], dict[str, Any]]


def code_of(sources: tuple[str, ...], **versions: str | None) -> dict[str, dict[str, Any]]:
    """What makes results: digests of source files and folders, and versions of packages.

    Args:
        sources: relative to the package.
        versions: by package.
    """
    return {"code": {source: _digest(PACKAGE / source) for source in sources}, "versions": versions}


def _digest(source: Path) -> str:
    files = [source] if source.suffix else sorted(source.rglob("*.py"))
    texts = [[str(file.relative_to(PACKAGE)), file.read_text("utf-8")] for file in files]
    return content_hash(texts)


class ResultStore:
    """The files of one folder, each named by what it is, what it depends on and what made it.

    Args:
        folder: made when something is saved.
        code: what makes results, in tables ``code`` (digests) and ``versions`` (of packages).
        version: of this program, in words.
        tell: gets a line when results of other code are found.
        fresh: takes no results but those that it saved itself.
        accept_code: takes results of other code where there is none of this one.

    Attributes:
        changes: what was other about the code of results that were taken, a few words each.
    """

    def __init__(
        self,
        folder: Path,
        code: Mapping[str, Any],
        version: str,
        tell: Callable[[str], None],
        *,
        fresh: bool = False,
        accept_code: bool = False,
    ) -> None:
        self.folder, self.code, self.version = folder, dict(code), version
        self.fresh, self.accept_code = fresh, accept_code
        self.changes: tuple[str, ...] = ()
        self._tell, self._told = tell, False
        self._saved: set[Path] = set()
        self._code_key = content_hash(self.code)[:8]

    def path(self, stem: str, key: str) -> Path:
        """Where this code keeps the result ``stem`` of everything that ``key`` stands for."""
        return self.folder / f"{stem}-{key}-{self._code_key}.safetensors"

    def save(self, path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Writes tensors and JSON-able numbers at a `path`, with the code that made them."""
        write_result(path, tensors, {**numbers, "made_by": {"version": self.version, **self.code}})
        self._saved.add(path)

    def load(self, path: Path) -> Result | None:
        """The result at a `path`, or the newest of other code where that is accepted.

        Returns:
            Tensors and numbers; None where there are none, or only damaged ones.
        """
        if self.fresh and path not in self._saved:
            return None
        own = read_result(path)
        if own is not None:
            own[1].pop("made_by", None)
            return own
        others = path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.safetensors")
        for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
            found = read_result(other)
            if found is None:
                continue
            made_by = found[1].pop("made_by", None)
            made_by = made_by if isinstance(made_by, dict) else {}
            version = one_line(str(made_by.pop("version", "an unknown version")))
            self.note(code_changes(made_by, self.code), version)
            return found if self.accept_code else None
        return None

    def partial(self, path: Path, key: str) -> Checkpoints:
        """Checkpoints of the piece whose result will lie at `path`.

        Those that the piece cannot go on from are removed.
        """
        folder = path.with_name(path.stem.rpartition("-")[0])
        partial = Checkpoints(folder, {"cell": key, **self.code}, accept_code=self.accept_code)
        try:
            saved = None if self.fresh else partial.latest()
        except OtherCodeError as error:
            self.note(error.changes)
            saved = None
        if saved is None:
            partial.clear()
        elif saved.code_changes:
            self.note(saved.code_changes)
        return partial

    def note(self, changes: tuple[str, ...], version: str = "another version") -> None:
        """Tells the user, once, that there are results of other code and what becomes of them."""
        if self.accept_code:
            self.changes = tuple(dict.fromkeys((*self.changes, *changes)))
        if self._told:
            return
        self._told = True
        what = f"results in {self.folder} were made by {version}, this is {self.version}"
        how = "are made again; --accept-code-change takes them"
        how = "are taken all the same" if self.accept_code else how
        self._tell(f"{what}; what changed: {', '.join(changes)}; they {how}")


def write_result(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Writes tensors and JSON-able numbers as safetensors."""
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        content = safetensors.torch.save(held, {"result": json.dumps(numbers)})
        temporary.write_bytes(content)


def read_result(path: Path) -> Result | None:
    """Reads them back; None where there is no such file, or only a damaged one."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["result"])
            if not isinstance(numbers, dict):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, numbers  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        return None
