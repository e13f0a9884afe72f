"""Spectral norm against torch's parametrisation and the singular values themselves."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from poiesis.nn.spectral_norm import SpectralConv2d, SpectralLabels, SpectralLinear


def pair(kind):
    """Return one of our layers and torch's of equal weights and singular vectors, and inputs."""
    torch.manual_seed(0)
    if kind == "linear":
        ours, plain, x = SpectralLinear(7, 5), nn.Linear(7, 5), torch.randn(3, 7)
    elif kind == "labels":
        ours, plain = SpectralLabels(6, 5), nn.Embedding(6, 5)
        x = torch.tensor([0, 3, 3, 5])
    else:
        ours = SpectralConv2d(4, 5, 3, padding=1)
        plain, x = nn.Conv2d(4, 5, 3, padding=1), torch.randn(2, 4, 6, 6)
        if kind == "channels last":
            ours.to(memory_format=torch.channels_last)
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k not in ("u", "v")})
    theirs = spectral_norm(plain, eps=1e-6)
    part = theirs.parametrizations.weight[0]
    part._u.copy_(ours.u)
    # Ours keeps the columns of the matrix in one order, whatever the layout: channels last.
    v = ours.v
    if ours.weight.dim() == 4:
        v = v.view(3, 3, 4).permute(2, 0, 1).flatten()
    part._v.copy_(v)
    return ours, theirs, x


@pytest.mark.parametrize("kind", ["linear", "labels", "convolution", "channels last"])
def test_it_equals_torch_in_training_and_evaluation(kind):
    ours, theirs, x = pair(kind)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (ours, theirs)]
    for step in range(3):
        outputs = [m(x) for m in (ours, theirs)]
        torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)
        for y, optimiser in zip(outputs, optimisers, strict=True):
            optimiser.zero_grad()
            (y + 0.1 * step).square().sum().backward()
            optimiser.step()
        own, other = ours.weight.grad, theirs.parametrizations.weight.original.grad
        torch.testing.assert_close(own, other, atol=2e-6, rtol=1e-5)
        # The weights have moved, the vectors have not: evaluation is frozen.
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours(x), ours(x), atol=0, rtol=0)
        ours.train()
        theirs.train()


@pytest.mark.parametrize("kind", ["linear", "labels", "channels last"])
def test_gradient_is_the_numerical_one(kind):
    ours, _, x = pair(kind)
    ours = ours.double().eval()
    x = x.double() if x.is_floating_point() else x
    weight = ours.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(ours, {"weight": w}, (x,)), weight
    )


def test_largest_singular_value_becomes_one():
    torch.manual_seed(0)
    layer = SpectralConv2d(8, 6, 3)
    for _ in range(50):
        weight = layer.normalised()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)


def test_each_training_forward_moves_the_vectors_and_no_other():
    torch.manual_seed(0)
    layer, x = SpectralLinear(5, 4), torch.randn(2, 5)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    u = layer.u.clone()
    layer.eval()(x)
    assert torch.equal(layer.u, u)
    layer.train().requires_grad_(False)(x)
    assert not torch.equal(layer.u, u)
    assert layer.u.norm().item() == pytest.approx(1, abs=1e-6)


def test_vectors_are_state_and_stay_float32_under_autocast():
    torch.manual_seed(0)
    layer = SpectralConv2d(4, 4, 3)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        weight = layer.normalised()
    assert layer.u.dtype == layer.v.dtype == weight.dtype == torch.float32
    copied = SpectralConv2d(4, 4, 3)
    copied.load_state_dict(layer.state_dict())
    assert torch.equal(copied(x), layer(x))


def test_averaged_vectors_of_less_than_unit_length_do_not_change_the_norm():
    torch.manual_seed(0)
    layer = SpectralLinear(5, 4).eval()
    before = layer.normalised()
    layer.u.mul_(0.9)
    layer.v.mul_(0.8)
    torch.testing.assert_close(layer.normalised(), before)


def test_gradient_penalties_go_through_it():
    torch.manual_seed(0)
    ours, theirs, x = pair("channels last")
    gradients = []
    for layer, weight in ((ours, ours.weight), (theirs, theirs.parametrizations.weight.original)):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
