import json
import shutil
import sys

import pytest
import torch
from torch.testing import assert_close

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import numpy as np  # noqa: E402, after what may skip
import tiny  # noqa: E402

import pretrained  # noqa: E402
from discriminator import JointDiscriminator, discriminator_loss  # noqa: E402
from guidance import JointEps, denoise, sample  # noqa: E402
from pairs import perturb_pairs  # noqa: E402
from pretrained import SDE, Side, log_mel, open_sides  # noqa: E402
from prompts import bind, pooled  # noqa: E402
from schedule import Pairing  # noqa: E402
from score import FrozenModel  # noqa: E402

STEPS, SCALES = 4, (3.0, 2.0)
PAIRS = ("animatediff", "audioldm"), ("modelscope", "audioldm2"), ("base+adapter", "musicldm")
PROMPTS = ["a ball", "bells ring"]


class Silent(torch.nn.Module):
    """A discriminator of nothing."""

    def forward(self, v, a, t, *text):
        return (v.sum() + a.sum()) * 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    v_prediction = tiny.scheduler("cosine", "v_prediction")
    return {
        "animatediff": tiny.animatediff(root / "animatediff"),
        "audioldm": tiny.audioldm(root / "audioldm"),
        "modelscope": tiny.modelscope(root / "modelscope", v_prediction),
        "audioldm2": tiny.audioldm2(root / "audioldm2"),
        "base+adapter": tiny.stable_diffusion_and_adapter(root / "animatediff_parts"),
        "musicldm": tiny.musicldm(root / "musicldm"),
    }


