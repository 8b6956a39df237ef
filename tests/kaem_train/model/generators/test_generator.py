"""Generators are non-linear, have the shapes of the method's table, and keep their functions when grids move."""

import pytest
import torch

from kaem.errors import ConfigError
from kaem_train.config import GeneratorConfig, first_size_and_doublings
from kaem_train.config.settings import load_config
from kaem_train.model.generators.generator import CnnGenerator, KanGenerator, refit_steps
from kaem_train.model.generators.kan import KanLayer


def _cnn(image_shape=(1, 28, 28), channels=(16, 8), dense=0, num_latents=6):
    torch.manual_seed(0)
    return CnnGenerator(num_latents, image_shape, GeneratorConfig(channels=channels, dense=dense))


@pytest.mark.parametrize("dense", [0, 12])
def test_the_cnn_is_not_an_affine_map_before_its_sigmoid(dense):
    generator = _cnn(dense=dense)
    a, b = torch.randn(2, 1, 6).unbind()
    with torch.no_grad():
        gap = generator.logits(a) + generator.logits(b) - generator.logits(0 * a) - generator.logits(a + b)
    assert float(gap.abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("image_shape", "channels", "sides"),
    [
        ((1, 8, 8), (16,), [4, 8]),
        ((1, 28, 28), (16, 8), [7, 14, 28]),
        ((3, 32, 32), (256, 128, 64), [4, 8, 16, 32]),
        ((3, 64, 64), (32, 16, 8, 4), [4, 8, 16, 32, 64]),
    ],
)
def test_the_cnn_doubles_up_to_the_image(image_shape, channels, sides):
    generator = _cnn(image_shape, channels)
    latent = torch.randn(2, 6)
    seen, image = [], latent[:, :, None, None]
    for layer in generator.layers:
        image = layer(image)
        if isinstance(layer, torch.nn.ConvTranspose2d):
            seen.append(image.shape[-1])
    assert seen == sides
    images = generator(latent).detach()
    assert torch.allclose(images, torch.sigmoid(image), atol=1e-6)
    assert images.shape == (2, *image_shape)
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0


def test_a_dense_layer_and_the_first_map_are_the_convolutions_they_stand_for(float64):
    generator = CnnGenerator(6, (1, 28, 28), GeneratorConfig(channels=(8, 4), dense=12))
    for layer in generator.layers:
        if isinstance(layer, torch.nn.ConvTranspose2d):
            torch.nn.init.normal_(layer.bias)
    latent = torch.randn(5, 6)
    assert torch.allclose(generator.logits(latent), generator.layers(latent[:, :, None, None]), atol=1e-12)


def test_the_svhn_generator_has_the_published_size():
    generator = CnnGenerator(81, (3, 32, 32), GeneratorConfig(channels=(256, 128, 64)))
    assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 2) == 0.99


def test_given_kernels_make_the_published_cifar10_generator():
    config = load_config("paper-cifar10", ("data.path=x.npz",))
    generator = CnnGenerator(81, config.data.image_shape, config.generator)
    layers = [layer for layer in generator.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    image, sides = torch.randn(2, 81)[:, :, None, None], []
    for layer in layers:
        image = layer(image)
        sides.append(image.shape[2])
    assert sides == [8, 16, 32, 32]
    assert [(layer.kernel_size[0], layer.stride[0], layer.padding[0]) for layer in layers] == [
        (8, 1, 0),
        (4, 2, 1),
        (4, 2, 1),
        (3, 1, 1),
    ]
    sizes = [(81, 512, 8), (512, 256, 4), (256, 128, 4), (128, 3, 3)]
    expected = sum(inputs * outputs * kernel**2 + outputs for inputs, outputs, kernel in sizes)
    assert sum(p.numel() for p in generator.parameters()) == expected
    latent = torch.randn(3, 81)
    assert torch.allclose(generator.logits(latent), generator.layers(latent[:, :, None, None]), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("generator.kernels=[8, 4, 3]",), r"makes images of 16 x 16, not 32 x 32"),
        (("generator.kernels=[8, 4, 4]",), r"channels = \[512, 256, 128\] has 3 widths, 3 kernels need 2"),
        (("generator.kernels=[8, 5, 4, 3]",), "another than 3 and 4"),
        (("generator.kernels=[0, 4, 4, 3]",), "a first below 1"),
    ],
)
def test_kernels_that_do_not_lead_to_the_image_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("paper-cifar10", ("data.path=x.npz", *overrides))


@pytest.mark.parametrize("image_shape", [(1, 30, 30), (1, 28, 32), (1, 4, 4)])
def test_an_image_the_cnn_cannot_reach_is_refused(image_shape):
    with pytest.raises(ConfigError, match="does not suit"):
        first_size_and_doublings(image_shape)


def test_grid_refits_thin_out_as_in_the_reference_schedule():
    assert refit_steps(100, 0.999, 5000) == (1, 101, 211, 346, 536, 860, 1625)
    assert len(refit_steps(100, 0.999, 40_000)) == 8
    assert refit_steps(0, 0.999, 5000) == (1,)
    assert len(refit_steps(100, 0.999, 10**9)) < 12


def _kan():
    torch.manual_seed(0)
    return KanGenerator(5, (1, 4, 4), GeneratorConfig(kind="kan", hidden=(10,)))


