"""ClipFolder: a folder of your own clips as training data, with the interface of data.Xylophone.

Any container, picture size, frame rate and sound that FFmpeg reads, subfolders included. index.py decodes each file
once, at the model's frame rate, size and sample rate, and knows which cannot serve; a batch is then random windows,
read from disk as they are needed, in which sound and picture are cut at the same instant.

Used by train.py --data FOLDER and evaluate.py --data FOLDER.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import index
import media
from data import ALL, Xylophone


class ClipFolder:
    """Windows as long as a clip of Xylophone(size) from every usable clip under `folder`.

    With a share `hold_out` > 0, from the files that it leaves (part "train"), or from those that it takes ("held-out").
    """

    def __init__(self, folder: Path, size: int = 32, hold_out: float = 0.0, part: str = "train"):
        self.size, self.frames, self.fps = size, size // 2, 8
        self.seconds = self.frames / self.fps
        self.samples = int(self.seconds * media.SAMPLE_RATE)
        self.shapes = (3, self.frames, size, size), (1, media.N_MELS, self.samples // media.HOP)
        self.cache = index.cache_folder(folder, f"{size}px")
        entries = index.build(folder, self.cache, self.fps, size, self.frames)
        self.skipped = {entry["path"]: entry["reason"] for entry in entries if "reason" in entry}
        usable = [entry for entry in entries if "reason" not in entry]
        if not usable:
            raise ValueError(f"none of the {len(entries)} clips in {folder} can be used; the lines above say why")
        usable = [entry for entry in usable if index.held_out(entry["path"], hold_out) == (part == "held-out")]
        if not usable:
            raise ValueError(f"no clip of {folder} is in the {part} part at --hold-out {hold_out:g}")
        self.names = np.array([index.key(entry) for entry in usable], dtype="S24")
        self.lengths = np.array([(entry["frames"], entry["samples"]) for entry in usable])

    def windows(self, n: int, generator: torch.Generator, rows: slice = ALL) -> tuple[Tensor, Tensor]:
        """n random windows: frames uint8 (n, T, H, W, 3) and waveform (n, samples), cut at the same frame boundary."""
        picked = []
        for clip in torch.randint(len(self.names), (n,), generator=generator).tolist():
            n_frames, n_samples = self.lengths[clip].tolist()
            last = min(n_frames - self.frames, int((n_samples - self.samples) * self.fps / media.SAMPLE_RATE))
            picked.append((clip, int(torch.randint(last + 1, (), generator=generator))))
        frames, waveforms = [], []
        for clip, k in picked[rows]:
            stem, start = self.cache / self.names[clip].decode(), round(k * media.SAMPLE_RATE / self.fps)
            picture, sound = (np.load(f"{stem}.{kind}.npy", mmap_mode="r") for kind in ("frames", "sound"))
            frames.append(torch.from_numpy(picture[k : k + self.frames].copy()))
            waveforms.append(torch.from_numpy(sound[start : start + self.samples].copy()))
        return torch.stack(frames), torch.stack(waveforms).float() / 32767

    def batch(
        self, n: int, generator: torch.Generator, only: str = "both", rows: slice = ALL
    ) -> tuple[Tensor | None, Tensor | None]:
        """n pairs, of which `rows`, as data.Xylophone gives them."""
        frames, waveform = self.windows(n, generator, rows)
        video = media.to_video(frames) if only != "audio" else None
        return video, media.log_mel(waveform) if only != "video" else None


def open_world(
    data: str, size: int, hold_out: float = 0.0, part: str = "train", device: str = "cpu"
) -> Xylophone | ClipFolder:
    """The world that --data names: xylophone, drawn on `device`, or a folder."""
    return Xylophone(size, device) if data == "xylophone" else ClipFolder(Path(data), size, hold_out, part)
