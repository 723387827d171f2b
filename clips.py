"""ClipFolder: a folder of your own clips as training data, with the interface of data.Xylophone.

Any container, picture size, frame rate and sound that FFmpeg reads, subfolders included. Each file is decoded once,
at the model's frame rate, size and sample rate, into a cache beside the clips; a batch is then random windows of it,
in which sound and picture are cut at the same instant. Unfit files are named once, with the reason, and left out.

Used by train.py --data FOLDER and evaluate.py --data FOLDER.
"""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import media
from data import Xylophone
from files import atomic

SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg"}


def find_clips(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --data takes a folder of clips, or xylophone")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no clips ({', '.join(sorted(SUFFIXES))})")
    return paths


class ClipFolder:
    """Windows as long as a clip of Xylophone(size) from every usable clip under `folder`."""

    def __init__(self, folder: Path, size: int = 32, workers: int = 2):
        self.size, self.frames, self.fps = size, size // 2, 8
        self.seconds = self.frames / self.fps
        self.samples = int(self.seconds * media.SAMPLE_RATE)
        self.shapes = (3, self.frames, size, size), (1, media.N_MELS, self.samples // media.HOP)
        paths = find_clips(folder)
        self.cache = folder / ".mmdisco-cache"
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(self._load, paths)
            loaded = list(tqdm(results, total=len(paths), desc="reading clips", disable=len(paths) < 20))
        self.clips, self.skipped = [], {}
        for path, clip in zip(paths, loaded, strict=True):
            if isinstance(clip, str):
                self.skipped[path] = clip
                print(f"skipped {path}: {clip}", file=sys.stderr)
            else:
                self.clips.append(clip)
        if not self.clips:
            raise ValueError(f"none of the {len(paths)} clips in {folder} can be used; the lines above say why")

    def _load(self, path: Path) -> tuple[Tensor, Tensor] | str:
        """Frames and waveform of one file, from the cache if it has not changed since, or why it cannot serve."""
        facts = path.stat()
        name = f"{path}|{facts.st_size}|{facts.st_mtime_ns}|{self.size}|{self.fps}|{media.SAMPLE_RATE}"
        cached = self.cache / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"
        try:
            if cached.exists():
                with np.load(cached) as stored:
                    return torch.from_numpy(stored["frames"]), torch.from_numpy(stored["waveform"])
            frames, waveform = media.read_clip(path, self.fps, self.size)
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            return str(error)
        if len(frames) < self.frames or len(waveform) < self.samples:
            lasts = min(len(frames) / self.fps, len(waveform) / media.SAMPLE_RATE)
            return f"it lasts {lasts:.1f} s, shorter than {self.seconds:g} s"
        if not torch.isfinite(waveform).all():
            return "its sound holds values that are not numbers"
        with suppress(OSError), atomic(cached) as temporary:  # a folder that cannot be written to is read each time
            np.savez(temporary, frames=frames.numpy(), waveform=waveform.numpy())
        return frames, waveform

    def windows(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n random windows: frames uint8 (n, T, H, W, 3) and waveform (n, samples), cut at the same frame boundary."""
        frames, waveforms = [], []
        for index in torch.randint(len(self.clips), (n,), generator=generator).tolist():
            picture, sound = self.clips[index]
            last = min(len(picture) - self.frames, int((len(sound) - self.samples) * self.fps / media.SAMPLE_RATE))
            k = int(torch.randint(last + 1, (), generator=generator))
            start = round(k * media.SAMPLE_RATE / self.fps)
            frames.append(picture[k : k + self.frames])
            waveforms.append(sound[start : start + self.samples])
        return torch.stack(frames), torch.stack(waveforms)

    def batch(self, n: int, generator: torch.Generator, only: str = "both") -> tuple[Tensor | None, Tensor | None]:
        """n pairs ready for the models, video (n, 3, T, H, W) and log-mel audio (n, 1, n_mels, L)."""
        frames, waveform = self.windows(n, generator)
        video = media.to_video(frames) if only != "audio" else None
        return video, media.log_mel(waveform) if only != "video" else None


def open_world(data: str, size: int) -> Xylophone | ClipFolder:
    """The world that --data names: xylophone or a folder."""
    return Xylophone(size) if data == "xylophone" else ClipFolder(Path(data), size)
