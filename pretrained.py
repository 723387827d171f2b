"""Frozen models of the diffusers library as base models: any AudioLDM pipeline, any AnimateDiff or UNet3D pipeline.

The rest of the code sees a FrozenModel with t and eps: schedule.py has how its steps become noise levels. Latents stand
for pixels and spectrograms, time last: video (B, C, T, h, w), audio (B, C, M, L). A prompt is a condition (prompts.py).

Needs requirements-pretrained.txt. Used by latents.py (encoding), train.py and sample.py.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

import media
from schedule import SDE, Schedule
from score import FrozenModel

FRAMES, FPS = 16, 8  # of a clip: two seconds, what AnimateDiff and ModelScope were trained on


class Denoiser(nn.Module):
    """A diffusers UNet as a network(x_t, t, *condition); `mel` for spectrogram latents, which it wants time first."""

    def __init__(self, unet: nn.Module, schedule: Schedule, mel: bool = False):
        super().__init__()
        self.unet, self.schedule, self.mel = unet, schedule, mel

    def forward(self, xt: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        x = (xt.transpose(2, 3) if self.mel else xt).to(self.unet.dtype)
        out = self.unet(x, self.schedule.step(t), **self.inputs(x, condition)).sample.to(xt.dtype)
        return out.transpose(2, 3) if self.mel else out

    def inputs(self, x: Tensor, condition: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
        kind = type(self.unet).__name__
        if kind == "AudioLDM2UNet2DConditionModel":
            names = "encoder_hidden_states", "encoder_hidden_states_1", "encoder_attention_mask_1"
            return dict(zip(names, condition, strict=True))
        if self.mel:
            return {"encoder_hidden_states": None, "class_labels": condition[0]}
        per_frame = kind == "UNetMotionModel"
        return {"encoder_hidden_states": condition[0].repeat_interleave(x.shape[2] if per_frame else 1, 0)}


def open_pipeline(name: str, device: str):
    """A diffusers pipeline from a folder or a hub name; BASE+ADAPTER joins an image model and a motion adapter."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ValueError(f"{name} needs diffusers: pip install -r requirements-pretrained.txt") from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    options = {"dtype": torch.float16 if torch.device(device).type == "cuda" else torch.float32}
    try:
        if "+" in name and not Path(name).exists():
            base, adapter = name.split("+", 1)
            motion = diffusers.MotionAdapter.from_pretrained(adapter, **options)
            pipe = diffusers.AnimateDiffPipeline.from_pretrained(base, motion_adapter=motion, **options)
        else:
            pipe = diffusers.DiffusionPipeline.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} is no complete diffusers pipeline ({reason}): name a folder or a hub model"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if type(pipe).__name__ == "MusicLDMPipeline":  # it expects the tensor that transformers gave before version 5
        features = pipe.text_encoder.get_text_features
        pipe.text_encoder.get_text_features = lambda *a, **k: getattr(out := features(*a, **k), "pooler_output", out)
    return pipe.to(device)


