"""What a library's user can get wrong is said in the library's own words.

The mistakes are made in a process of their own: in this one, shapes in signatures are checked.
"""

import subprocess
import sys
import textwrap

import pytest

SET_UP = """
    import numpy as np, torch
    from sdslab.denoisers.degenerate import DegenerateDenoiser
    from sdslab.denoisers.denoiser import Denoiser, Prediction
    from sdslab.denoisers.wrappers import ClassifierFreeGuidance
    from sdslab.denoisers.noise_schedule import WEIGHTINGS, NoiseSchedule, UniformTimesteps
    from sdslab.diffusion_space import LatentSpace, PixelSpace
    from sdslab.distillation.sds import exact_sds_gradient, sds_gradient
    from sdslab.distillation.sr_sds import sr_sds_gradient
    from sdslab.pictures.image_io import load_image
    from sdslab.kernels import SR_CONDITION_STREAM, NoiseKey
    from sdslab.parameterizations.deep_image_prior import DeepImagePrior
    from sdslab.parameterizations.latent import LatentGrid
    from sdslab.parameterizations.pixel import PixelGrid, TexelGrid

    schedule, space = NoiseSchedule.deepfloyd_if(), LatentSpace.load()
    x = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)
    key, both = NoiseKey(0, 0, torch.arange(2)), torch.tensor([500, 500])
    other_key = NoiseKey(0, 0, torch.arange(2), SR_CONDITION_STREAM)
    exact = DegenerateDenoiser(x / 2, schedule)

    class Mine(Denoiser):
        def __init__(self, predict, **attributes):
            self.function, self.__dict__ = predict, {"function": predict, **attributes}

        def predict(self, x_t, t, condition=None):
            return self.function(x_t)

    def says(output):
        return Mine(lambda x_t: output, schedule=schedule)

    def sds(z=x, denoiser=exact, t=both, noise=key, weighting="x0_castex", **options):
        return sds_gradient(z, denoiser, t, noise, weighting=weighting, **options)

    def sr(render=x, t=both, **options):
        options = {"weighting": "x0_castex", "low_size": 2, **options}
        return sr_sds_gradient(x, render, exact, t, key, other_key, **options)
"""
# What is called, and what is said. Nothing raised, where nothing is said.
MISTAKES = {
    'sds(denoiser=says(x))': "predict's result must be of type Prediction, got Tensor; wrap",
    'sds(denoiser=says((x, "epsilon")))': "must be of type Prediction, got tuple",
    'sds(denoiser=says(None))': "must be of type Prediction, got NoneType",
    'says(x).x0_hat(x, both)': "must be of type Prediction, got Tensor",
    'Prediction(x, "eps")': "prediction_type must be one of epsilon, v, x0, flow, got 'eps'",
    'Prediction(x.numpy(), "epsilon")': "output must be of type Tensor, got ndarray",
    'sds(denoiser=Mine(lambda x: x))': "denoiser.schedule must be of type NoiseSchedule, got NoneT",
    'sds(denoiser=lambda x, t, c: x)': "denoiser must be of type Denoiser, got function; derive",
    'ClassifierFreeGuidance(torch.nn.Identity(), 0, 7.5)': "model must be of type Denoiser",
    'sds(denoiser=ClassifierFreeGuidance(exact, 0, 7.5), condition=both)': "of type Condition, got",
    'sds(t=500)': "",
    'sds(t=torch.tensor(500))': "",
    'sr(t=500)': "",
    'exact.x0_hat(x, 500)': "",
    'sds(t=1000)': "t must be from 0 to 999, got [1000, 1000]",
    'sds(t=-1)': "t must be from 0 to 999, got [-1, -1]",
    'sds(t=0.5)': "t must be an integer, got 0.5",
    'sds(t=[500, 500])': "t must be an integer or a tensor, got [500, 500]; pass torch.tensor([500",
    'sds(t=both.float())': "t must be integers, got torch.float32; convert it with .long()",
    'sds(t=both > 3)': "t must be integers, got torch.bool",
    'sds(t=both[:1])': "t must be one timestep for all samples, or one for each of 2, got [1]",
    'schedule.alpha_bar(500)': "t must be of type Tensor, got int",
    'schedule.alpha_bar(torch.tensor([1000]))': "t must be from 0 to 999, got [1000]",
    'sds(weighting="epsilon_dreamfusion")': "",
    'exact_sds_gradient(x, exact, 500, weighting="x0_unit")': "",
    'sds(weighting="castex")': "weighting must be one of x0_unit, x0_castex, epsilon_unit, epsil",
    'sds(weighting=lambda a: 1 - a)': "or a Weighting, got a function; Weighting(",
    'sds(noise=0)': "noise must be of type Tensor, got int; or a NoiseKey(",
    'sds(noise=torch.randn(1, 3, 8, 8))': "noise must be [2, 3, 8, 8]",
    'NoiseKey(0, 0, 2)': "sample must be of type Tensor, got int; build it with torch.arange",
    'NoiseKey("a", 0, torch.arange(2))': "seed must be an integer, got 'a'",
    'NoiseKey(0, 0.5, torch.arange(2))': "step must be an integer, got 0.5",
    'sds(z=x.numpy())': "must be of type Tensor, got ndarray; convert it with torch.from_numpy",
    'sds(z=(255 * x.abs()).byte())': "z must be a floating-point tensor, got torch.uint8",
    'sds(z=x[0], t=500, noise=torch.randn(3, 8, 8))': "x_star must be [3, 8, 8] or [1, 8, 8]",
    'sds(clamp=(-1, 1))': "clamp must be a number or None, got (-1, 1)",
    'sds(denoiser=DegenerateDenoiser(x[:, :, :4], schedule))': "x_star must be [2, 3, 8, 8] or",
    'DegenerateDenoiser(x.numpy(), schedule)': "x_star must be of type Tensor, got ndarray",
    'DegenerateDenoiser(x, 1000)': "schedule must be of type NoiseSchedule, got int",
    'DegenerateDenoiser(x, schedule, "v")': "prediction_type must be one of epsilon, x0, got 'v'",
    'exact_sds_gradient(x, says(x), both, weighting="x0_unit")': "of type DegenerateDenoiser, got",
    'NoiseSchedule([0.9, 0.5])': "alpha_bars must be of type Tensor, got list",
    'NoiseSchedule(torch.tensor([0.1, 0.9]))': "alpha_bars must be within (0, 1) and falling",
    'UniformTimesteps()(key, 2.0)': "progress must be step / steps, within [0, 1], got 2.0",
    'sr(mode="nearest")': "mode must be one of castex, pipeline, got 'nearest'",
    'sr(render=x[:1])': "stage_one_render must be floating point [2, c, h, w], got [1, 3, 8, 8]",
    'sr(noise_level=1000)': "t must be from 0 to 999, got [1000, 1000]",
    'space.encode((255 * x.abs()).byte())': "image must be floating point [b, 3, h, w], got",
    'space.encode(x[0])': "image must be floating point [b, 3, h, w], got [3, 8, 8]",
    'space.encode(x.movedim(1, -1))': "image must be floating point [b, 3, h, w], got [2, 8, 8, 3]",
    'space.decode(x)': "z must be floating point [b, 4, h, w], got [2, 3, 8, 8]",
    'LatentSpace("vae")': "vae must be a diffusers autoencoder, got a str; LatentSpace.load(",
    'PixelSpace((4, 4))': "size must be an integer, got (4, 4)",
    'PixelSpace(4).encode(x[0])': "image must be floating point [b, c, h, w], got [3, 8, 8]",
    'PixelGrid(x.numpy())': "initial must be of type Tensor, got ndarray",
    'PixelGrid.grey((3, 8, 8))': "shape (b, c, h, w) must be 4 positive integers, got (3, 8, 8)",
    'TexelGrid(x)': "initial must be floating point [h, w, c], got [2, 3, 8, 8]",
    'LatentGrid(x, space)': "decode must be a function, got a LatentSpace; pass space.decode",
    'DeepImagePrior((1, 3, 64, 64), None)': "seed must be an integer, got None",
    'DeepImagePrior((3, 64, 64), 0)': "shape (b, c, h, w) must be 4 positive integers",
    'load_image("gravel", (8, 8))': "size must be from 1 to 8192 pixels, got (8, 8)",
    'load_image(np.zeros((8, 8, 3)), 8)': "image must be a file or a name, got a ndarray",
}  # fmt: skip
RUN = """
    for mistake in {mistakes!r}:
        try:
            eval(mistake)
            print()
        except (TypeError, ValueError) as error:
            print(error)
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each mistake is answered with."""
    program = textwrap.dedent(SET_UP) + textwrap.dedent(RUN).format(mistakes=list(MISTAKES))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(MISTAKES, result.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_our_words(mistake: str, said: dict[str, str]):
    if MISTAKES[mistake]:
        assert MISTAKES[mistake] in said[mistake]
    else:
        assert said[mistake] == ""
