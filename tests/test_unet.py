import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from score import VPSDE, expand
from unet import SKIP_AUDIO, SKIP_VIDEO, AudioUNet, JointUNet, ResBlock, VideoUNet

SDE = VPSDE()
CASES = [(VideoUNet, (2, 3, 16, 32, 32)), (AudioUNet, (2, 1, 64, 128))]


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_output_has_the_shape_of_the_input_and_depends_on_the_whole_clip(network, shape, generator):
    """The last frame or column of the estimate feels the first of the input: the field of view is the clip."""
    torch.manual_seed(0)
    model = network()
    for p in model.parameters():  # layers that start at zero would hide the dependence
        torch.nn.init.normal_(p, std=0.05)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    out = model(x, torch.tensor([0.9, 0.9]))
    assert out.shape == x.shape
    time_axis = 2 if len(shape) == 5 else 3
    (grad,) = torch.autograd.grad(out.select(time_axis, -1).square().sum(), x)
    assert grad.select(time_axis, 0).abs().max() > 0


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_clips_of_a_batch_do_not_mix(network, shape, generator):
    model, t = network(), torch.tensor([0.2, 0.7])
    x = torch.randn(shape, generator=generator)
    assert_close(model(x, t)[:1], model(x[:1], t[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "shape", "s"), [(*c, s) for c, s in zip(CASES, (SKIP_VIDEO, SKIP_AUDIO), strict=True)]
)
def test_skip_follows_its_equation_and_trusts_the_clip_where_noise_is_weak(network, shape, s, generator):
    """An untrained body returns 0, so x0_hat = c x_t / alpha_t with c = s^2 / (s^2 + (sigma_t / alpha_t)^2)."""
    x, t = torch.randn(3, *shape[1:], generator=generator), torch.tensor([SDE.t_min, 0.1, 1.0])
    alpha, sigma = SDE.marginal(t)
    c = s**2 / (s**2 + (sigma / alpha) ** 2)
    model = network()
    torch.nn.init.zeros_(model.body.out[2].bias)
    assert_close(model(x, t), expand(c / alpha, x) * x)
    assert c[0] > 0.5 and c[2] < 1e-5  # more than half where the noise is weaker than s


def test_the_middle_of_a_video_block_is_a_convolution_over_the_frames_of_each_clip(generator):
    """Against conv3d on (B, C, T, H, W), which shares no view of memory with the block."""
    block, clips, frames = ResBlock(8, 16, 4, temporal=True), 2, 5
    torch.nn.init.normal_(block.conv2.weight)
    x, embedding = torch.randn(clips * frames, 8, 3, 4, generator=generator), torch.randn(clips, 4, generator=generator)
    scale, shift = block.film(F.silu(embedding))[:, None, :, None, None].chunk(2, dim=2)
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))).unflatten(0, (clips, frames))
    h = F.silu(h * (1 + scale) + shift).transpose(1, 2).contiguous()
    h = F.conv3d(h, block.conv2.weight[..., None], block.conv2.bias, padding=(1, 0, 0))
    expected = block.skip(x) + h.transpose(1, 2).flatten(0, 1)
    assert_close(block(x.contiguous(memory_format=torch.channels_last), embedding), expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_few():
    assert sum(p.numel() for network in (VideoUNet(), AudioUNet()) for p in network.parameters()) < 4e6


def test_the_joint_network_is_two_base_networks_until_its_mixers_learn(generator):
    """Mixers start at zero; once they do not, each modality's first instant feels that of the other."""
    torch.manual_seed(0)
    joint, t = JointUNet(), torch.tensor([0.3, 0.6])
    for head in (joint.video.body.out[2], joint.audio.body.out[2]):
        torch.nn.init.normal_(head.weight, std=0.05)
    states = tuple(torch.randn(shape, generator=generator, requires_grad=True) for _, shape in CASES)
    for x, own, network in zip(states, joint(states, t), (joint.video, joint.audio), strict=True):
        assert torch.equal(own, network(x, t))
    for mixer in joint.mixers:
        torch.nn.init.normal_(mixer.to_v.weight, std=0.05)
        torch.nn.init.normal_(mixer.to_a.weight, std=0.05)
    v, a = joint(states, t)
    assert torch.autograd.grad(v[:, :, 0].sum(), states[1], retain_graph=True)[0][..., :8].abs().max() > 0
    assert torch.autograd.grad(a[..., :8].sum(), states[0])[0][:, :, 0].abs().max() > 0
