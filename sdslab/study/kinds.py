"""The kinds of study: what each is as data, and what runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of these finished pieces are kept: they go on where they were stopped.
SAVED_KINDS = ("reconstruction", "exemplar", "exemplar_mesh")


@dataclass(frozen=True)
class StudyFile:
    """How a kind of study is written down.

    Attributes:
        study: its dataclass, with a name, a preset and settings.
        load: reads a file with one of its presets.
        check: refuses one that was not read by ``load``, and makes no sense; of ``SAVED_KINDS``.
    """

    study: type[Any]
    load: Callable[[Path, str | None], Any]
    check: Callable[[Any, str], None] | None = None


def study_file(kind: str) -> StudyFile:
    """What a study of a kind is as data. Imports nothing heavy."""
    match kind:
        case "reconstruction":
            from sdslab.study.specification import Study, check_study, load_study

            return StudyFile(Study, load_study, check_study)
        case "exemplar":
            from sdslab.study.exemplar_specification import (
                ExemplarStudy,
                check_exemplar_study,
                load_exemplar_study,
            )

            return StudyFile(ExemplarStudy, load_exemplar_study, check_exemplar_study)
        case "exemplar_mesh":
            from sdslab.study.exemplar_mesh_specification import (
                MeshStudy,
                check_mesh_study,
                load_mesh_study,
            )

            return StudyFile(MeshStudy, load_mesh_study, check_mesh_study)
        case "renderer":
            from sdslab.study.renderer_specification import RendererStudy, load_renderer_study

            return StudyFile(RendererStudy, load_renderer_study)
        case "texture_step":
            from sdslab.study.texture_step_specification import (
                TextureStepStudy,
                load_texture_step_study,
            )

            return StudyFile(TextureStepStudy, load_texture_step_study)
        case "figure2_speed":
            from sdslab.study.figure2_speed_specification import (
                Figure2SpeedStudy,
                load_figure2_speed_study,
            )

            return StudyFile(Figure2SpeedStudy, load_figure2_speed_study)
        case _:
            from sdslab.study.kernel_specification import KernelStudy, load_kernel_study

            return StudyFile(KernelStudy, load_kernel_study)


def runner(kind: str) -> Callable[..., None]:
    """What runs a study of a kind: takes the study and the names of the rows to run, () for all.

    Runners of ``SAVED_KINDS`` take ``fresh`` and ``accept_code`` as well.
    """
    match kind:
        case "reconstruction":
            from sdslab.study.runner import run_study as run
        case "exemplar":
            from sdslab.study.exemplar_runner import run_exemplar_study as run
        case "exemplar_mesh":
            from sdslab.study.exemplar_mesh_runner import run_mesh_study as run
        case "renderer":
            from sdslab.study.renderer_runner import run_renderer_study as run
        case "texture_step":
            from sdslab.study.texture_step_runner import run_texture_step_study as run
        case "figure2_speed":
            from sdslab.study.figure2_speed_runner import run_figure2_speed_study as run
        case _:
            from sdslab.study.kernel_runner import run_kernel_study as run
    return run