class Side:
    """One modality: its pipeline, frozen, with its schedule, prompt encoder and way to latents and back."""

    kinds = {
        "audio": ("UNet2DConditionModel", "AudioLDM2UNet2DConditionModel"),
        "video": ("UNetMotionModel", "UNet3DConditionModel"),
    }

    def __init__(self, kind: str, name: str, device: str = "cpu", size: int = 0):
        self.kind, self.name, self.pipe, self.device = kind, name, open_pipeline(name, device), device
        unet, vae = getattr(self.pipe, "unet", None), getattr(self.pipe, "vae", None)
        vocoder = getattr(self.pipe, "vocoder", None)
        if type(unet).__name__ not in self.kinds[kind] or vae is None or (vocoder is None) == (kind == "audio"):
            raise ValueError(f"{name} ({type(self.pipe).__name__}) is no {kind} model: {' or '.join(self.kinds[kind])}")
        if unet.config.get("addition_embed_type"):
            raise ValueError(
                f"{name} wants more than a prompt ({unet.config.addition_embed_type}): SDXL is not wrapped"
            )
        channels = unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels
        if len(set(channels)) > 1:
            raise ValueError(
                f"{name}: its UNet takes {channels[0]} channels and gives {channels[1]}, its VAE has {channels[2]}: "
                "they must be the same"
            )
        try:
            self.schedule = Schedule(self.pipe.scheduler)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.model = FrozenModel(Denoiser(unet, self.schedule, kind == "audio"), SDE, self.schedule.prediction)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if kind == "video":
            self.size = size or unet.config.sample_size * self.factor
            if self.size % self.factor:
                raise ValueError(f"--size {self.size} must be a multiple of {self.factor}, as {name} has it")
            side = self.size // self.factor
            self.shape = (channels[0], FRAMES, side, side)
        else:
            self.sample_rate = vocoder.config.sampling_rate
            if self.sample_rate != media.SAMPLE_RATE:
                raise ValueError(f"{name} sounds at {self.sample_rate} Hz: {media.SAMPLE_RATE} is what can be read")
            self.hop = int(torch.tensor(vocoder.config.upsample_rates).prod())
            columns = FRAMES * self.sample_rate // (FPS * self.hop)
            self.columns = -(-columns // self.factor) * self.factor
            self.shape = (channels[0], vocoder.config.model_in_dim // self.factor, self.columns // self.factor)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The conditions of n prompts and, as often, of the empty one: as the pipeline itself encodes them."""
        if hasattr(self.pipe, "language_model"):
            embeds, mask, generated = self.pipe.encode_prompt(prompts, self.device, 1, True)
            both = generated, embeds, mask
        elif self.kind == "audio":
            both = (self.pipe._encode_prompt(prompts, self.device, 1, True),)
        else:
            both = (torch.cat(self.pipe.encode_prompt(prompts, self.device, 1, True)[::-1]),)
        null, text = zip(*(x.chunk(2) for x in both), strict=True)
        return text, null

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Frames uint8 (B, T, H, W, 3), or waveforms (B, samples) at `sample_rate`, to latents."""
        vae = self.pipe.vae
        if self.kind == "audio":
            spectrogram = log_mel(clips, self.hop, self.sample_rate, self.shape[1] * self.factor, self.columns)
            latents = vae.encode(spectrogram.to(self.device, vae.dtype)).latent_dist.mode().transpose(2, 3)
        else:
            pictures = media.to_video(clips).transpose(1, 2).flatten(0, 1).to(self.device, vae.dtype)
            latents = torch.cat([vae.encode(x).latent_dist.mode() for x in pictures.split(16)])
            latents = latents.unflatten(0, (len(clips), -1)).transpose(1, 2)
        return latents.float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to frames uint8 (B, T, H, W, 3), or to waveforms (B, samples)."""
        vae = self.pipe.vae
        latents = (latents / vae.config.scaling_factor).to(self.device, vae.dtype)
        if self.kind == "audio":
            waveform = self.pipe.vocoder(vae.decode(latents.transpose(2, 3)).sample.squeeze(1))
            return waveform.float().cpu()[:, : FRAMES * self.sample_rate // FPS].clamp(-1, 1)
        pictures = torch.cat([vae.decode(x).sample for x in latents.transpose(1, 2).flatten(0, 1).split(16)])
        return media.to_frames(pictures.float().unflatten(0, (len(latents), -1)).transpose(1, 2))


def open_sides(video: str, audio: str, size: int = 0, device: str = "cpu") -> tuple[Side, Side]:
    """Both models; size is pixels a side, 0 for the video model's own."""
    return Side("video", video, device, size), Side("audio", audio, device)


@functools.cache
def slaney_filters(n_fft: int, mels: int, sample_rate: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    scale = {"norm": "slaney", "mel_scale": "slaney"}
    filters = mel_filter_bank(n_fft // 2 + 1, mels, 0.0, sample_rate / 2, sample_rate, **scale)
    return torch.from_numpy(filters).float().T


def log_mel(waveform: Tensor, hop: int, sample_rate: int, mels: int, columns: int, n_fft: int = 1024) -> Tensor:
    """The spectrogram (B, 1, columns, mels) that AudioLDM's VAE knows: log of slaney-normalised mel magnitudes.

    As in HiFi-GAN (Kong et al. 2020, 2010.05646): reflected ends, no centring, floor 1e-5. n_fft is that of AudioLDM,
    whose vocoder does not say it.
    """
    wanted = columns * hop
    waveform = nn.functional.pad(waveform, (0, max(0, wanted - waveform.shape[1])))[:, :wanted]
    waveform = nn.functional.pad(waveform[:, None], ((n_fft - hop) // 2,) * 2, mode="reflect")[:, 0]
    window = torch.hann_window(n_fft, device=waveform.device)
    magnitude = torch.stft(waveform, n_fft, hop, window=window, center=False, return_complex=True).abs()
    mel = slaney_filters(n_fft, mels, sample_rate).to(waveform.device) @ magnitude
    return mel.clamp(min=1e-5).log().transpose(1, 2)[:, None, :columns]
