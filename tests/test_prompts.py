import pytest
import torch
from torch.testing import assert_close

from discriminator import JointDiscriminator
from guidance import sample
from prompts import ClassifierFree, bind, classifier_free_logit, pooled
from score import VPSDE, FrozenModel

SHAPES = (4, 2, 8, 8), (2, 16, 12)


class Told(torch.nn.Module):
    """A denoiser that is told a number."""

    def forward(self, xt, t, told):
        return xt * told[:, :1] + t[:, None]


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return JointDiscriminator(*SHAPES, text=(3, 5)).requires_grad_(False).double()


def batch(generator, *lengths):
    return tuple(torch.randn(2, n, generator=generator, dtype=torch.float64) for n in lengths)


@pytest.mark.parametrize("scales", ((1.0, 1.0), (3.0, 0.5)))
def test_residual_is_guided_in_each_modality_with_its_own_scale(discriminator, generator, scales):
    text, null = batch(generator, 3, 5), batch(generator, 3, 5)
    v, a = (torch.randn(2, *s, generator=generator, dtype=torch.float64, requires_grad=True) for s in SHAPES)
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)

    def gradients(logit):
        return torch.autograd.grad(logit.sum(), (v, a))

    with_text, without = (gradients(discriminator(v, a, t, *told)) for told in (text, null))
    guided = gradients(classifier_free_logit(discriminator, text, null, scales)(v, a, t))
    for g, g1, g0, s in zip(guided, with_text, without, scales, strict=True):
        assert (g1 - g0).abs().max() > 1e-4 * g1.abs().max()
        assert_close(g, g0 + s * (g1 - g0))


def test_base_models_are_guided_by_the_difference_of_text_and_null(generator):
    model = FrozenModel(Told(), VPSDE())
    x, t = torch.randn(2, 3, generator=generator), torch.tensor([0.1, 0.7])
    text, null = (torch.ones(2, 1),), (torch.full((2, 1), 0.5),)
    assert_close(ClassifierFree(model, text, null, 1.0)(x, t), x + t[:, None])
    assert_close(ClassifierFree(model, text, null, 3.0)(x, t), 2.0 * x + t[:, None])


def test_a_bound_trio_is_called_like_models_without_prompts(discriminator, generator):
    discriminator = discriminator.float()
    models = FrozenModel(Echo(), VPSDE()), FrozenModel(Echo(), VPSDE())
    told = [((torch.randn(2, n, generator=generator),), (torch.zeros(2, n),)) for n in (3, 5)]
    bound = bind(models, discriminator, told, (2.0, 2.0))
    shapes = [(2, *shape) for shape in SHAPES]
    clips, plain = (sample(*bound, *shapes, 3, weight, generator=torch.Generator().manual_seed(1)) for weight in (1, 0))
    assert [x.shape for x in clips] == [torch.Size(s) for s in shapes]
    assert not torch.equal(clips[0], plain[0]) and not torch.equal(clips[1], plain[1])


class Echo(torch.nn.Module):
    def forward(self, xt, t, told):
        return xt * 0.9 + told.mean()


def test_a_prompt_is_its_embedding_or_the_mean_of_its_tokens():
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert pooled((tokens, torch.zeros(1))).tolist() == [[4, 5, 6, 7]]
    assert torch.equal(pooled((tokens[:, 0],)), tokens[:, 0])


def test_a_discriminator_of_prompts_says_when_it_gets_none(discriminator, generator):
    v, a = (torch.zeros(2, *s, dtype=torch.float64) for s in SHAPES)
    with pytest.raises(ValueError, match="needs their embeddings"):
        discriminator(v, a, torch.tensor([0.1, 0.1]).double())
