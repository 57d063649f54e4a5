"""``python -m sdslab.texture doctor``: what this machine can run, and what closes each gap."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from sdslab.denoisers.pipelines import KNOWN_MODELS, KnownModel, PipelineSource
from sdslab.denoisers.unet import KINDS, STAGE_OF
from sdslab.errors import UserError, first_line
from sdslab.files.weights import ask_hub
from sdslab.machine import device_name
from sdslab.rendering.backends import NVDIFFRAST_HELP, TRITON_HELP, RendererName, make_backend
from sdslab.rendering.render_backend import RenderBackend

GIB = 2**30
# Distributions on PyPI that are not what one installs them for.
STRANGERS = {
    "diffrp-nvdiffrast": (
        "a stranger's copy of nvdiffrast, which cannot be imported under pybind11 3",
        f"pip uninstall diffrp-nvdiffrast; {NVDIFFRAST_HELP}",
    ),
    "drtk": (
        "a stranger's placeholder if it came from PyPI; nothing here uses it",
        "pip uninstall drtk",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: was looked at.
        state: that it is in.
        ready: whether it can be used; None where it is not needed here.
        remedy: the command or step that closes the gap, or "".
        stage: that a model serves.
    """

    what: str
    state: str
    ready: bool | None
    remedy: str = ""
    stage: int | None = None


def doctor(models: Sequence[str]) -> None:
    """Prints what this machine can run: its devices, packages and models, and what closes each gap.

    Args:
        models: local pipeline folders or hub ids to look at, in place of the known ones.
    """
    console = Console()
    _print(console, "machine", machine())
    _print(console, "renderers", renderers())
    _print(console, "packages", packages())
    found = guidance_models(models)
    _print(console, "models", found)
    _print(console, "what runs", summary(found))


def machine() -> list[Finding]:
    """Processor, memory and GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    findings = [
        Finding("Python", f"{platform.python_version()} on {platform.system()}", True),
        Finding(
            "processor",
            f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {memory:.0f} GiB",
            True,
        ),
        Finding("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}", True),
    ]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            state = f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
            findings.append(Finding(f"cuda:{number}", state, True))
    elif shutil.which("nvidia-smi") is not None:
        version = torch.__version__.partition("+")[0]
        remedy = f"pip install --force-reinstall torch=={version}"
        state = "an NVIDIA driver is here, but torch does not see a GPU"
        findings.append(Finding("GPU", state, False, remedy))
    else:
        findings.append(Finding("GPU", "none; everything runs on the CPU", None))
    return [*findings, kernels()]


def kernels() -> Finding:
    """The CPU kernels: compiles one, and says where it is kept."""
    from sdslab.kernels.compiled import CACHE, NOTE
    from sdslab.kernels.philox_cpu import bits_cpu

    bits_cpu(torch.arange(1), (0, 0, 0, 0), 4)
    return Finding("CPU kernels", NOTE or f"compiled once, and kept in {CACHE}", True)


def renderers() -> list[Finding]:
    """Each of the renderer's backends: renders a triangle with it."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    names: tuple[tuple[RendererName, torch.device], ...] = (
        ("cpu", cpu), ("triton", cuda), ("nvdiffrast", cuda),
    )  # fmt: skip
    return [_renderer(name, device) for name, device in names]


def _renderer(name: RendererName, device: torch.device) -> Finding:
    what = f"--renderer {name}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return Finding(what, "not needed without a GPU", None)
    needed = None if name == "nvdiffrast" else False
    try:
        render_triangle(make_backend(name, device), device)
    except UserError as error:
        return Finding(what, "cannot run", needed, str(error))
    except Exception as error:  # whatever a compiler or a driver raises
        remedy = NVDIFFRAST_HELP if name == "nvdiffrast" else "use --device cpu, and report this"
        state = f"cannot render a triangle: {type(error).__name__}: {first_line(error)}"
        return Finding(what, state, needed, remedy)
    return Finding(what, "renders a triangle", True)


def render_triangle(backend: RenderBackend, device: torch.device) -> None:
    """Renders half a picture of 8 × 8 pixels in one colour.

    Raises:
        RuntimeError: something else came out.
    """
    clip = torch.tensor([[[-1, -1, 0, 1], [1.1, -1, 0, 1], [-1, 1.1, 0, 1]]], device=device)
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32, device=device)
    uv = torch.tensor([[0.0, 0], [1, 0], [0, 1]], device=device)
    ids = backend.visibility(clip.float(), faces, (8, 8))
    seen = backend.resolve(clip.float(), faces, ids, uv)
    maps = torch.full((4, 4, 3), 0.25, device=device)
    colors = backend.sample_texture(maps, seen.attributes[:, :2], seen.uv_derivatives)
    expected = torch.ones(8, 8, dtype=torch.int32).tril()
    if not ids[0].cpu().equal(expected) or (colors - 0.25).abs().max() > 1e-4:
        raise RuntimeError("the picture is not the one that it must be")


