"""Sound and picture as tensors, and back as files.

    waveform (B, samples) in [-1, 1], mono, 16 kHz   <->   log-mel spectrogram (B, 1, n_mels, L) in [-1, 1]
    frames uint8 (T, H, W, 3)                        <->   video (B, 3, T, H, W) in [-1, 1]

The spectrogram is the mel-filtered STFT magnitude in decibels, with FLOOR_DB mapped to -1 and 0 dB to +1.
The way back has no phase, so Griffin-Lim (with the momentum of Perraudin et al. 2013) invents a consistent one.
Used by data.py and clips.py to make batches, and by sample.py and evaluate.py to write files.
"""

import functools
import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from torch import Tensor

from files import atomic

SAMPLE_RATE = 16_000  # samples per second
N_FFT = 1024  # 64 ms window
HOP = 250  # 15.6 ms: eight spectrogram columns to a video frame at 8 fps
N_MELS = 64
FLOOR_DB = -60.0
LONGEST = 600.0  # seconds that are read of a file
MAX_PIXELS = 2**26  # of a picture: 8K is half of it


@functools.cache
def mel_filters() -> Tensor:
    """Triangular filters (n_mels, bins) with unit peaks, evenly spaced on the mel scale 2595 log10(1 + f / 700)."""
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(2595 * math.log10(1 + 60 / 700), top, N_MELS + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def stft(waveform: Tensor) -> Tensor:
    """(B, samples) -> complex (B, bins, 1 + samples // HOP), scaled so that a full-scale sine has magnitude 1."""
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True, pad_mode="reflect")
    return spectrum * (2 / window.sum())


def log_mel(waveform: Tensor) -> Tensor:
    """Waveform (B, samples) -> log-mel spectrogram (B, 1, n_mels, samples // HOP) in [-1, 1]."""
    spectrum = torch.view_as_real(stft(waveform)[..., : waveform.shape[-1] // HOP])
    magnitude = spectrum.square().sum(-1).sqrt()  # several times faster than abs() on complex numbers
    mel = mel_filters().to(waveform.device) @ magnitude
    decibels = 20 * torch.log10(mel.clamp(min=10 ** (FLOOR_DB / 20)))
    return (1 - 2 * decibels / FLOOR_DB).clamp(-1, 1)[:, None]


def griffin_lim(spectrogram: Tensor, iterations: int = 48) -> Tensor:
    """Log-mel spectrogram (B, 1, n_mels, L) -> waveform (B, L * HOP), scaled to stay within [-1, 1].

    The linear magnitude is found by multiplicative updates for non-negative least squares (Lee & Seung 2001), which
    keep it positive and, unlike the pseudo-inverse, do not smear a partial over its neighbours.
    """
    mel = 10 ** ((1 - spectrogram[:, 0].float().clamp(-1, 1)) / 2 * FLOOR_DB / 20)
    mel = (mel - 10 ** (FLOOR_DB / 20)).clamp(min=0)  # the floor stands for silence, not for hiss
    filters = mel_filters().to(mel.device)
    magnitude = filters.T @ mel
    target, gram = magnitude.clone(), filters.T @ filters
    for _ in range(60):
        magnitude = magnitude * target / (gram @ magnitude + 1e-9)
    magnitude = torch.cat([magnitude, magnitude[..., -1:]], dim=-1)  # the column that log_mel leaves out
    window = torch.hann_window(N_FFT, device=mel.device)
    length = mel.shape[-1] * HOP
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)).to(mel.device) * 2 * math.pi
    angles, previous = torch.polar(torch.ones_like(magnitude), phase), torch.zeros(1, device=mel.device)
    for _ in range(iterations + 1):
        wave = torch.istft(magnitude * angles * (window.sum() / 2), N_FFT, HOP, window=window, length=length)
        consistent = stft(wave)
        angles = consistent + 0.9 * (consistent - previous)
        angles, previous = angles / angles.abs().clamp(min=1e-9), consistent
    return wave / wave.abs().amax(dim=-1, keepdim=True).clamp(min=1)


