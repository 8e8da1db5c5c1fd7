"""Shapes, receptive fields, parameter counts, and that every input matters."""

import pytest
import torch
from torch import nn

from petct_lib.nets import Denoiser, PatchDiscriminator, ResnetGenerator, count_parameters, tile, time_embedding


def test_generator_keeps_the_size_and_stays_in_range():
    y = ResnetGenerator(1, 1, 4, 1)(10 * torch.randn(2, 1, 32, 48))
    assert y.shape == (2, 1, 32, 48)
    assert y.abs().max() <= 1


def test_the_papers_networks_have_their_published_sizes():
    assert count_parameters(ResnetGenerator(3, 3, 64, 9)) == 11_378_179  # 11.378 M in the authors' code
    assert count_parameters(PatchDiscriminator(3, 64, 3)) == 2_764_737 + 0  # 2.765 M


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
    conv = next(m for m in ResnetGenerator(1, 1, 32, 2).modules() if isinstance(m, nn.Conv2d) and m.in_channels > 60)
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert conv.bias.abs().max() == 0


def test_untrained_denoiser_returns_the_coarse_image():
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(Denoiser(3, 8, (1, 2))(x, torch.tensor([0.5, 1.0])), x[:, -1:])


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_denoiser_uses_every_input_and_the_time(channel):
    net = Denoiser(3, 8, (1, 2, 2))
    nn.init.normal_(net.tail[-1].weight)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    other = x.clone()
    other[:, channel] += 1
    assert not torch.allclose(net(x, t) - x[:, -1:], net(other, t) - other[:, -1:])
    assert not torch.allclose(net(x, t), net(x, t + 0.25))


def test_time_embedding_tells_the_times_of_a_grid_apart():
    e = time_embedding(torch.tensor([0.25, 0.5, 0.75, 1.0]), 16)
    assert e.shape == (4, 16)
    assert torch.cdist(e, e)[~torch.eye(4, dtype=torch.bool)].min() > 0.5


def test_tile_puts_batches_in_rows():
    picture = tile([torch.full((3, 1, 4, 5), -1.0), torch.full((3, 1, 4, 5), 3.0)])
    assert picture.shape == (1, 8, 15)
    assert picture[0, 0, 0] == 0
    assert picture[0, 7, 14] == 1  # clipped