def packages() -> list[Finding]:
    """Packages that some options want, and some that are not what their names say."""
    findings = []
    if torch.cuda.is_available():
        findings.append(_package("triton", "fused kernels", True, TRITON_HELP))
        findings.append(_package("bitsandbytes", "T5 in 8 bits", None, "pip install bitsandbytes"))
    findings.append(_package("transformers", "prompts", True, "pip install transformers"))
    findings.append(_package("viser", "--live", None, "pip install viser"))
    findings.append(_package("tensorboard", "its log", None, "pip install tensorboard"))
    for name, (state, remedy) in STRANGERS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            findings.append(
                Finding(f"{name} {importlib.metadata.version(name)}", state, False, remedy)
            )
    return findings


def guidance_models(names: Sequence[str] = ()) -> list[Finding]:
    """Each model: local, cached, to be downloaded, gated, or missing."""
    known = {model.id: model for model in KNOWN_MODELS}
    names = names or list(known)
    unreachable, hub = None, []
    if any(not PipelineSource(name).is_local for name in names):
        answer = ask_hub(KNOWN_MODELS[-1].id)
        unreachable = first_line(answer) if isinstance(answer, Exception) else None
        state = "answers" if unreachable is None else f"cannot be reached: {unreachable}"
        hub = [Finding("the hub", state, unreachable is None)]
    return hub + [
        _local(name)
        if PipelineSource(name).is_local
        else _on_hub(name, known.get(name), unreachable is None)
        for name in names
    ]


def summary(models: Sequence[Finding]) -> list[Finding]:
    """Which ``--guidance`` can run here."""
    command = "python -m sdslab.texture"
    findings = [
        Finding("--exemplar", "needs no weights and no GPU", True, f"{command} --exemplar gravel"),
        Finding("--target", "needs no weights and no GPU", True, f"{command} --target coffee"),
    ]
    usable = [model.what for model in models if model.ready and model.stage == 1]
    if not usable:
        state = "no model is here; see above what would bring one"
        return [*findings, Finding("--prompt", state, False)]
    state = f"can run with {', '.join(usable)}"
    if not torch.cuda.is_available():
        state += "; without a GPU a real model takes hours"
    remedy = f'{command} MESH --prompt "…" --model {usable[0]}'
    return [*findings, Finding("--prompt", state, True, remedy)]


def _package(name: str, purpose: str, needed: bool | None, remedy: str) -> Finding:
    what = f"{name} ({purpose})"
    if importlib.util.find_spec(name) is None:
        return Finding(what, "missing", False if needed else None, remedy)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # installed under another name
        version = "here"
    return Finding(what, version, True)


def _local(name: str) -> Finding:
    """A pipeline's folder here."""
    source = PipelineSource(name, "doctor")
    try:
        kind = KINDS.get(source.index()["_class_name"])
        if kind is None:
            raise UserError(f"its class must be one of {', '.join(KINDS)}")
        unet = source.folder(["unet", "scheduler"]) / "unet"
        if not _has_weights(unet):
            raise UserError(f"no safetensors in {unet}; save the pipeline with save_pretrained")
    except UserError as error:
        return Finding(name, "broken", False, str(error))
    size = sum(file.stat().st_size for file in unet.glob("*.safetensors")) / 1e9
    state = f"local, {kind}, stage {STAGE_OF[kind]}, UNet {size:.2g} GB"
    return Finding(name, state, True, stage=STAGE_OF[kind])


def _on_hub(name: str, model: KnownModel | None, reachable: bool) -> Finding:
    about = f" (stage {model.stage}, {model.parameters} parameters)" if model else ""
    stage = model.stage if model else None
    option = "--sr-model" if stage == 2 else "--model"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Finding(name, "no folder here, and no hub id", False, "check the path")
    if _is_cached(name):
        return Finding(name, f"cached{about}", True, stage=stage)
    if not reachable:
        folder = name.rpartition("/")[2]
        remedy = f"hf download {name} --local-dir {folder}   # elsewhere; then {option} {folder}"
        return Finding(name, f"not here{about}", False, remedy, stage)
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(name)
    except Exception as error:
        kind = type(error).__name__
        if kind == "GatedRepoError":
            remedy = f"hf auth login   # after accepting https://huggingface.co/{name}"
            return Finding(name, f"gated{about}", False, remedy, stage)
        remedy = "hf auth login   # if it is private; else check its name"
        return Finding(name, f"missing on the hub ({kind}){about}", False, remedy, stage)
    size = f", {model.download_gb:g} GB" if model else ""
    return Finding(
        name, f"downloaded at first use{size}{about}", True, f"hf download {name}", stage
    )


def _is_cached(name: str) -> bool:
    """Whether a snapshot with a UNet's weights was downloaded before."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, local_files_only=True)
    except Exception:  # no such snapshot, or no id at all
        return False
    return _has_weights(Path(folder) / "unet")


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _print(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """A line each, and what closes the gap below, whole: it is there to be copied."""
    marks = {True: "[green]yes[/]", False: "[red]no[/] ", None: " – "}
    console.print(f"[bold]{title}[/]")
    for finding in findings:
        line = f"  {marks[finding.ready]}  {escape(finding.what)}: {escape(finding.state)}"
        console.print(line, highlight=False, soft_wrap=True)
        if finding.remedy:
            console.print(
                f"         {finding.remedy}", markup=False, highlight=False, soft_wrap=True
            )
