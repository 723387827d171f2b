import pytest
import torch
from torch import nn
from torch.testing import assert_close

from discriminator import JointDiscriminator, discriminator_loss, residual_noise
from guidance import sample
from pairs import joint_and_conditional, mirrored_noise, perturb_pairs, shuffled
from score import VPSDE, FrozenModel
from toy.run import TinyDiscriminator
from toy.target import ExactEps, gaussian

SDE, RHO = VPSDE(), 0.8
TARGET = gaussian(RHO, SDE)
BASES = tuple(FrozenModel(ExactEps(TARGET, axis), SDE) for axis in (0, 1))


class ExactRatio(nn.Module):
    """The optimal discriminator times a scale that can be trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def encode(self, x, y, t):
        return x, y

    def repair(self, x, y):
        return x.new_zeros(len(x))

    def pair(self, x, y, t):
        return self.scale * TARGET.log_ratio(torch.cat([x, y], dim=1), t)


def mixed_derivative(logit, v, a):
    """d2L / dv da along two fixed directions: zero for every v and a if and only if L = g(v) + h(a)."""
    (dv,) = torch.autograd.grad(logit.sum(), v, create_graph=True)
    (dvda,) = torch.autograd.grad(dv.sum(), a, allow_unused=True)
    return torch.zeros_like(a) if dvda is None else dvda


def test_joint_discriminator_interacts(generator):
    network = JointDiscriminator().double()
    v = torch.randn(2, 3, 16, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randn(2, 1, 64, 128, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.1, 0.5], dtype=torch.float64)
    features = network.encode(v, a, t)
    pair = network.pair(*features, t)
    assert mixed_derivative(pair, v, a).abs().max() > 1e-8
    assert_close(network(v, a, t), pair + network.repair(*features))


def test_repairs_and_the_additive_form_do_not_interact(generator):
    v = torch.randn(2, 3, 16, 32, 32, generator=generator, requires_grad=True)
    a = torch.randn(2, 1, 64, 128, generator=generator, requires_grad=True)
    network = JointDiscriminator()
    repair = network.repair(*network.encode(v, a, torch.tensor([0.1, 0.5])))
    assert torch.autograd.grad(repair.sum(), v, retain_graph=True)[0].abs().max() > 0
    assert mixed_derivative(repair, v, a).abs().max() == 0
    x, y = (torch.randn(5, 1, generator=generator, requires_grad=True) for _ in range(2))
    t = torch.full((5,), 0.2)
    assert mixed_derivative(TinyDiscriminator(additive=True)(x, y, t), x, y).abs().max() == 0
    assert mixed_derivative(TinyDiscriminator()(x, y, t), x, y).abs().max() > 1e-6


def test_residual_of_the_exact_log_ratio_turns_base_scores_into_the_joint_score(generator):
    t = torch.linspace(0.01, 0.9, 20, dtype=torch.float64)
    z = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    x, y = (part.clone().requires_grad_() for part in z.split(1, dim=1))
    residual = residual_noise(TARGET.log_ratio(torch.cat([x, y], dim=1), t), x, y, t, SDE)
    eps = torch.cat([model(part, t) + r for model, part, r in zip(BASES, (x, y), residual, strict=True)], dim=1)
    assert_close(SDE.eps_to_score(eps, t).detach(), TARGET.score(z, t))


def test_log_ratio_with_one_side_clean_turns_its_base_score_into_that_of_the_conditional(generator):
    """y_t | x_0 ~ N(alpha rho x_0, alpha^2 (1 - rho^2) + sigma^2): its score against base eps and r, written out."""
    level = torch.linspace(0.01, 0.9, 20, dtype=torch.float64)
    t = (torch.zeros_like(level), level)
    x, y = (torch.randn(20, 1, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    r = residual_noise(TARGET.log_ratio(torch.cat([x, y], dim=1), t), x, y, t, SDE)[1]
    alpha, sigma = (z[:, None] for z in SDE.marginal(level))
    exact = (alpha * RHO * x - y) / (alpha**2 * (1 - RHO**2) + sigma**2)
    assert_close(SDE.eps_to_score(BASES[1](y, level) + r, level), exact)


@pytest.mark.parametrize("network", [JointDiscriminator, TinyDiscriminator])
def test_each_modality_sees_its_own_noise_level_and_equal_ones_are_one(network, generator):
    shapes = ((2, 3, 16, 32, 32), (2, 1, 64, 128)) if network is JointDiscriminator else ((2, 1), (2, 1))
    v, a = (torch.randn(shape, generator=generator) for shape in shapes)
    low, high, network = torch.full((2,), 0.1), torch.full((2,), 0.6), network()
    assert_close(network(v, a, (low, low)), network(v, a, low), atol=0, rtol=0)
    features = {t: network.encode(v, a, levels) for t, levels in {"v": (high, low), "a": (low, high)}.items()}
    same = network.encode(v, a, low)
    assert torch.equal(features["v"][1], same[1]) and not torch.equal(features["v"][0], same[0])
    assert torch.equal(features["a"][0], same[0]) and not torch.equal(features["a"][1], same[1])


def loss_of(network, pairs, t, generator, *weights, **options):
    return discriminator_loss(network, SDE, perturb_pairs(*BASES, pairs, t, generator), *weights, **options)


def loss_at(scale: float, bce_weight: float, noise_weight: float, n: int = 50_000) -> float:
    generator, network = torch.Generator().manual_seed(0), ExactRatio()
    network.scale.data.fill_(scale)
    x, y = TARGET.sample(n, generator).double().split(1, dim=1)
    t = torch.rand(n // 4, generator=generator, dtype=torch.float64).repeat_interleave(4) * 0.5 + 0.01
    return loss_of(network, (x, y), t, generator, bce_weight, noise_weight, 4)[0].item()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_each_loss_is_least_at_the_true_log_ratio(weights):
    best = loss_at(1.0, *weights)
    assert best < loss_at(0.85, *weights)
    assert best < loss_at(1.15, *weights)


def test_noise_loss_at_the_optimum_is_the_closed_form_posterior_variance():
    """Joint: E|eps - E[eps | z_t]|^2 = 2 - sigma^2 tr S^-1, S = [[1, r], [r, 1]], r = alpha^2 rho; base: 2 - 2
    sigma^2.
    """
    generator, n, level = torch.Generator().manual_seed(0), 400_000, 0.3
    x, y = TARGET.sample(n, generator).double().split(1, dim=1)
    t = torch.full((n,), level, dtype=torch.float64)
    _, parts = loss_of(ExactRatio(), (x, y), t, generator)
    alpha, sigma = (a.item() for a in SDE.marginal(t[:1]))
    r = alpha**2 * RHO
    assert parts["noise"].mean().item() == pytest.approx(2 - sigma**2 * 2 / (1 - r**2), abs=0.005)
    assert parts["noise_base"].mean().item() == pytest.approx(2 - 2 * sigma**2, abs=0.005)


@pytest.mark.parametrize("clean", [0, 1])
def test_noise_loss_with_one_side_clean_asks_only_of_the_other_and_is_the_conditional_posterior_variance(clean):
    """Var(eps | y_t, x) = alpha^2 c / (alpha^2 c + sigma^2) with c = 1 - rho^2; without the residual, c = 1."""
    generator, n, level = torch.Generator().manual_seed(0), 400_000, 0.3
    pairs = TARGET.sample(n, generator).double().split(1, dim=1)
    levels = [torch.full((n,), level, dtype=torch.float64)] * 2
    levels[clean] = torch.full_like(levels[clean], SDE.t_min)
    weights = [torch.full((n,), 2.0, dtype=torch.float64)] * 2
    weights[clean] = torch.full_like(weights[clean], 1000.0)
    real = perturb_pairs(*BASES, pairs, tuple(levels), generator)
    loss, parts = discriminator_loss(ExactRatio(), SDE, real, 0.0, tuple(weights))
    assert not real.missing[clean].any()
    signal, noise = ((x**2).item() for x in SDE.marginal(torch.tensor([level])))
    exact = signal * (1 - RHO**2) / (signal * (1 - RHO**2) + noise)
    assert parts["noise"].mean().item() == pytest.approx(exact, abs=0.005)
    assert parts["noise_base"].mean().item() == pytest.approx(signal, abs=0.005)
    assert loss.item() == pytest.approx(2 * parts["noise"].mean().item())


def test_base_models_are_asked_only_where_there_is_noise(generator):
    asked = []

    class Records(nn.Module):
        def forward(self, xt, t):
            asked.append(t)
            return xt

    models = [FrozenModel(Records(), SDE) for _ in "va"]
    pairs = torch.randn(4, 1, generator=generator), torch.randn(4, 1, generator=generator)
    t = torch.tensor([SDE.t_min, 0.2, 0.3, SDE.t_min]), torch.full((4,), SDE.t_min)
    noisy = perturb_pairs(*models, pairs, t, generator)
    assert [x.tolist() for x in asked] == [t[0][1:3].tolist()]
    assert (noisy.missing[0] != 0)[:, 0].tolist() == [False, True, True, False] and not noisy.missing[1].any()


@pytest.mark.parametrize("n", [1, 2, 8])
def test_half_the_levels_are_equal_and_a_quarter_has_each_side_clean(n, generator):
    kinds = []
    for _ in range(4000 // n):
        t = 0.1 + torch.rand(n, generator=generator)
        v, a = joint_and_conditional(t, SDE.t_min, generator)
        assert torch.equal(torch.maximum(v, a), t)
        kinds.append(torch.stack([v == a, v < a, v > a]).float())
    assert_close(torch.cat(kinds, dim=1).mean(1), torch.tensor([0.5, 0.25, 0.25]), atol=0.02, rtol=0)
    if n == 8:
        assert_close(kinds[0].sum(1), torch.tensor([4.0, 2.0, 2.0]))


def test_beside_a_clean_side_levels_may_be_others(generator):
    t, alone = torch.full((8,), 0.4), torch.linspace(0.5, 1, 8)
    v, a = joint_and_conditional(t, SDE.t_min, generator, alone)
    clean = (v == SDE.t_min) | (a == SDE.t_min)
    assert clean.sum() == 4 and torch.equal(torch.maximum(v, a), torch.where(clean, alone, t))
    assert torch.equal(v[~clean], a[~clean])


def test_cross_entropy_of_an_ignorant_discriminator_is_two_ln_two(generator):
    network = ExactRatio()
    network.scale.data.zero_()
    x, y = TARGET.sample(8, generator).double().split(1, dim=1)
    t = torch.full((8,), 0.3, dtype=torch.float64)
    loss, parts = loss_of(network, (x, y), t, generator, noise_weight=0.0)
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())
    assert set(parts) == {"bce", "correct"}


def small_case() -> tuple:
    """A tiny random discriminator in float64, its data, and a function for its loss with the noise held fixed."""
    torch.manual_seed(0)
    network = TinyDiscriminator(width=8, embedding=8).double()
    generator = torch.Generator().manual_seed(1)
    x, y = TARGET.sample(16, generator).double().split(1, dim=1)
    t = torch.rand(8, generator=generator, dtype=torch.float64).repeat_interleave(2) * 0.8 + 0.05

    def loss():
        return loss_of(network, (x, y), t, torch.Generator().manual_seed(2))[0]

    return network, loss


def test_double_backprop_gradient_matches_finite_differences():
    network, loss = small_case()
    loss().backward()
    h = 1e-5
    for p in network.parameters():
        index = tuple(s // 2 for s in p.shape)
        with torch.no_grad():
            p[index] += h
        up = loss().item()
        with torch.no_grad():
            p[index] -= 2 * h
        down = loss().item()
        with torch.no_grad():
            p[index] += h
        assert p.grad[index].item() == pytest.approx((up - down) / (2 * h), rel=1e-4, abs=1e-6)


def test_each_kind_of_fakes_trains_its_own_part(generator):
    """Shuffled: `pair`. Generated: the whole logit."""
    network = JointDiscriminator()
    real, generated = (
        (torch.randn(2, 3, 16, 32, 32, generator=generator), torch.randn(2, 1, 64, 128, generator=generator))
        for _ in range(2)
    )
    t = torch.tensor([0.2, 0.2])
    real, generated = (perturb_pairs(*BASES, pairs, t, generator, ask_base=False) for pairs in (real, generated))
    gradients = {}
    for fakes in ("shuffled", "generated"):
        network.zero_grad()
        loss, _ = discriminator_loss(network, SDE, real, noise_weight=0.0, fakes=fakes, generated=generated)
        loss.backward()
        gradients[fakes] = {name: p.grad for name, p in network.named_parameters()}
        assert (gradients[fakes]["repair_v.2.weight"] is None) is (fakes == "shuffled")
        assert gradients[fakes]["pair_out.2.weight"].any()
    assert not torch.equal(gradients["shuffled"]["video_in.weight"], gradients["generated"]["video_in.weight"])


def test_generated_fakes_teach_the_log_ratio_of_data_and_base(generator):
    """Base models that draw N(0, 1.5^2) where the data are N(0, 1): the cross-entropy is least at log q_t/p_t."""

    class Repair(ExactRatio):
        def pair(self, x, y, t):
            return torch.zeros_like(t)

        def encode(self, x, y, t):
            spread = (SDE.marginal(t)[0] ** 2 * 1.5**2 + SDE.marginal(t)[1] ** 2).sqrt()[:, None]
            p = torch.distributions.Normal(torch.zeros_like(spread), spread)
            return tuple(torch.distributions.Normal(0.0, 1.0).log_prob(z) - p.log_prob(z) for z in (x, y))

        def repair(self, x, y):
            return self.scale * (x + y)[:, 0]

        def forward(self, x, y, t):
            return self.repair(*self.encode(x, y, t))

    n, network = 400_000, Repair()
    t = torch.rand(n // 2, generator=generator, dtype=torch.float64).repeat_interleave(2) * 0.3 + 0.01
    real = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    fake = 1.5 * torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    real, fake = (perturb_pairs(*BASES, tuple(x), t, generator, ask_base=False) for x in (real, fake))
    losses = []
    for scale in (0.8, 1.0, 1.2):
        network.scale.data.fill_(scale)
        losses.append(discriminator_loss(network, SDE, real, 1.0, 0.0, 2, "generated", fake)[0].item())
    assert losses[1] < min(losses[0], losses[2])


def test_shuffled_fakes_pair_each_clip_with_every_other_of_its_group_and_never_with_itself():
    x = torch.arange(8)
    partners = torch.stack([shuffled(x, k, 4) for k in range(1, 4)])
    for clip in range(8):
        first = clip // 4 * 4
        assert set(partners[:, clip].tolist()) == set(range(first, first + 4)) - {clip}


def test_cross_entropy_equals_one_computed_pair_by_pair():
    """Against the plain way: every fake pair encoded from its own noisy clips."""
    network, _ = small_case()
    x, y = TARGET.sample(8, torch.Generator().manual_seed(3)).double().split(1, dim=1)
    t = torch.tensor([0.1, 0.4], dtype=torch.float64).repeat_interleave(4)
    loss, _ = loss_of(network, (x, y), t, torch.Generator().manual_seed(4), noise_weight=0.0, group=4)
    noise = torch.Generator().manual_seed(4)
    xt, yt = (SDE.perturb(z, t, mirrored_noise(len(z), z, noise)) for z in (x, y))
    total = 0.0
    for i in range(8):
        for j in range(i // 4 * 4, i // 4 * 4 + 4):
            logit = network(xt[i : i + 1], yt[j : j + 1], t[i : i + 1])
            total += nn.functional.softplus(-logit).item() if i == j else nn.functional.softplus(logit).item() / 3
    assert loss.item() == pytest.approx(total / 8)


def test_mirrored_noise_is_standard_and_mirrored(generator):
    eps = mirrored_noise(20_001, torch.zeros(1, 3), generator)
    assert_close(eps[:10_000], -eps[10_001:])
    assert_close(eps[:10_001].std(0), torch.ones(3), atol=0.03, rtol=0)


def test_discriminator_takes_time_axes_of_any_two_lengths(generator):
    v, a = torch.randn(2, 3, 8, 32, 32, generator=generator), torch.randn(2, 1, 64, 256, generator=generator)
    network = JointDiscriminator(v.shape[1:], a.shape[1:])
    assert network(v, a, torch.tensor([0.1, 0.9])).shape == (2,)


def test_a_pictures_gradient_has_more_directions_than_a_frame_has_features(generator):
    """Linear up to n features, a logit would have gradients in n directions, whatever the clips."""
    torch.manual_seed(0)
    network = JointDiscriminator(width=8, column=6).double()
    v = torch.randn(60, 3, 16, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randn(60, 1, 64, 128, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 60, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network(v, a, t).sum(), v)
    spread = torch.linalg.svdvals(gradient[:, :, 8].flatten(1))  # of one frame
    assert int((spread > 1e-6 * spread[0]).sum()) == 6 * 8  # every feature of every column


def test_the_last_sound_bears_on_the_first_picture_by_the_long_filter(generator):
    torch.manual_seed(0)
    network = JointDiscriminator(fusion=(1,)).double()
    v = torch.randn(1, 3, 16, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randn(1, 1, 64, 128, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5], dtype=torch.float64)

    def far() -> float:
        (dv,) = torch.autograd.grad(network(v, a, t).sum(), v, create_graph=True)
        (dvda,) = torch.autograd.grad(dv[:, :, 0].square().sum(), a)
        return dvda[..., -8:].abs().max().item()

    assert far() == 0
    nn.init.normal_(network.long_filter.taps, std=0.1)
    assert far() > 0


@pytest.mark.parametrize(
    "shapes",
    (
        ((4, 16, 8, 8), (8, 16, 50)),  # latents of two pre-trained models
        ((4, 16, 64, 64), (1, 32_000)),  # latents and a waveform, 1,000 times as many samples as there are frames
        ((3, 5, 20, 12), (2, 2, 3)),  # fewer columns than frames, no square pictures
        ((1, 2, 2, 3), (2, 40)),
    ),
    ids=str,
)
def test_modalities_interact_whatever_their_shapes(shapes, generator):
    """d2L / (dv da) is not zero, and reaches the first frames and columns as well as the last."""
    torch.manual_seed(0)
    network = JointDiscriminator(*shapes).double()
    v, a = (torch.randn(1, *s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    (dv,) = torch.autograd.grad(network(v, a, torch.tensor([0.3], dtype=torch.float64)).sum(), v, create_graph=True)
    ends = torch.stack([dv[:, :, 0].square().sum(), dv[:, :, -1].square().sum()])
    for end in ends:
        (mixed,) = torch.autograd.grad(end, a, retain_graph=True)
        assert mixed.abs().max() > 0 and torch.isfinite(mixed).all()


def test_a_waveform_is_heard_by_the_energy_of_its_bands(generator):
    """A tone's phase hardly moves the features, which its pitch does."""
    torch.manual_seed(0)
    network = JointDiscriminator((3, 16, 32, 32), (1, 32_000))

    def features(hertz: float, phase: float) -> torch.Tensor:
        tone = torch.sin(2 * torch.pi * hertz * torch.arange(32_000) / 16_000 + phase)[None, None]
        return network.encode(torch.zeros(1, 3, 16, 32, 32), tone, torch.tensor([0.5]))[1]

    heard = [features(440, 0), features(440, 1.5), features(1200, 0)]
    assert (heard[0] - heard[1]).norm() < 0.1 * (heard[0] - heard[2]).norm()


def test_latent_video_and_a_raw_waveform_train_and_sample(generator):
    """Any two FrozenModels: loss, double backprop, guidance and solver never ask what the tensors stand for."""

    class Some(torch.nn.Module):
        def forward(self, xt, t):
            return 0.9 * xt

    shapes = (4, 16, 8, 8), (1, 3200)
    models = tuple(FrozenModel(Some(), SDE) for _ in shapes)
    network = JointDiscriminator(*shapes)
    pairs = tuple(torch.randn(8, *shape, generator=generator) for shape in shapes)
    t = torch.full((8,), 0.3), torch.full((8,), 0.5)
    loss, parts = discriminator_loss(network, SDE, perturb_pairs(*models, pairs, t, generator), 1.0, 1.0, group=4)
    loss.backward()
    assert torch.isfinite(loss) and parts["noise"].shape == (8,)
    for layer in (network.video_in, network.filterbank, network.mix):
        assert 0 < layer.weight.grad.norm() < torch.inf
    clips = sample(*models, network, *((2, *shape) for shape in shapes), steps=3, generator=generator)
    assert [x.shape[1:] for x in clips] == [torch.Size(shape) for shape in shapes]
