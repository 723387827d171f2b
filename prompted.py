"""Clips for a prompt, from two models of the diffusers library and the discriminator that was trained on them.

Used by sample.py --prompt.
"""

import argparse
import time
from pathlib import Path

from torch import Tensor

import checkpoint
import distributed
import media
from guidance import by_noise_level, sample
from manifest import save_report
from many import generate
from page import save_page, write_clips
from pretrained import FPS, FRAMES, Side, open_sides
from prompts import bind
from schedule import Pairing

CHUNK = 4  # clips at a time: these models are large


def known(path: Path, keep: str, side: Side, n: int) -> Tensor:
    """The latents of the first two seconds of a media file's picture or sound, n times."""
    try:
        seconds = FRAMES // FPS
        frames, waveform = media.read_clip(path, FPS, side.size if keep == "video" else 32, seconds=seconds + 1)
        clip, wanted = (frames, FRAMES) if keep == "video" else (waveform, seconds * media.SAMPLE_RATE)
        if len(clip) < wanted:
            raise ValueError(f"it is shorter than {seconds} s")
    except ValueError as error:
        raise ValueError(f"--given {path}: {error}") from error
    latents = side.encode(clip[None, :wanted])
    return latents.expand(n, *latents.shape[1:])


def make_clips(args: argparse.Namespace) -> None:
    """Guided and independent clips, a page and report.json, as sample.py makes them, for args.prompt."""
    start, named = time.time(), checkpoint.load(args.run / "model.pt").get("models")
    if not named:
        raise ValueError(
            f"{args.run} knows no prompts: train.py --video-model NAME --audio-model NAME makes such a run"
        )
    discriminator = checkpoint.load_network(args.run / "model.pt", "discriminator", args.device).requires_grad_(False)
    sides = open_sides(named["video"], named["audio"], named["size"], args.device)
    shapes = discriminator.video_shape, discriminator.audio_shape
    for side, shape in zip(sides, shapes, strict=True):
        if side.shape != shape:
            raise ValueError(f"{side.name} has latents of shape {side.shape}, {args.run} was trained on {shape}")
    told = [side.embed([args.prompt] * min(args.n, CHUNK)) for side in sides]
    grid = Pairing(*(side.schedule for side in sides), named["pairing"]).grid(args.steps)
    given = {}
    if args.given:
        side = sides[0] if args.keep == "video" else sides[1]
        given[f"given_{args.keep}"] = known(args.given, args.keep, side, args.n)
    clips = {}
    for system, weight in (("guided", by_noise_level(*args.weight)), ("independent", 0.0)):

        def draw(video_shape: tuple, audio_shape: tuple, weight=weight, **options) -> tuple[Tensor, Tensor]:
            rows = [[tuple(x[: video_shape[0]] for x in part) for part in conditions] for conditions in told]
            models = bind([side.model for side in sides], discriminator, rows, args.prompt_scale)
            solver = {"steps": args.steps, "solver": args.solver, "device": args.device, "grid": grid}
            return sample(*models, video_shape, audio_shape, weight=weight, **solver, **options)

        *latents, _ = generate(draw, shapes, args.seed, args.n, system, given, chunk=CHUNK)
        if distributed.rank() > 0:
            continue
        frames, waveforms = (side.decode(x) for side, x in zip(sides, latents, strict=True))
        spectrograms = media.log_mel(waveforms)
        clips[system] = write_clips(args.out, system, frames, waveforms, spectrograms, FPS)
    if distributed.rank() > 0:
        return
    rows = [dict(zip(clips, files, strict=True)) for files in zip(*clips.values(), strict=True)]
    summary = (
        f"{args.prompt!r}. Left: guided by the discriminator. Right: the same noise and prompt, the two base models, "
        f"{named['video']} and {named['audio']}, each on their own."
    )
    save_page(args.out / "index.html", "Sound that belongs to the picture", summary, FRAMES / FPS, rows)
    report = {
        "clips": [{name: str(args.out / files["video"]) for name, files in row.items()} for row in rows],
        "prompt": args.prompt,
        "models": named,
        "seconds": time.time() - start,
        "seed": args.seed,
    }
    save_report(args, report)
    print(f"{report['seconds']:.0f} s; open {args.out / 'index.html'}")
