import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sdslab.diffusion_space import LatentSpace
from sdslab.errors import UserError
from sdslab.files.weights import SUFFIXES, conversion_line, refuse_pickle


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pickles_are_known_by_their_names(suffix: str, tmp_path: Path):
    for name in (f"weights{suffix}", f"WEIGHTS{suffix.upper()}"):
        (tmp_path / name).write_bytes(b"whatever")
        with pytest.raises(UserError, match=r"must be safetensors .* convert it: python -c"):
            refuse_pickle(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickles_are_known_by_their_content(protocol: int, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(UserError, match="any code"):
        refuse_pickle(path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_s_files_are_known_by_their_content(zipped: bool, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="any code"):
        refuse_pickle(path)


def test_other_files_pass(tmp_path: Path):
    refuse_pickle(tmp_path / "missing.pt")
    refuse_pickle(tmp_path)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"x": torch.ones(3)}, path)
    refuse_pickle(path)
    path.write_bytes(b"")
    refuse_pickle(path)


def test_the_line_in_the_message_converts(tmp_path: Path):
    state = {"weight": torch.randn(3, 2), "bias": torch.zeros(3)}
    path = tmp_path / "my weights.pt"
    torch.save({"state_dict": state}, path)
    command = conversion_line(path).replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    converted = safetensors.torch.load_file(tmp_path / "my weights.safetensors")
    assert converted.keys() == state.keys()
    assert all(converted[name].equal(state[name]) for name in state)


def test_a_vae_is_never_read_from_a_pickle(tmp_path: Path):
    path = tmp_path / "vae.ckpt"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="convert it: python"):
        LatentSpace.load(path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    path.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"convert it: python .*model\.safetensors"):
        LatentSpace.load(tmp_path)
