"""Source of a diffusers pipeline: a local folder, or the hub through its cache."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError
from sdslab.files.disk_cache import content_hash
from sdslab.files.hub import ask_hub, not_available, require_hub_id


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline by its name.

    Attributes:
        name: a local folder in diffusers' format, or a hub id such as DeepFloyd/IF-I-XL-v1.0.
        option: command-line option that gave the name, for messages.
        revision: a branch, tag or commit on the hub.
    """

    name: str
    option: str = "--model"
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the name is a local folder."""
        return Path(self.name).expanduser().is_dir()

    def folder(self, parts: Sequence[str] = (), half: bool = False) -> Path:
        """A local folder that holds ``model_index.json`` and the named parts; may download them.

        Args:
            parts: subfolders, such as "unet".
            half: take weights in half precision where there are any.

        Raises:
            UserError: no such folder or model, gated, no network, or weights that are pickles only.
        """
        if self.is_local:
            folder = Path(self.name).expanduser()
        else:
            require_hub_id(self.option, self.name, "DeepFloyd/IF-I-XL-v1.0")
            folder = self._download(parts, half)
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"{self.option} must be a pipeline's folder with a model_index.json, got "
                f"{self.name!r}, which has none; save the pipeline there with save_pretrained"
            )
        for part in parts:
            if not (folder / part).is_dir():
                raise UserError(
                    f"{self.option} {self.name} must have a {part} folder, got none; download the "
                    f"whole pipeline"
                )
        return folder

    def index(self) -> dict[str, Any]:
        """The pipeline's own ``model_index.json``."""
        path = self.folder() / "model_index.json"
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(index.get("_class_name"), str):
                raise ValueError("it has no _class_name")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.option} {self.name} must have a readable model_index.json, got {error}; "
                f"download or save the pipeline again"
            ) from error
        return index

    def digest(self, parts: Sequence[str]) -> str:
        """Changes whenever the parts do: commit on the hub, sizes and times of files here."""
        folder = self.folder()
        if not self.is_local:
            return content_hash(self.name, folder.name)  # the snapshot's commit
        files = [
            [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
            for part in parts
            for path in sorted((folder / part).rglob("*"))
            if path.is_file()
        ]
        return content_hash(str(folder.resolve()), files)

    def _download(self, parts: Sequence[str], half: bool) -> Path:
        from huggingface_hub import snapshot_download

        answer = ask_hub(self.name, self.revision)
        patterns = ["model_index.json"]
        for part in parts:
            unknown = isinstance(answer, Exception)
            patterns += [f"{part}/*"] if unknown else self._files_of(part, answer, half)
        try:
            return Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    allow_patterns=patterns,
                    local_files_only=isinstance(answer, Exception),
                )
            )
        except Exception as error:
            raise not_available(
                self.option,
                self.name,
                answer if isinstance(answer, Exception) else error,
                "; without weights, --exemplar PHOTO textures a mesh like a photo",
            ) from error

    def _files_of(self, part: str, files: Sequence[str], half: bool) -> list[str]:
        own = [file for file in files if file.startswith(f"{part}/")]
        weights = [file for file in own if file.endswith(".safetensors")]
        if not weights and any(file.endswith((".bin", ".ckpt", ".pt")) for file in own):
            raise UserError(
                f"{self.option} {self.name} must have safetensors weights (pickles are never "
                f"read), got pickles only in {part}; convert them with save_pretrained"
            )
        halves = [file for file in weights if ".fp16." in file]
        chosen = halves if half and halves else [file for file in weights if file not in halves]
        small = [
            file
            for file in own
            if file.endswith((".json", ".txt", ".model")) and file not in weights
        ]
        return [*small, *(chosen or weights)]