def first_half(video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Masks, broadcast to video (B, 3, T, H, W) and audio (B, 1, n_mels, L), of what is known halfway through a clip.

    A column's window reaches N_FFT / 2 samples ahead: those that would show sound from beyond the half are left out.
    """
    frames, columns = (torch.arange(n) < n / 2 for n in (video.shape[2], audio.shape[3]))
    columns = columns & (torch.arange(len(columns)) * HOP + N_FFT / 2 <= len(columns) * HOP / 2)
    return frames[:, None, None], columns


def to_video(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """float (B, 3, T, H, W) in [-1, 1] -> uint8 (B, T, H, W, 3)."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()


def save_wav(path: Path, waveform: Tensor) -> None:
    """Waveform (samples,) in [-1, 1] as 16-bit PCM."""
    buffer = io.BytesIO()  # soundfile does not tell why it cannot write
    soundfile.write(buffer, waveform.cpu().numpy(), SAMPLE_RATE, format="WAV")
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def save_mp4(path: Path, frames: Tensor, waveform: Tensor, fps: Fraction | int, scale: int = 8) -> None:
    """Frames uint8 (T, H, W, 3), enlarged `scale` times, and waveform (samples,): H.264 and AAC in one file."""
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    picture = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2).contiguous().numpy()
    with atomic(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, options={"b": "96000"})
        audio.layout = "mono"
        for picture_t in picture:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture_t, format="rgb24")))
        container.mux(video.encode())
        sound = waveform.cpu().clamp(-1, 1).numpy().astype(np.float32)
        for start in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = SAMPLE_RATE, start
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def read_clip(path: Path, fps: float, size: int, seconds: float = LONGEST) -> tuple[Tensor, Tensor]:
    """A media file as frames uint8 (T, size, size, 3) at `fps` and waveform (samples,) at SAMPLE_RATE, from one
    common zero.

    Frame k is the picture on screen at time k / fps; sound and picture both start where the later of the two starts,
    and the shorter ends them, `seconds` later at most. The largest centred square is cut from each picture.
    Raises ValueError, in one line, on a file that cannot be read, has no sound, or no picture.
    """
    try:
        start = max(first_times(path))
        pictures, frame_end, heard, sound = decode(path, start, fps, size, seconds)
    except (av.FFmpegError, OSError, MemoryError) as error:
        raise ValueError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error
    length = max(min(frame_end, heard + len(sound) / SAMPLE_RATE, start + seconds) - start, 0)
    first, frames = round((start - heard) * SAMPLE_RATE), pictures[: int(length * fps + 1e-6)]
    frames = np.stack(frames) if frames else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(frames), torch.from_numpy(sound[first : first + int(length * SAMPLE_RATE)].copy())


def open_streams(path: Path) -> tuple[av.container.InputContainer, list]:
    """The container and its first video and audio stream, each decoded by one thread: large pictures take memory."""
    container = av.open(str(path), timeout=(30, 30), metadata_errors="replace")
    found = {"picture": container.streams.video[:1], "sound": container.streams.audio[:1]}
    for name, streams in found.items():
        if not streams or streams[0].codec_context is None:
            container.close()
            raise ValueError(f"its {name} is in no known form" if streams else f"it has no {name}")
    streams = [stream for streams in found.values() for stream in streams]
    streams[0].codec_context.thread_count = 1
    streams[0].codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, streams


def first_times(path: Path) -> tuple[float, float]:
    """When, in seconds, the first picture is shown and the first sound heard."""
    container, streams = open_streams(path)
    found = {}
    with container:
        for frame in container.decode(*streams):
            if frame.time is not None:
                found.setdefault(type(frame), frame.time)
            if len(found) == 2:
                return found[av.VideoFrame], found[av.AudioFrame]
    raise ValueError("it holds no decodable picture or sound")


def decode(path: Path, start: float, fps: float, size: int, seconds: float) -> tuple[list, float, float, np.ndarray]:
    """Pictures (size, size, 3) at start, start + 1 / fps, ... and when the last one ends; when sound starts, and it.

    Only a picture that is on screen at one of these times is kept: memory depends on neither length nor frame rate.
    """
    container, streams = open_streams(path)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    pictures, intervals, blocks, last, heard, n_samples = [], [], [], None, None, 0
    ends = set()  # streams that have been read for long enough

    def show(until: float) -> None:
        small = None
        while start + len(pictures) / fps + 1e-6 < min(until, start + seconds):
            small = square(last, size) if small is None else small
            pictures.append(small)

    with container:
        for frame in container.decode(*streams):
            if frame.time is None or type(frame) in ends:
                continue
            if isinstance(frame, av.AudioFrame):
                heard = frame.time if heard is None else heard
                blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
                n_samples += len(blocks[-1]) if blocks else 0
            elif last is None or frame.time > last.time:
                if last is not None:
                    show(frame.time)
                    intervals.append(frame.time - last.time)
                last = frame
            if frame.time > start + seconds or n_samples > (start - (heard or start) + seconds + 1) * SAMPLE_RATE:
                ends.add(type(frame))
            if len(ends) == 2:
                break
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    end = last.time + (float(np.median(intervals)) if intervals else 0)
    show(end)
    return pictures, end, heard, np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def square(frame: av.VideoFrame, size: int) -> np.ndarray:
    """The largest centred square of a picture, uint8 (size, size, 3)."""
    side = min(frame.width, frame.height)
    width, height = (max(1, round(n * size / side)) for n in (frame.width, frame.height))
    whole = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return whole[top : top + size, left : left + size]
