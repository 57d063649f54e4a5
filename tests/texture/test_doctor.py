"""``doctor`` tells the truth, whatever the hub says."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.texture import doctor
from tests.tiny_pipelines import save_deepfloyd_one, save_deepfloyd_two


class GatedRepoError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


class Hub:
    """Answers as the hub would."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self) -> "Hub":
        return self

    def model_info(self, name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        assert name
        assert revision is None
        assert timeout > 0
        return SimpleNamespace(siblings=())

    def auth_check(self, name: str) -> None:
        del name
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "state", "remedy"),
    [
        (None, "downloaded at first use, 0.8 GB", "hf download DeepFloyd/IF-I-M-v1.0"),
        (GatedRepoError(), "gated", "after accepting https://huggingface.co/DeepFloyd/IF-I-M-v1.0"),
        (RepositoryNotFoundError(), "missing on the hub", "check its name"),
    ],
    ids=["open", "gated", "missing"],
)
def test_what_the_hub_says_is_told(
    error: Exception | None, state: str, remedy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(error))
    hub, model = doctor.guidance_models(["DeepFloyd/IF-I-M-v1.0"])
    assert hub.ready
    assert model.state.startswith(state)
    assert remedy in model.remedy
    assert model.ready == (error is None)
    (prompt,) = (line for line in doctor.summary([hub, model]) if line.what == "--prompt")
    assert prompt.ready == (error is None)


def test_local_folders_are_looked_at(tmp_path: Path):
    one = str(save_deepfloyd_one(tmp_path / "one"))
    two = str(save_deepfloyd_two(tmp_path / "two"))
    without = Path(shutil.copytree(one, tmp_path / "without"))
    for file in (without / "unet").glob("*.safetensors"):
        file.unlink()
    found = doctor.guidance_models([one, two, str(without), str(tmp_path)])
    assert [finding.ready for finding in found] == [True, True, False, False]
    assert found[0].state.startswith("local, IF-I, stage 1")
    assert found[1].state.startswith("local, IF-II, stage 2")
    assert "no safetensors" in found[2].remedy
    assert "model_index.json" in found[3].remedy
    # Stage II alone cannot begin.
    assert not doctor.summary(found[1:])[-1].ready
    assert one in doctor.summary(found)[-1].remedy


def test_a_renderer_that_draws_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch):
    assert doctor.renderers()[0] == doctor.Finding("--renderer cpu", "renders a triangle", True)
    look_up = CpuBackend.sample_texture
    for name, wrong in (
        ("visibility", lambda _self, clip, _faces, size: torch.zeros(len(clip), *size).int()),
        ("sample_texture", lambda *arguments: look_up(*arguments) + 0.1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(CpuBackend, name, wrong)
            finding = doctor.renderers()[0]
            assert finding.ready is False
            assert finding.state.startswith("cannot render a triangle: RuntimeError")


def test_packages_of_strangers_are_named(monkeypatch: pytest.MonkeyPatch):
    installed = importlib.metadata.version
    known = {"drtk": "0.0.1", "diffrp-nvdiffrast": "0.3.3.1"}
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: known.get(name) or installed(name)
    )
    found = {finding.what: finding for finding in doctor.packages()}
    assert "placeholder" in found["drtk 0.0.1"].state
    assert "NVIDIA's 0.4.0" in found["diffrp-nvdiffrast 0.3.3.1"].remedy
    assert not found["drtk 0.0.1"].ready


def test_the_command_without_a_network(tmp_path: Path):
    """And with one model that was downloaded before."""
    repository = tmp_path / "hub" / "models--DeepFloyd--IF-I-L-v1.0"
    save_deepfloyd_one(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    done = subprocess.run(
        [sys.executable, "-m", "sdslab.texture", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"  yes  torch: {torch.__version__}, CUDA {torch.version.cuda or 'none'}" in lines
    assert any(line.startswith("  no   the hub: cannot be reached") for line in lines)
    assert "  yes  DeepFloyd/IF-I-L-v1.0: cached (stage 1, 0.9 B parameters)" in lines
    assert "  no   DeepFloyd/IF-II-L-v1.0: not here (stage 2, 1.2 B parameters)" in lines
    assert "--local-dir IF-II-L-v1.0   # elsewhere; then --sr-model IF-II-L-v1.0" in done.stdout
    assert "can run with DeepFloyd/IF-I-L-v1.0" in done.stdout
    assert "  yes  --renderer cpu: renders a triangle" in lines
    if not torch.cuda.is_available():
        assert "   –   --renderer triton: not needed without a GPU" in lines
        assert any("GPU: none" in line for line in lines)
