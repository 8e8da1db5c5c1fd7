"""Shapes, receptive fields, parameter counts, and that every input matters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from petct_lib import InputError
from petct_lib.imaging.slices import center_slice
from petct_lib.models.networks import (
    PatchDiscriminator,
    ResnetGenerator,
    TimeBlock,
    UNet,
    _group_norm,
    count_parameters,
    ema_model,
    enlarge,
    freeze,
    shrink,
    tile,
    time_embedding,
)


def test_generator_keeps_the_size_and_stays_in_range():
    y = ResnetGenerator(4, 1)(10 * torch.randn(2, 1, 32, 48))
    assert y.shape == (2, 1, 32, 48)
    assert y.abs().max() <= 1


def test_the_papers_networks_have_their_published_sizes_less_the_biases_before_instance_norms():
    generator = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64  # output channels of the convolutions before a norm
    grey = 2 * 2 * 7 * 7 * 64 + 2  # one channel in and out, for three
    assert count_parameters(ResnetGenerator(64, 9)) == 11_378_179 - generator - grey  # 11.378 M in the authors' code
    assert count_parameters(PatchDiscriminator(3, 64, 3)) == 2_764_737 - (128 + 256 + 512)  # 2.765 M


@pytest.mark.parametrize(("layers", "field"), [(3, 70), (2, 34)])
def test_receptive_field_of_the_discriminator(layers, field):
    net = PatchDiscriminator(1, 4, layers)
    net.net = nn.Sequential(*(m for m in net.net if not isinstance(m, nn.InstanceNorm2d)))  # norms see everything
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    y = net(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    generator = ResnetGenerator(32, 2)
    layers = [m for net in (generator, PatchDiscriminator(1, 32)) for m in net.modules()]
    layers = [m for m in layers if isinstance(m, nn.Conv2d)]
    for layer in layers:
        count = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5)  # 4 standard errors
        assert layer.weight.mean().abs().item() < 4 * 0.02 / count**0.5
        assert layer.bias is None or layer.bias.abs().max() == 0
    assert any(layer.bias is not None for layer in layers)


def period_2_share(x):
    """Share of the energy, without the mean, at the frequencies of period 2 along an axis, (B, 1, H, W) → (B,)."""
    energy = torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square()
    h, w = x.shape[2] // 2, x.shape[3] // 2
    ring = energy[:, :, h].sum((1, 2)) + energy[:, :, :, w].sum((1, 2)) - energy[:, 0, h, w]
    return ring / energy.sum((1, 2, 3))


def test_the_measure_of_a_checkerboard_on_known_images():
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    wave = torch.cos(2 * torch.pi * rows / 8)  # energy 1/2 at period 8
    images = torch.stack([(-1.0) ** columns, (-1.0) ** (rows + columns), wave, wave + (-1.0) ** columns])
    assert period_2_share(images[:, None]).tolist() == pytest.approx([1, 1, 0, 2 / 3], abs=1e-5)


@torch.no_grad()
def checkerboard(smooth):
    """Mean share at period 2 in what untrained generators make of a constant or a smooth image, over 8 seeds."""
    shares = []
    for seed in range(8):
        torch.manual_seed(seed)
        net = ResnetGenerator(8, 1)
        coarse = 2 * torch.rand(1, 1, 5, 5) - 1 if smooth else torch.full((1, 1, 5, 5), 0.3)
        shares.append(period_2_share(net(F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=True))))
    return torch.cat(shares).mean().item()


@pytest.mark.parametrize("smooth", [False, True])
def test_an_untrained_generator_leaves_no_checkerboard(smooth):
    assert checkerboard(smooth) < 0.02


def test_the_generator_uses_its_input_and_all_of_its_weights():
    net, x = ResnetGenerator(4, 1), torch.randn(1, 1, 32, 48, requires_grad=True)
    net(x).square().sum().backward()
    assert (x.grad.abs() > 0).any()
    assert all(p.grad is not None for p in net.parameters())


def test_group_norm_has_up_to_8_groups_that_divide_the_width():
    assert [_group_norm(width).num_groups for width in (4, 12, 16, 7)] == [4, 4, 8, 1]
    y = _group_norm(4)(torch.randn(2, 4, 8, 8) * 3 + 1)  # each group is one channel
    assert y.mean((2, 3)).abs().max() < 1e-5
    assert y.std((2, 3), correction=0).flatten().tolist() == pytest.approx([1] * 8, rel=1e-3)


def test_running_mean_by_hand_with_its_growing_decay():
    net = nn.Linear(1, 1, bias=False)
    mean, values = ema_model(net, 0.24), []
    for weight in (1.0, 2.0, 3.0, 5.0):
        nn.init.constant_(net.weight, weight)
        mean.update_parameters(net)
        values.append(mean.module.weight.item())
    first = 1.0  # a copy
    second = 2 / 11 * first + 9 / 11 * 2  # decay (1 + 1)/(10 + 1)
    third = 0.24 * second + 0.76 * 3  # (1 + 2)/(10 + 2) = 0.25 is beyond 0.24
    assert values == pytest.approx([first, second, third, 0.24 * third + 0.76 * 5])
    assert net.weight.item() == 5


def answering(in_channels=3, **settings):
    """A U-Net whose last layer is not 0, as it is untrained."""
    torch.manual_seed(0)
    net = UNet(in_channels, **{"width": 8, "multipliers": (1, 2), **settings})
    nn.init.normal_(net.pixels[-1].weight, std=0.1)
    return net


@pytest.mark.parametrize("outputs", [1, 2])
def test_an_untrained_unet_gives_zeros(outputs):
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(UNet(3, outputs, width=8, multipliers=(1, 2))(x, torch.rand(2)), torch.zeros(2, outputs, 16, 16))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_unet_uses_every_input_and_the_time(channel):
    net = answering(multipliers=(1, 2, 2))
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    other = x.clone()
    other[:, channel] += torch.randn(16, 16)
    assert not torch.allclose(net(x, t), net(other, t))
    assert not torch.allclose(net(x, t), net(x, t + 0.25))
    net(x, t).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_each_image_of_a_batch_has_its_own_time():
    net, x, t = answering(), torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.9])
    alone = torch.cat([net(x[k : k + 1], t[k : k + 1]) for k in range(2)])
    assert torch.allclose(net(x, t), alone, atol=1e-5)
    assert not torch.allclose(net(x, t.flip(0)), alone, atol=1e-3)


def test_time_scales_and_shifts_between_a_blocks_convolutions():
    block, x = TimeBlock(4, 4, 8), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.copy_(torch.tensor([0.5] * 4 + [2.0] * 4))
    assert torch.allclose(block(x, torch.randn(2, 8)), x + block.second(1.5 * block.first(x) + 2.0), atol=1e-6)


@pytest.mark.parametrize(("patch", "multipliers"), [(1, (1, 2, 2)), (2, (1, 2)), (4, (1,))])
def test_space_to_depth_keeps_the_size_and_computes_on_a_smaller_grid(patch, multipliers):
    net, seen = answering(1, patch=patch, multipliers=multipliers), []
    net.head.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    assert net(torch.randn(2, 1, 16, 32), torch.rand(2)).shape == (2, 1, 16, 32)
    assert seen == [(2, 8, 16 // patch, 32 // patch)]


def test_a_pixel_of_the_output_is_the_one_of_the_input():
    """The grid takes squares of pixels apart and puts them together again: a bright pixel stays where it was."""
    net = UNet(1, width=4, multipliers=(1,), patch=2)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        for k in range(4):
            net.head.weight[k, k, 1, 1] = 1.0  # each of a square's four pixels keeps its own channel
            net.tail[-1].weight[k, k, 1, 1] = 1.0
        for conv in (net.pixels[0], net.pixels[-1]):
            conv.weight[0, 0, 1, 1] = 1.0
        for norm in (m for m in net.modules() if isinstance(m, nn.GroupNorm)):
            norm.weight.fill_(1.0)
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 5, 2] = 1.0
    assert net(x, torch.zeros(1))[0, 0].argmax().item() == 5 * 8 + 2


def test_the_last_layers_see_pixels_and_no_squares():
    """With nothing from the grid, an image moved by one pixel gives the output moved by one pixel."""
    net, x = answering(1, patch=2), torch.randn(1, 1, 16, 16)
    for p in net.tail[-1].parameters():
        nn.init.zeros_(p)
    out, moved = net(x, torch.zeros(1)), net(x.roll(1, dims=3), torch.zeros(1))
    assert out.std() > 0.01
    assert torch.allclose(moved[..., 3:-2], out.roll(1, dims=3)[..., 3:-2], atol=1e-6)


def test_time_embedding_tells_the_times_of_a_grid_apart():
    e = time_embedding(torch.tensor([0.25, 0.5, 0.75, 1.0]), 16)
    assert e.shape == (4, 16)
    assert torch.cdist(e, e)[~torch.eye(4, dtype=torch.bool)].min() > 0.5


def test_tile_puts_batches_in_rows():
    picture = tile([torch.full((3, 1, 4, 5), -1.0), torch.full((3, 1, 4, 5), 3.0)])
    assert picture.shape == (1, 8, 15)
    assert picture[0, 0, 0] == 0
    assert picture[0, 7, 14] == 1  # clipped


def test_frozen_weights_take_no_gradient_and_let_it_through():
    inner, outer = nn.Linear(1, 1), nn.Linear(1, 1)
    with freeze([outer]):
        outer(inner(torch.ones(1))).sum().backward()
    assert outer.weight.grad is None
    assert inner.weight.grad is not None
    assert outer.weight.requires_grad
    with pytest.raises(ZeroDivisionError), freeze([outer]):
        1 / 0  # noqa: B018
    assert outer.weight.requires_grad


def test_middle_takes_the_slices_around_the_middle_one():
    images = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 4, 4)
    for neighbours, expected in ((1, [2]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        assert center_slice(images, neighbours)[1, :, 0, 0].tolist() == expected
    assert torch.equal(center_slice(images[:, :1]), images[:, :1])


def test_shrink_takes_the_means_of_squares():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert shrink(image, 2)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert shrink(image, 1).item() == 7.5
    assert shrink(image, None) is shrink(image, 4) is image
    assert shrink(torch.zeros(2, 3, 8, 8), 4).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 3), ((4, 4), 8), ((4, 8), 4), ((8, 4), 2)])
def test_shrink_refuses_what_does_not_divide(shape, size):
    with pytest.raises(InputError, match=rf"coarse_size {size}: slices of {shape[0]}×{shape[1]} pixels"):
        shrink(torch.zeros(1, 1, *shape), size)


def test_enlarge_interpolates_between_the_pixels_middles_and_shrinks_back():
    line = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    assert enlarge(line, (2, 4))[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert enlarge(line, (2, 2)) is line
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    inside = (shrink(enlarge(ramp, (16, 16)), 8) - ramp)[..., 1:-1]
    assert inside.abs().max() < 1e-6
