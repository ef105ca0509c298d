"""The gated convolution against its equations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelwise.core.errors import ModelError
from pixelwise.layers import GatedConvolution


def streams(size: tuple[int, int] = (4, 5)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, *size).double(), torch.randn(2, 5, *size).double()


def test_the_equations_of_the_paper() -> None:
    """a = sigmoid(norm(C(s joined r))); the result is (s a + s) transposed times the weights, at each pixel."""
    torch.manual_seed(0)
    module, (s, r) = GatedConvolution(3, 5, 2).double(), streams()
    joined = np.concatenate([s.numpy(), r.numpy()], axis=1)
    raw = np.einsum("nchw,c->nhw", joined, module.gate[0].weight[0, :, 0, 0].detach().numpy())
    normal = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-5)
    attention = 1 / (1 + np.exp(-normal))
    np.testing.assert_allclose(module.attention(s, r)[:, 0].detach(), attention, rtol=0, atol=1e-12)
    gated = s.numpy() * attention[:, None] + s.numpy()
    weights, bias = (part.detach().numpy() for part in module.convolution.parameters())
    expected = np.einsum("nchw,kc->nkhw", gated, weights[..., 0, 0]) + bias[:, None, None]
    np.testing.assert_allclose(module(s, r).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("bias", "factor"), [(-1e4, 1), (1e4, 2)])
def test_a_closed_gate_leaves_the_features_and_an_open_one_doubles_them(bias: float, factor: int) -> None:
    module, (s, r) = GatedConvolution(3, 5, 2, norm="none").double(), streams()
    torch.nn.init.constant_(module.gate[0].bias, bias)
    torch.testing.assert_close(module(s, r), module.convolution(factor * s), rtol=0, atol=1e-12)


def test_the_streams_need_one_size() -> None:
    module = GatedConvolution(3, 5, 2)
    message = r"^a gate needs two streams of one size, but got 4 x 5 and 2 x 3: enlarge the smaller one\.$"
    with pytest.raises(ModelError, match=message):
        module(torch.zeros(1, 3, 4, 5), torch.zeros(1, 5, 2, 3))
