"""The clip-folder path on real files: a flash and a click at a known time, and every way in which a file can be
unfit.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import media
from clips import ClipFolder

FLASH = 1.25  # seconds


def write(
    path: Path, fps, rate: int, seconds: float = 2.5, size=(64, 48), channels: int = 1, codecs=("libx264", "aac")
):
    """A dark film that turns white at FLASH, with a click at the same time; `codecs` None leaves a stream out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        streams = []
        if codecs[0]:
            video = container.add_stream(codecs[0], rate=Fraction(fps).limit_denominator(1001))
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            streams.append(video)
        if codecs[1]:
            audio = container.add_stream(codecs[1], rate=rate)
            audio.layout = "stereo" if channels == 2 else "mono"
            streams.append(audio)
        if codecs[0]:
            for k in range(round(seconds * fps)):
                level = 255 if k / fps >= FLASH - 1e-9 else 0
                picture = np.full((size[1], size[0], 3), level, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
        if codecs[1]:
            sound = np.zeros(round(seconds * rate), np.float32)
            start = round(FLASH * rate)
            t = np.arange(len(sound) - start) / rate
            sound[start:] = 0.9 * np.exp(-t / 0.05) * np.sin(2 * np.pi * 1000 * t)
            form = audio.codec_context.format.name if codecs[1] == "pcm_s16le" else "fltp"
            for first in range(0, len(sound), 960):
                block = np.repeat(sound[None, first : first + 960], channels, 0)
                if form == "s16":
                    block = (block.T.reshape(1, -1) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=form, layout=audio.layout.name)
                frame.sample_rate, frame.pts = rate, first
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


CASES = [
    ("a.mp4", 24, 44_100, (64, 48), 2, ("libx264", "aac")),
    ("deep/er/b.mkv", 30_000 / 1001, 48_000, (48, 64), 1, ("libx264", "aac")),
    ("c.mov", 60, 22_050, (40, 40), 1, ("libx264", "aac")),
    ("d.webm", 25, 48_000, (64, 64), 2, ("libvpx", "libopus")),
    ("e.avi", 10, 16_000, (32, 32), 1, ("mpeg4", "pcm_s16le")),
    ("f.mp4", 8, 32_000, (128, 72), 2, ("libx264", "aac")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, fps, rate, size, channels, codecs in CASES:
        write(folder / name, fps, rate, size=size, channels=channels, codecs=codecs)
    return folder


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_flash_and_click_leave_the_loader_together_and_on_time(folder, name):
    frames, waveform = media.read_clip(folder / name, 8, 32)
    lit = (frames.float().mean((1, 2, 3)) > 128).nonzero()[0].item() / 8
    heard = (waveform.abs() > 0.2).nonzero()[0].item() / media.SAMPLE_RATE
    assert abs(lit - FLASH) <= 1 / 8 and abs(heard - FLASH) <= 1 / 8
    assert abs(lit - heard) <= 1 / 8
    assert abs(heard - FLASH) < 0.06  # encoders' priming is undone; what is left is the container's rounding


def test_windows_cut_sound_and_picture_at_the_same_instant(folder):
    world = ClipFolder(folder)
    frames, waveform = world.windows(40, torch.Generator().manual_seed(0))
    assert frames.shape == (40, 16, 32, 32, 3) and waveform.shape == (40, 32_000)
    starts = set()
    for picture, sound in zip(frames, waveform, strict=True):
        lit = (picture.float().mean((1, 2, 3)) > 128).nonzero()[0].item() / 8
        heard = (sound.abs() > 0.2).nonzero()[0].item() / media.SAMPLE_RATE
        assert abs(lit - heard) <= 1 / 8
        starts.add(lit)
    assert len(starts) > 2  # windows start at different times


def test_batches_are_ready_for_the_models_and_repeat_with_the_seed(folder):
    world = ClipFolder(folder)
    video, audio = world.batch(3, torch.Generator().manual_seed(1))
    assert video.shape == (3, 3, 16, 32, 32) and audio.shape == (3, 1, 64, 128)
    assert torch.equal(video, world.batch(3, torch.Generator().manual_seed(1), only="video")[0])


def test_the_second_reading_comes_from_the_cache(folder, monkeypatch):
    first = ClipFolder(folder)
    monkeypatch.setattr(media, "read_clip", None)
    second = ClipFolder(folder)
    for (f1, w1), (f2, w2) in zip(first.clips, second.clips, strict=True):
        assert torch.equal(f1, f2) and torch.equal(w1, w2)


def test_unfit_clips_are_named_once_and_skipped(tmp_path, capsys):
    write(tmp_path / "good.mp4", 10, 16_000)
    write(tmp_path / "silent.mp4", 10, 16_000, codecs=("libx264", None))
    write(tmp_path / "short.mp4", 10, 16_000, seconds=1.5)
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    (tmp_path / "empty.mov").write_bytes(b"")
    cut = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 3])
    (tmp_path / "notes.txt").write_text("left alone")
    world = ClipFolder(tmp_path)
    assert len(world.clips) == 1 and len(world.skipped) == 5
    lines = capsys.readouterr().err.strip().splitlines()
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 5
    assert any("silent.mp4: it has no sound" in line for line in skipped)
    assert any("short.mp4: it lasts 1.5 s" in line for line in skipped)


def test_a_folder_with_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ClipFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no clips"):
        ClipFolder(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    with pytest.raises(ValueError, match="none of the 1 clips"):
        ClipFolder(tmp_path)
