"""Floating-point operations, counted as torch runs them: what `training.py` and `projection.py` share."""

import math
from collections.abc import Callable

import textbook
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PAPER = ((7, 0, 64, 1), (3, 64, 128, 2), (3, 128, 256, 4), *[(3, 256, 256, 4)] * 18)  # kernel, in, out, smaller by


def backward_flops(
    grad: list[int], x: list[int], weight: list[int], _bias: object, _stride: object, _padding: object,
    _dilation: object, transposed: bool, _output_padding: object, _groups: object, mask: list[bool], **_: object,
) -> int:  # fmt: skip
    """A convolution's backward pass: each gradient costs what the forward pass does.

    In the place of torch's own formula, which counts the weights' gradient of a grouped convolution as if it had no
    groups: for a depthwise one, as many times too much as it has channels.
    """
    return sum(mask[:2]) * 2 * x[0] * math.prod((x if transposed else grad)[2:]) * math.prod(weight)


def count(work: Callable[[], object]) -> int:
    """Operations of the convolutions and matrix products of `work()`; multiplying and adding are two."""
    formula = {torch.ops.aten.convolution_backward: backward_flops}
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        work()
    return counter.get_total_flops()


def check() -> None:
    """The counter against hand counts: single convolutions with backward pass, and the paper's generator.

    Raises SystemExit where they differ.
    """
    for groups in (1, 8):
        layer, x = nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.ones(2, 8, 16, 16, requires_grad=True)
        by_hand = 3 * 2 * (2 * 16 * 16) * (8 // groups * 3 * 3) * 8  # forward and two gradients
        _same(f"convolution of {groups} groups", count(lambda layer=layer, x=x: layer(x).sum().backward()), by_hand)
    with torch.device("meta"):  # shapes alone, nothing computed
        net, x = textbook.generator(3), torch.empty(1, 3, 256, 256)
    layers = [(k, a or 3, b, 256 // s) for k, a, b, s in PAPER]
    layers += [(3, 256, 128, 64), (3, 128, 64, 128), (7, 64, 3, 256)]  # transposed: counted at the smaller side
    by_hand = sum((k * k * a + 1) * b for k, a, b, _ in layers)
    _same("generator's parameters", sum(p.numel() for p in net.parameters()), by_hand)
    with torch.no_grad():
        _same("generator's operations", count(lambda: net(x)), sum(2 * k * k * a * b * n * n for k, a, b, n in layers))


def _same(what: str, counted: int, by_hand: int) -> None:
    if counted != by_hand:
        raise SystemExit(f"{what}: counted {counted}, by hand {by_hand}")
