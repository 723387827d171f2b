"""LatentFolder: a folder of clips as latents of two pre-trained models, with the prompts beside them.

Each clip is cut into windows of two seconds, and both VAEs encode each window once. What they gave lies in shards of
some SHARD windows under FOLDER/.mmdisco-latents: an interrupted run goes on after its last shard, new and changed clips
go into new shards, and training reads them from disk as it needs them. The prompt of clip.mp4 is the text in clip.txt.

A batch comes in groups that share a prompt, since each clip is told from fakes made of its group: told from clips of
other prompts, a fake would be known by its prompt alone. One group in ten, and every clip whose prompt has no second
window, is drawn without regard to prompts and with the empty one: classifier-free guidance needs it (prompts.py).

Used by train.py --data FOLDER with --video-model and --audio-model.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import media
from data import ALL
from index import facts, find_clips, held_out
from pretrained import FPS, FRAMES, Side
from prompts import pooled
from schedule import Pairing

SHARD = 64  # windows, or a few more
DROPPED = 0.1  # share of groups that see the empty prompt


class LatentFolder:
    """Windows from every usable clip under `folder`, but for a share `hold_out` of the files; a side for each model."""

    def __init__(
        self, folder: Path, video: Side, audio: Side, pairing: str = "index", group: int = 4, hold_out: float = 0.0
    ):
        self.sides, self.group = (video, audio), group
        self.levels = Pairing(video.schedule, audio.schedule, pairing).levels
        self.shapes, self.models = (video.shape, audio.shape), (video.model, audio.model)
        paths = {key_of(path, folder): path for path in find_clips(folder)}
        form = "|".join([str(self.shapes), *(fingerprint(side) for side in self.sides)])
        self.cache = folder / ".mmdisco-latents" / hashlib.sha256(form.encode()).hexdigest()[:16]
        self.shards = list(read_shards(self.cache))
        known = {key for shard in self.shards for key in (*shard["clip"], *shard["skipped"])}
        self.encode({key: path for key, path in paths.items() if key not in known})
        for key, reason in ((k, r) for shard in self.shards for k, r in shard["skipped"].items() if k in paths):
            print(f"skipped {paths[key]}: {reason}", file=sys.stderr)
        prompts = {key: path.with_suffix(".txt") for key, path in paths.items()}
        prompts = {key: path.read_text().strip() if path.is_file() else "" for key, path in prompts.items()}
        self.prompts = ["", *sorted(set(prompts.values()) - {""})]
        numbers = {prompt: k for k, prompt in enumerate(self.prompts)}
        self.windows, self.of_prompt = [], defaultdict(list)  # (shard, row, prompt); windows with a prompt
        for k, shard in enumerate(self.shards):
            for row, key in enumerate(shard["clip"]):
                if key in paths and not held_out(key.split("|")[0], hold_out):
                    self.of_prompt[numbers[prompts[key]]].append(len(self.windows))
                    self.windows.append((k, row, numbers[prompts[key]]))
        if not self.windows:
            raise ValueError(f"none of the {len(paths)} clips in {folder} can be used; the lines above say why")
        self.conditions = tuple(embed_all(side, self.prompts) for side in self.sides)
        self.text = tuple(pooled(condition).shape[1] for condition in self.conditions)

    def encode(self, paths: dict[str, Path]) -> None:
        """Encode the clips and write them in shards."""
        frames, waveforms, keys, skipped = [], [], [], {}

        def flush() -> None:
            pairs = zip(torch.stack(frames).split(4), torch.stack(waveforms).split(4), strict=True) if frames else ()
            encoded = [(self.sides[0].encode(f).half().cpu(), self.sides[1].encode(w).half().cpu()) for f, w in pairs]
            video, audio = (torch.cat(x) for x in zip(*encoded, strict=True)) if encoded else (torch.zeros(0),) * 2
            name = hashlib.sha256("".join((*keys, *skipped)).encode()).hexdigest()[:16]
            shard = {"video": video, "audio": audio, "clip": list(keys), "skipped": dict(skipped)}
            checkpoint.save(self.cache / f"{name}.pt", shard)
            self.shards.append(shard)
            for collected in (frames, waveforms, keys, skipped):
                collected.clear()

        for key, path in tqdm(paths.items(), desc="encoding clips", disable=len(paths) < 4):
            try:
                picture, sound = media.read_clip(path, FPS, self.sides[0].size)
                samples = FRAMES * media.SAMPLE_RATE // FPS
                windows = min(len(picture) // FRAMES, len(sound) // samples)
                if not windows or not torch.isfinite(sound).all():
                    raise ValueError(f"it has no {FRAMES // FPS} s of picture and sound")
            except ValueError as error:
                skipped[key] = str(error)
                continue
            for k in range(windows):
                frames.append(picture[k * FRAMES : (k + 1) * FRAMES])
                waveforms.append(sound[k * samples : (k + 1) * samples])
                keys.append(key)
            if len(keys) >= SHARD:
                flush()
        if keys or skipped:
            flush()

    def batch(
        self, n: int, generator: torch.Generator, only: str = "both", rows: slice = ALL
    ) -> tuple[Tensor, Tensor, dict]:
        """n pairs of latents, of which `rows`, in groups with one prompt; what networks are told (perturb_pairs)."""

        def draw(numbers: list[int], k: int) -> list[int]:
            return [numbers[i] for i in torch.randperm(len(numbers), generator=generator)[:k].tolist()]

        drawn, told = [], []
        for _ in range(n // self.group):
            prompt = self.windows[int(torch.randint(len(self.windows), (), generator=generator))][2]
            same = self.of_prompt[prompt]
            if len(same) < 2 or torch.rand((), generator=generator) < DROPPED:
                prompt, same = 0, range(len(self.windows))
            # a prompt may have fewer windows than a group has places
            drawn += (draw(same, self.group) * self.group)[: self.group]
            told += [prompt] * self.group
        told, picked = told[rows], [(self.shards[k], row) for k, row, _ in (self.windows[i] for i in drawn[rows])]
        video, audio = (torch.stack([shard[x][row] for shard, row in picked]).float() for x in ("video", "audio"))
        conditions = tuple(tuple(x[told] for x in condition) for condition in self.conditions)
        return video, audio, {"conditions": conditions, "text": tuple(map(pooled, conditions))}


def key_of(path: Path, folder: Path) -> str:
    return "|".join(map(str, facts(path, folder).values()))


def fingerprint(side: Side) -> str:
    """What latents depend on beside the clip: the VAE's settings and weights."""
    total = sum(p.double().abs().sum().item() for p in side.pipe.vae.parameters())
    return f"{side.pipe.vae.config.scaling_factor}|{total:.6f}"


def read_shards(cache: Path) -> Iterator[dict]:
    """Shards as they lie on disk, not in memory; one that cannot be read is removed, and its clips encoded anew."""
    for path in sorted(cache.glob("*.pt")):
        try:
            yield checkpoint.load(path, mmap=True)
        except ValueError:
            print(f"{path} cannot be read: its clips are encoded again", file=sys.stderr)
            path.unlink()


def embed_all(side: Side, prompts: list[str]) -> tuple[Tensor, ...]:
    """The condition of each prompt, (n, ...), shorter sequences padded with zeros."""
    parts = [side.embed(prompts[k : k + 32])[0] for k in range(0, len(prompts), 32)]
    longest = [max(part[i].shape[1] for part in parts) for i in range(len(parts[0]))]
    return tuple(torch.cat([pad(part[i], longest[i]) for part in parts]) for i in range(len(parts[0])))


def pad(x: Tensor, length: int) -> Tensor:
    """x (B, S, ...) with zeros up to S = length."""
    return torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], dim=1)
