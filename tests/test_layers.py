import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from layers import AtSteps, Conv1d, LongFilter, Windows


@pytest.mark.parametrize("size", [(16, 24), (17, 15), (8, 9)])
@pytest.mark.parametrize(("stride", "count"), [((4, 4), (2, 2)), ((2, 4), (4, 2)), ((1, 1), (2, 2)), ((3, 3), (2, 2))])
def test_windows_are_a_strided_convolution_and_so_are_their_gradients(stride, count, size, generator):
    layer = Windows(2, 5, stride, count).double()
    x = torch.randn(3, 2, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    window = tuple(s * n for s, n in zip(stride, count, strict=True))
    padding = tuple((w - s) // 2 for w, s in zip(window, stride, strict=True))
    expected = F.conv2d(x, layer.weight.view(5, 2, *window), layer.bias, stride, padding)
    assert_close(layer(x), expected)
    first = [torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0] for y in (layer(x), expected)]
    second = [torch.autograd.grad(g.pow(2).sum(), layer.weight)[0] for g in first]
    assert_close(*first)
    assert_close(*second)


@pytest.mark.parametrize(("steps_in", "steps"), [(16, 32), (32, 16), (16, 8), (5, 5), (5, 7), (1, 4)])
def test_features_at_other_steps_are_interpolated_linearly(steps_in, steps, generator):
    x = torch.randn(2, steps_in, 3, generator=generator)
    assert_close(AtSteps(steps_in, steps)(x), F.interpolate(x.transpose(1, 2), steps, mode="linear").transpose(1, 2))
    middles = torch.arange(steps_in) + 0.5  # a clock that each step reads at its middle
    read = AtSteps(steps_in, steps)(middles[None, :, None]).flatten()
    assert_close(read, ((torch.arange(steps) + 0.5) * steps_in / steps).clamp(0.5, steps_in - 0.5))


@pytest.mark.parametrize("dilation", [1, 4])
def test_convolution_as_one_matrix_product_is_the_convolution(dilation, generator):
    ours, theirs = Conv1d(6, 5, 3, dilation), nn.Conv1d(6, 5, 3, padding=dilation, dilation=dilation)
    theirs.weight.data = ours.weight.data.view(5, 3, 6).transpose(1, 2)
    theirs.bias.data = ours.bias.data
    x = torch.randn(2, 20, 6, generator=generator)
    assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))


def test_long_filter_changes_nothing_at_first_and_then_is_one_convolution_a_channel(generator):
    network, x = LongFilter(6, 20), torch.randn(2, 20, 6, generator=generator)
    assert_close(network(x), x)
    network.taps.data = torch.randn(6, 39, generator=generator)
    kernel = network.taps[:, None].flip(2)
    filtered = F.conv1d(F.silu(network.norm(x)).transpose(1, 2), kernel, padding=19, groups=6)
    assert_close(network(x), x + filtered.transpose(1, 2))