def pipeline_clips(side: Side, start: torch.Tensor, scale: float) -> torch.Tensor:
    """What the pipeline's own loop makes of start, latents as it has them."""
    options = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "latent"}
    if side.kind == "video":
        options |= {"height": side.size, "width": side.size, "num_frames": pretrained.FRAMES}
        return side.pipe(PROMPTS, latents=start, **options).frames
    options["audio_length_in_s"] = pretrained.FRAMES / pretrained.FPS
    if isinstance(side.pipe, diffusers.AudioLDM2Pipeline):
        return side.pipe(PROMPTS, latents=start.transpose(2, 3), **options).audios.transpose(2, 3)
    return side.pipe(PROMPTS, latents=start.transpose(2, 3), **options | {"output_type": "pt"}).audios


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_at_weight_0_both_modalities_are_their_own_pipelines(folders, names, generator):
    """Two models of different schedules and predictions in one loop of ours; DDIM, classifier-free guidance."""
    sides = open_sides(*(str(folders[name]) for name in names))
    start = tuple(torch.randn(2, *side.shape, generator=generator) for side in sides)
    models = bind([side.model for side in sides], Silent(), [side.embed(PROMPTS) for side in sides], SCALES)
    grid = Pairing(*(side.schedule for side in sides)).grid(STEPS)
    *_, (video, audio) = denoise(JointEps(*models, weight=0.0), start, SDE, STEPS, "ddim", grid=grid)
    assert_close(video, pipeline_clips(sides[0], start[0], SCALES[0]), rtol=1e-5, atol=1e-5)
    ours = audio if names[1] == "audioldm2" else sides[1].decode(audio)
    assert_close(ours, pipeline_clips(sides[1], start[1], SCALES[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sum(PAIRS, ()))
def test_prompts_noise_levels_and_neighbours_in_the_batch_matter_as_they_should(folders, name, generator):
    side = Side("audio" if "ldm" in name else "video", str(folders[name]))
    (text, null), x = side.embed(PROMPTS), torch.randn(2, *side.shape, generator=generator)
    t = side.schedule.level(torch.tensor([0.3, 0.8]))
    eps = side.model(x, t, *text)
    assert eps.shape == x.shape and not any(p.requires_grad for p in side.model.parameters())
    assert (eps - side.model(x, t, *null)).abs().max() > 1e-6
    assert (eps - side.model(x, t.flip(0), *text)).abs().max() > 1e-3
    alone = side.model(x[:1], t[:1], *(c[:1] for c in text))
    assert_close(alone, eps[:1], rtol=1e-4, atol=1e-5)


def test_latents_of_clips_have_the_shape_and_scale_that_the_vae_gives(folders, generator):
    video, audio = open_sides(str(folders["animatediff"]), str(folders["audioldm"]))
    frames = torch.randint(256, (1, 16, 16, 16, 3), generator=generator, dtype=torch.uint8)
    z = video.encode(frames)
    assert z.shape == (1, *video.shape)
    third = video.pipe.vae.encode(frames[:, 2].permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode() * 0.5
    assert_close(z[:, :, 2], third)
    shown = video.decode(z)[0, 2].float()
    expected = video.pipe.vae.decode(z[:, :, 2] / 0.5).sample[0].permute(1, 2, 0).clamp(-1, 1)
    assert_close(shown, (expected + 1) * 127.5, rtol=0, atol=0.51)
    heard = audio.decode(audio.encode(0.1 * torch.randn(1, 32_000, generator=generator)))
    assert heard.shape == (1, 32_000)


def test_log_mel_is_that_of_transformers(generator):
    """Against its numpy spectrogram, in HiFi-GAN's settings; a waveform too short for the last column is padded."""
    wave = 0.1 * torch.randn(1, 1600, generator=generator)
    ours = log_mel(wave, 160, 16_000, 64, 10)[0, 0].T
    padded = np.pad(wave[0].numpy(), (1024 - 160) // 2, mode="reflect")
    tools = transformers.audio_utils
    filters = tools.mel_filter_bank(513, 64, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    settings = {"frame_length": 1024, "hop_length": 160, "power": 1.0, "center": False, "mel_floor": 1e-5}
    theirs = tools.spectrogram(padded, tools.window_function(1024, "hann"), mel_filters=filters, **settings)
    assert_close(ours, torch.from_numpy(np.log(theirs)).float(), rtol=1e-4, atol=1e-4)
    assert log_mel(wave, 160, 16_000, 64, 12).shape == (1, 1, 12, 64)


def test_guidance_reaches_both_latents_of_two_levels(folders, generator):
    """Residuals at (t_v, t_a): sigma of each modality's own level times the gradient."""
    sides = open_sides(str(folders["animatediff"]), str(folders["audioldm"]))

    class Linear(torch.nn.Module):
        def forward(self, v, a, t, *text):
            return v.flatten(1).sum(1) + 2 * a.flatten(1).sum(1)

    models = bind([side.model for side in sides], Linear(), [side.embed(PROMPTS) for side in sides], (1.0, 1.0))
    x = tuple(torch.randn(2, *side.shape, generator=generator) for side in sides)
    levels = Pairing(*(side.schedule for side in sides)).levels(torch.tensor([0.5, 0.5]))
    base, guided = (JointEps(*models, weight=w)(x, levels) for w in (0.0, 3.0))
    for k, slope in enumerate((1.0, 2.0)):
        sigma = SDE.marginal(levels[k])[1][0].item()
        assert_close(guided[k] - base[k], torch.full_like(x[k], -3 * slope * sigma), rtol=1e-3, atol=1e-5)


def test_latent_video_with_prompts_and_a_raw_waveform_without(folders, generator):
    """AnimateDiff's latents beside a 1-D UNet on samples: one loss and one sampler for both."""
    torch.manual_seed(0)
    wave = diffusers.UNet1DModel(
        sample_size=1600, in_channels=1, out_channels=1, extra_in_channels=64, block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip

    class Wave(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = wave

        def forward(self, xt, t):
            return self.unet(xt, t).sample

    video, audio = Side("video", str(folders["animatediff"])), FrozenModel(Wave(), SDE, "v")
    shapes = video.shape, (1, 1600)
    network = JointDiscriminator(*shapes, text=(16, 0))
    text, null = video.embed(["a ball"] * 4)
    pairs = tuple(torch.randn(4, *shape, generator=generator) for shape in shapes)
    told = {"conditions": (text, ()), "text": (pooled(text), pooled(()))}
    noisy = perturb_pairs(video.model, audio, pairs, (torch.full((4,), 0.4), torch.full((4,), 0.6)), generator, **told)
    loss, _ = discriminator_loss(network, SDE, noisy, group=4)
    loss.backward()
    assert torch.isfinite(loss) and network.text[0].weight.grad.abs().max() > 0
    trio = bind((video.model, audio), network, ((text, null), ((), ())), (3.0, 1.0))
    clips = sample(*trio, *((4, *shape) for shape in shapes), steps=3, generator=generator)
    assert [x.shape[1:] for x in clips] == [torch.Size(shape) for shape in shapes]
    assert all(torch.isfinite(x).all() for x in clips)


def broken(folder, tmp_path, part, **changes):
    """A copy of a pipeline's folder with one config changed."""
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    path = copy / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_what_does_not_fit_is_told_in_one_line(folders, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no video model: UNetMotionModel or UNet3DConditionModel"):
        Side("video", str(folders["audioldm"]))
    with pytest.raises(ValueError, match="no audio model"):
        Side("audio", str(folders["animatediff"]))
    with pytest.raises(ValueError, match="multiple of 2"):
        Side("video", str(folders["animatediff"]), size=17)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    index = broken(folders["animatediff"], tmp_path, "scheduler/scheduler_config.json", **config)
    model_index = index / "model_index.json"
    model_index.write_text(model_index.read_text().replace("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler.*cannot be paired"):
        Side("video", str(index))
    wide = tiny.animatediff(tmp_path / "wide", channels=8)
    with pytest.raises(ValueError, match="takes 8 channels and gives 8, its VAE has 4"):
        Side("video", str(wide))
    for weights in (index / "unet").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="broken is no complete diffusers pipeline"):
        Side("video", str(index))
    with pytest.raises(ValueError, match="nowhere is no complete diffusers pipeline") as told:
        Side("video", str(tmp_path / "nowhere"))
    assert "\n" not in str(told.value)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="pip install -r requirements-pretrained.txt"):
        Side("video", str(folders["animatediff"]))