def test_a_grid_refit_keeps_the_functions_where_the_latents_are(float64):
    torch.manual_seed(0)
    layer = KanLayer(5, 10, grid_size=20)
    latent = 2.0 * torch.randn(1500, 5)
    layer.refit(latent)
    with torch.no_grad():
        layer.coefficients.add_(0.3 * torch.randn_like(layer.coefficients))
    before = layer(latent).detach()
    layer.refit(latent + 0.02 * torch.randn_like(latent))
    change = (layer(latent).detach() - before).abs()
    assert float(change.mean()) < 1e-3
    assert float(before.std()) > 0.5


def test_after_a_refit_the_knots_cover_the_latents(float64):
    generator = _kan()
    latent = 20.0 + 2.0 * torch.randn(500, 5)
    generator.refit_grids(latent)
    centers = generator.layers[0].centers
    assert torch.allclose(centers[:, 0], latent.min(0).values)
    assert torch.allclose(centers[:, -1], latent.max(0).values)
    assert bool((centers.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("generator", [_cnn((1, 8, 8), (8,)), _kan()], ids=["cnn", "kan"])
def test_a_row_does_not_depend_on_its_batch(generator):
    num = 5 if isinstance(generator, KanGenerator) else 6
    latent = torch.randn(7, num)
    with torch.no_grad():
        assert torch.allclose(generator(latent)[3:4], generator(latent[3:4]), atol=1e-6)


@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("basis", ["rbf", "rswaf", "bspline", "fourier", "chebyshev", "legendre", "morlet"])
def test_a_layer_sums_its_univariate_functions_whatever_they_are(basis, base, float64):
    torch.manual_seed(0)
    layer = KanLayer(3, 4, grid_size=5, basis=basis, base=base)
    x = torch.rand(6, 3) - 0.5
    outputs = layer(x)
    outputs.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in layer.parameters())
    # phi_oi(x_i) alone, from differences; the sum over inputs must give the layer.
    zero = torch.zeros(6, 3)
    parts = torch.stack([torch.where(torch.arange(3) == i, x, zero) for i in range(3)])
    alone = layer(parts.flatten(0, 1)).unflatten(0, (3, 6)) - layer(zero)
    assert torch.allclose(layer(zero) + alone.sum(0), outputs, atol=1e-12)
    before, has_knots = layer(x).detach(), basis in ("rbf", "rswaf", "bspline")
    assert layer.refit(x) is has_knots
    assert has_knots or torch.equal(layer(x), before)


def test_every_parameter_learns_from_the_first_update():
    for generator, num in ((_cnn(dense=9), 6), (_kan(), 5)):
        generator(torch.randn(4, num)).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 0 for p in generator.parameters())


def _joined(dense=0):
    torch.manual_seed(0)
    config = GeneratorConfig(channels=(16, 8, 4), dense=dense, latent_concat=True)
    return CnnGenerator(6, (3, 32, 32), config)


@pytest.mark.parametrize("dense", [0, 12])
def test_the_joined_latent_widens_every_convolution_but_the_first(dense):
    generator = _joined(dense)
    layers = [layer for layer in generator.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in layers] == ([6] if dense else []) + [dense or 6, 16 + 6, 8 + 6, 4 + 6]
    assert [layer.out_channels for layer in layers][-4:] == [16, 8, 4, 3]
    assert generator(torch.randn(2, 6)).shape == (2, 3, 32, 32)


def test_the_joined_latent_is_the_same_at_every_pixel_and_follows_the_features():
    generator = _joined()
    seen = []
    for layer in generator.layers:
        if isinstance(layer, torch.nn.ConvTranspose2d) and layer.stride == (2, 2):
            layer.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0][:, -6:]))
    latent = torch.randn(2, 6)
    generator(latent)
    assert [appended.shape[-1] for appended in seen] == [4, 8, 16]
    for appended in seen:
        assert torch.equal(appended, latent[:, :, None, None].expand_as(appended))


def test_the_latent_reaches_the_image_through_the_join_of_every_layer():
    reaches = []
    for kept in range(4):  # the last one keeps no join at all
        generator = _joined()
        joins = [x for x in generator.layers if isinstance(x, torch.nn.ConvTranspose2d) and x.stride == (2, 2)]
        with torch.no_grad():
            generator.layers[0].weight.zero_()  # the road that every CNN has is closed
            for index, layer in enumerate(joins):
                if index != kept:
                    layer.weight[-6:] = 0.0

        def blocks(latent, generator=generator):
            return torch.nn.functional.avg_pool2d(generator(latent), 16)

        jacobian = torch.autograd.functional.jacobian(blocks, torch.randn(1, 6))  # (1, 3, 2, 2, 1, 6)
        reaches.append(bool((jacobian.flatten(0, 4).abs().sum(0) > 0).all()))
    assert reaches == [True, True, True, False]


@pytest.mark.parametrize("kernels", [(1, 4, 4, 4), (1, 4, 3, 4, 4, 3), (2, 4, 4), (8,), (1, 3, 4, 4, 4)])
def test_any_kernels_that_lead_to_the_image_do(kernels):
    config = GeneratorConfig(kernels=kernels, channels=(3,) * (len(kernels) - 1))
    network = CnnGenerator(4, (1, 8, 8), config)
    latents = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    images = network(latents)
    assert images.shape == (5, 1, 8, 8)
    plain = latents[:, :, None, None]
    for layer in network.layers:
        plain = layer(plain)
    assert torch.allclose(images, torch.sigmoid(plain), atol=1e-6)
