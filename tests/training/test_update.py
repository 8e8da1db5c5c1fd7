"""One update: the gradient by hand, in bf16, shared by processes."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from petct_lib.training.update import Updates, choose_precision


def line(weights=(3.0, 4.0)):
    """y = w·x with SGD at rate 1, so that an update takes the gradient off the weights."""
    weight = nn.Parameter(torch.tensor(weights))
    return weight, {"w": torch.optim.SGD([weight], lr=1.0)}


def test_an_update_by_hand():
    weight, optimisers = line()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    losses, others = Updates(optimisers)(
        "w", lambda b: ({"a": (b["x"] @ weight).mean()}, {"y": b["x"] @ weight}), {"x": x}
    )
    assert losses["a"].item() == pytest.approx((3 + 8) / 2)
    assert others["y"].tolist() == [3, 8]
    assert not losses["a"].requires_grad
    assert not others["y"].requires_grad
    assert weight.tolist() == [3 - 1 / 2, 4 - 2 / 2]


def test_losses_are_summed_and_old_gradients_forgotten():
    weight, optimisers = line()
    update, batch = Updates(optimisers), {"x": torch.ones(1)}
    for _ in range(2):
        update("w", lambda _: ({"a": weight[0], "b": 2 * weight.sum()}, {}), batch)
    assert weight.tolist() == [3 - 2 * 3, 4 - 2 * 2]


def gradients(mixed_precision="no"):
    """What one step of a CycleGAN's generators and discriminators takes off their weights at rate 1."""
    stage, _ = tiny.stage_of("gan")
    batch = tiny.RandomBatches(("pet", "ct"), 4)(np.random.default_rng(0))
    nets = {name: [p.detach().clone() for p in net.parameters()] for name, net in stage.nets.items()}
    stage.optimisers = {
        kind: torch.optim.SGD([p for n, net in stage.nets.items() if n[0] == kind for p in net.parameters()], lr=1.0)
        for kind in "GD"
    }
    update = Updates(stage.optimisers, mixed_precision=mixed_precision)
    losses, fakes = update("G", stage.generator_losses, batch)
    update("D", stage.discriminator_losses, {**batch, **{k: v.float() for k, v in fakes.items()}})
    moved = [
        (a - b).flatten() for name, net in stage.nets.items() for a, b in zip(nets[name], net.parameters(), strict=True)
    ]
    return losses, torch.cat(moved).detach()


def test_bf16_is_close_to_float32_and_not_the_same():
    (exact, one), (rough, two) = gradients(), gradients(mixed_precision="bf16")
    assert two.dtype is torch.float32
    assert not torch.equal(one, two)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.9
    assert {k: v.item() for k, v in rough.items()} == pytest.approx({k: v.item() for k, v in exact.items()}, rel=0.02)


def test_one_process_has_everything():
    update, images = Updates({}), torch.arange(3.0)
    assert update.processes == 1
    assert update.everyone(images) is images
    assert update.own(images) is images


class Second:
    """An accelerator of process 1 of 2, whose partner has what `partner` says."""

    num_processes, process_index = 2, 1

    def __init__(self, partner):
        self.partner = partner

    def gather(self, own):
        return torch.cat([self.partner, own])

    def reduce(self, own, reduction):
        assert reduction == "mean"
        return (own + self.partner) / 2


def test_two_processes_average_their_gradients():
    weight, optimisers = line()
    update = Updates(optimisers, accelerator=Second(torch.tensor([10.0, 20.0])))
    update("w", lambda b: ({"a": (b["x"] * weight).sum()}, {}), {"x": torch.tensor([2.0, 4.0])})
    assert weight.tolist() == [3 - 6, 4 - 12]


def test_a_process_finds_its_share_in_everyones():
    update = Updates({}, accelerator=Second(torch.tensor([0.0, 1.0])))
    assert update.everyone(torch.tensor([2.0, 3.0])).tolist() == [0, 1, 2, 3]
    assert update.own(torch.arange(4)).tolist() == [2, 3]
    assert update.own(np.arange(4)).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("gpu", "of_gpu", "avx", "amx", "expected"),
    [
        (True, True, False, False, "bf16"), (True, False, True, True, "no"), (False, True, False, False, "no"),
        (False, False, True, False, "bf16"), (False, False, False, True, "bf16"),
    ],
)  # fmt: skip
def test_precision_is_what_the_processor_that_trains_computes_in(monkeypatch, gpu, of_gpu, avx, amx, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: of_gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto") == expected
    assert (choose_precision("no"), choose_precision("bf16")) == ("no", "bf16")
