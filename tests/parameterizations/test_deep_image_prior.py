import pytest
import torch
import torch.nn.functional as F

from sdslab.errors import UserError
from sdslab.parameterizations.deep_image_prior import DeepImagePrior, convolve_upsampled


def parameter_count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "channels", "expected"),
    [("paint-it", 9, 2_966_281), ("original", 3, 2_217_831)],
)
def test_parameter_count_is_the_published_network_s(network: str, channels: int, expected: int):
    assert parameter_count(DeepImagePrior((1, channels, 64, 64), 0, network)) == expected


@pytest.mark.parametrize("network", ["paint-it", "original"])
@pytest.mark.parametrize("channels", [3, 8])
def test_output_is_in_the_open_unit_interval(network: str, channels: int):
    maps = DeepImagePrior((2, channels, 64, 96), 0, network, width=8)()
    assert maps.shape == (2, channels, 64, 96)
    assert maps.min() > 0
    assert maps.max() < 1
    assert maps.std() > 0.01


def test_paint_it_s_input_is_standardised_and_the_original_s_is_small():
    noise = DeepImagePrior((2, 3, 64, 64), 0, width=4).noise
    torch.testing.assert_close(noise.mean((2, 3)), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise.std((2, 3)), torch.ones(2, 3))
    original = DeepImagePrior((1, 3, 64, 64), 0, "original", width=4).noise
    assert original.min() >= 0
    assert original.max() <= 0.1


@pytest.mark.parametrize(
    ("network", "upsampling", "skip_width"),
    [("paint-it", "nearest", 128), ("original", "bilinear", 4)],
)
def test_layers_are_the_published_ones(network: str, upsampling: str, skip_width: int):
    layers = list(DeepImagePrior((1, 3, 64, 64), 0, network).modules())
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    spatial = [layer for layer in convolutions if layer.kernel_size == (3, 3)]
    assert len(spatial) == 3 * 5
    assert {layer.padding_mode for layer in spatial} == {"reflect"}
    assert sum(layer.stride == (2, 2) for layer in spatial) == 5
    pointwise = [layer for layer in convolutions if layer.kernel_size == (1, 1)]
    assert sum(layer.out_channels == skip_width for layer in pointwise) >= 5
    assert len(pointwise) == 5 + 5 + 1  # skips, after each up convolution, the output
    activations = [layer for layer in layers if isinstance(layer, torch.nn.LeakyReLU)]
    assert {layer.negative_slope for layer in activations} == {0.2}
    upsamplings = [layer for layer in layers if isinstance(layer, torch.nn.Upsample)]
    assert [(layer.mode, layer.scale_factor) for layer in upsamplings] == [(upsampling, 2.0)] * 5
    norms = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)]
    assert not any(layer.track_running_stats for layer in norms)
    assert isinstance(layers[-1], torch.nn.Sigmoid)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (DeepImagePrior((1, 3, 64, 64), seed, width=4)() for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)
    assert torch.rand(1).equal(expected)


def test_every_weight_gets_a_gradient():
    network = DeepImagePrior((1, 3, 64, 64), 0, width=8)
    network().square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias in front of a normalisation has no effect, and no gradient but rounding.
        if parameter.ndim == 4:
            assert (parameter.grad.flatten(1).abs().amax(1) > 0).all(), name


@pytest.mark.parametrize("size", [48, 32, 100])
def test_indivisible_sizes_are_refused_with_one_that_works(size: int):
    with pytest.raises(
        UserError, match=r"divisible by 32 and at least 64, got .*; use \d+"
    ) as info:
        DeepImagePrior((1, 3, size, size), 0, width=4)
    suggested = int(str(info.value).rsplit(" ", 1)[-1])
    DeepImagePrior((1, 3, suggested, suggested), 0, width=4)()


def test_unknown_network_and_bad_width_are_refused():
    with pytest.raises(UserError, match="one of paint-it, original, got 'unet'"):
        DeepImagePrior((1, 3, 64, 64), 0, "unet")
    with pytest.raises(UserError, match="positive number of channels, got 0"):
        DeepImagePrior((1, 3, 64, 64), 0, width=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8)], ids=str)
def test_convolving_what_is_upsampled_is_done_at_its_own_size(size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    ours = convolve_upsampled(x, kernel)
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    direct = F.conv2d(F.pad(upsampled, (1, 1, 1, 1), mode="reflect"), kernel)
    torch.testing.assert_close(ours, direct)
    cotangent = torch.randn(direct.shape, dtype=torch.float64, generator=generator)
    gradients = (torch.autograd.grad(y, (x, kernel), cotangent) for y in (ours, direct))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch", [1, 2])
def test_joining_at_half_size_changes_nothing(batch: int):
    network = DeepImagePrior((batch, 3, 64, 96), 0, width=8).double()
    joins = [layer for layer in network.modules() if hasattr(layer, "upsampling")]
    ours = network()
    assert len(joins) == 5
    for join in joins:
        # The same for a factor of two, but under another name: at full size, concatenated.
        join.upsampling = torch.nn.Upsample(scale_factor=2, mode="nearest-exact")
    torch.testing.assert_close(network(), ours)


def test_bfloat16_rounds_each_convolution_and_keeps_output_and_gradients_in_float32() -> None:
    pictures, gradients = [], []
    for precision in ("float32", "bfloat16"):
        prior = DeepImagePrior((1, 3, 64, 64), 0, width=16, precision=precision)
        maps = prior()
        of_theta = torch.autograd.grad(maps.square().sum(), list(prior.parameters()))
        pictures.append(maps.detach())
        gradients.append(torch.cat([gradient.flatten() for gradient in of_theta]))
    assert pictures[1].dtype == gradients[1].dtype == torch.float32
    assert 1e-5 < float((pictures[1] - pictures[0]).abs().max()) < 0.1
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99
    with pytest.raises(UserError, match="precision must be float32 or bfloat16, got 'fp16'"):
        DeepImagePrior((1, 3, 64, 64), 0, precision="fp16")
