"""Prompts are encoded as diffusers' own pipelines do, once, and kept under all they depend on."""

import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5EncoderModel,
)

from sdslab.denoisers import prompts as module
from sdslab.denoisers.pipelines import PipelineSource
from sdslab.denoisers.prompts import LONGEST_PROMPT, Prompts, encode_prompts
from sdslab.errors import UserError
from tests.tiny_pipelines import save_deepfloyd_one, save_sdxl, save_stable_diffusion

CPU = torch.device("cpu")
# Only their text encoders are given to them, which their annotations do not foresee.
IFPipeline: Any = diffusers.IFPipeline
StableDiffusionPipeline: Any = diffusers.StableDiffusionPipeline
StableDiffusionXLPipeline: Any = diffusers.StableDiffusionXLPipeline


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def deepfloyd(tmp_path: Path) -> Path:
    return save_deepfloyd_one(tmp_path / "if-1")


def encode(folder: Path, *texts: str, negative: str = "", dtype: Any = torch.float32) -> Prompts:
    return encode_prompts(PipelineSource(str(folder)), texts, negative, CPU, dtype)


def test_t5_as_diffusers_encodes(deepfloyd: Path):
    pipeline = IFPipeline(
        AutoTokenizer.from_pretrained(deepfloyd / "tokenizer"),
        T5EncoderModel.from_pretrained(deepfloyd / "text_encoder"),
        None, None, None, None, None, requires_safety_checker=False,
    )  # fmt: skip
    expected = pipeline.encode_prompt(
        "A cow in a suit", device=CPU, negative_prompt="stone", clean_caption=False
    )
    actual = encode(deepfloyd, "A cow in a suit", negative="stone")
    assert actual.unconditional == 1
    torch.testing.assert_close(actual.embeddings, torch.cat(expected).detach())


def test_clip_as_diffusers_encodes(tmp_path: Path):
    folder = save_stable_diffusion(tmp_path / "sd")
    pipeline = StableDiffusionPipeline(
        None, CLIPTextModel.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"), None, None, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    expected = pipeline.encode_prompt("a cow", CPU, 1, True, negative_prompt="stone")
    actual = encode(folder, "a cow", negative="stone")
    torch.testing.assert_close(actual.embeddings, torch.cat(expected).detach())


@pytest.mark.parametrize("negative", ["", "stone"])
def test_sdxl_as_diffusers_encodes(negative: str, tmp_path: Path):
    folder = save_sdxl(tmp_path / "sdxl")
    pipeline = StableDiffusionXLPipeline(
        None, CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        AutoTokenizer.from_pretrained(folder / "tokenizer_2"), None, None,
    )  # fmt: skip
    states = pipeline.encode_prompt("a cow", device=CPU, negative_prompt=negative or None)
    actual = encode(folder, "a cow", negative=negative)
    torch.testing.assert_close(actual.embeddings, torch.cat(states[:2]).detach())
    assert actual.pooled is not None
    torch.testing.assert_close(actual.pooled, torch.cat(states[2:]).detach())


def test_a_second_run_loads_no_encoder(deepfloyd: Path, monkeypatch: pytest.MonkeyPatch):
    first = encode(deepfloyd, "a cow", "a cow, front view")

    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(module, "_encoder", refuse)
    assert encode(deepfloyd, "a cow", "a cow, front view").embeddings.equal(first.embeddings)
    for changed in (
        lambda: encode(deepfloyd, "a stone", "a cow, front view"),
        lambda: encode(deepfloyd, "a cow", "a cow, front view", negative="stone"),
        lambda: encode(deepfloyd, "a cow", "a cow, front view", dtype=torch.bfloat16),
    ):
        with pytest.raises(AssertionError, match="an encoder was loaded"):
            changed()


def test_another_models_embeddings_are_not_taken(
    deepfloyd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encode(deepfloyd, "a cow")
    loaded = []
    load = module._encoder
    monkeypatch.setattr(module, "_encoder", lambda *values: loaded.append(1) or load(*values))
    encode(save_deepfloyd_one(tmp_path / "another"), "a cow")
    assert len(loaded) == 1
    weights = next((deepfloyd / "text_encoder").glob("*.safetensors"))
    os.utime(weights, (1, 1))  # replaced since
    encode(deepfloyd, "a cow")
    assert len(loaded) == 2


@pytest.mark.parametrize(
    "prompt",
    ["../../cow/suit", "a/b\\c:d", "cow " * 2500, "牛 🐄", "cow\n\x1b[31m\x00view"],
    ids=["dots", "separators", "10,000 characters", "unicode", "control characters"],
)
def test_a_prompt_is_never_a_path(prompt: str, deepfloyd: Path, own_cache: Path):
    assert encode(deepfloyd, prompt).embeddings.isfinite().all()
    files = [path for path in own_cache.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".safetensors"]
    assert len(files[0].stem) == 64


def test_files_of_embeddings(tmp_path: Path):
    file = tmp_path / "prompts.safetensors"
    saved = Prompts(torch.randn(6, 4, 8), torch.randn(6, 8))
    saved.save(file)
    loaded = Prompts.load(file, 6)
    assert loaded.embeddings.equal(saved.embeddings)
    assert loaded.pooled is not None
    Prompts(saved.embeddings[:2]).save(file)  # one prompt for all sides, and the negative one
    rows = Prompts.load(file, 6).embeddings
    assert all(row.equal(saved.embeddings[0]) for row in rows[:5])
    assert rows[5].equal(saved.embeddings[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got .*nothing"),
        (b"not safetensors", "must be a safetensors file"),
        (torch.zeros(3, 4, 8), r"must be \[6, tokens, channels\]"),
        (torch.full((6, 4, 8), float("nan")), "must be finite"),
    ],
    ids=["missing", "damaged", "rows", "NaN"],
)
def test_bad_files_of_embeddings_are_one_line(content: Any, message: str, tmp_path: Path):
    file = tmp_path / ("nothing" if content is None else "file.safetensors")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        Prompts(content).save(file)
    with pytest.raises(UserError, match=message) as info:
        Prompts.load(file, 6)
    assert "\n" not in str(info.value)


def test_pickled_embeddings_are_refused_with_the_line_that_converts_them(tmp_path: Path):
    file = tmp_path / "prompts.pt"
    torch.save({"embeddings": torch.zeros(2, 3, 4)}, file)
    with pytest.raises(UserError, match=r"convert it: python -c .*weights_only=True"):
        Prompts.load(file, 6)


def test_empty_and_endless_prompts_are_refused(deepfloyd: Path):
    with pytest.raises(UserError, match="--prompt must say something"):
        encode(deepfloyd, " ")
    with pytest.raises(UserError, match="must have at most 100000 characters"):
        encode(deepfloyd, "a" * (LONGEST_PROMPT + 1))


def test_pickled_encoders_are_refused(deepfloyd: Path):
    for file in (deepfloyd / "text_encoder").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match="must be safetensors"):
        encode(deepfloyd, "a cow")
