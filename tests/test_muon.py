import copy

import pytest
import torch

from muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(96, 512), (512, 96), (96, 96)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_singular_values(shape):
    U, _, Vh = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    S = torch.logspace(0, -2, len(Vh))  # the faintest direction a hundred times weaker than the strongest
    rotated = U.T @ orthogonal(U * S @ Vh) @ Vh.T
    values = rotated.diagonal()
    assert (rotated - values.diag()).abs().max() < 1e-4
    assert values.min() > 0.4 and values.max() < 1.21


def test_muon_steps_are_those_of_torch_up_to_its_bfloat16():
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((96, 32), (32, 96), (1, 96))]
    theirs = copy.deepcopy(ours)
    start = [p.detach().clone() for p in ours]
    mine, reference = Muon(ours, 1e-2, 0.95, 1.0), torch.optim.Muon(theirs, lr=1e-2, momentum=0.95, weight_decay=1.0)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(p - p0, q - p0, rtol=0, atol=0.02 * (q - p0).abs().max().item())


def test_muon_leaves_a_matrix_without_gradient_as_it_is():
    p = torch.ones(2, 3, requires_grad=True)
    Muon([p], 1e-2).step()
    assert torch.equal(p, torch.ones(2, 3))
