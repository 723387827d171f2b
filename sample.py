"""Make clips: guided by the discriminator, and beside them the same noise left to the two base models alone.

    python sample.py --weight 1 3                         8 guided and 8 independent clips from the shipped weights
    python sample.py --run runs/discriminator             from a discriminator of your own
    python sample.py --given clip.mp4 --keep video        new sound for a given picture
    python sample.py --given clip.mp4 --keep audio        new pictures for a given sound
    python sample.py --given clip.mp4 --keep start        its first half, and another second half for both
    python sample.py --run RUN --prompt "a dog barks"     from a run on two models of the diffusers library
    torchrun --nproc-per-node 4 -- sample.py --n 256         drawn by four processes

Writes mp4, wav and spectrograms, a page that plays them (index.html), contact.png and report.json.
"""

import script  # isort: skip, before what takes seconds to import

import argparse
import itertools
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import distributed
import figures
import hits
import media
from data import Xylophone
from guidance import CLIMB, SOLVERS, by_noise_level, sample, time_grid
from manifest import save_report
from many import generate
from page import save_page, write_clips
from prompted import make_clips


def given_clip(path: Path, n: int, world: Xylophone, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The first seconds of a media file, n times: video (n, 3, T, H, W) and audio (n, 1, n_mels, L).

    Only the first `share` of them must be there; what is missing of the rest is still and silent.
    """
    try:
        frames, waveform = media.read_clip(path, world.fps, world.size, seconds=world.seconds + 1)
        frames, waveform = frames[: world.frames], waveform[: world.samples]
        if len(frames) < share * world.frames or len(waveform) < share * world.samples:
            raise ValueError(f"it is shorter than {share * world.seconds:g} s")
    except ValueError as error:
        raise ValueError(f"--given {path}: {error}") from error
    frames = torch.cat([frames, frames[-1:].expand(world.frames - len(frames), *frames.shape[1:])])
    waveform = torch.nn.functional.pad(waveform, (0, world.samples - len(waveform)))
    video, audio = media.to_video(frames[None]), media.log_mel(waveform[None])
    return video.expand(n, *video.shape[1:]), audio.expand(n, *audio.shape[1:])


def captions(system: str, seen: list, heard: list) -> list[str]:
    """Per clip, how many of its hits are seen and heard at the same time and on the same bar."""
    pairs = list(zip(seen, heard, strict=True))
    agreeing = [sum(abs(a[1] - b[1]) <= 0.5 for a, b in hits.match(s, h)) for s, h in pairs]
    counts = [f"{len(s)} hits seen, {len(h)} heard, {n} agree" for (s, h), n in zip(pairs, agreeing, strict=True)]
    return [f"{system} {k}: {count}" for k, count in enumerate(counts)]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="clips of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default %(default)s)")
    parser.add_argument("--solver", choices=tuple(SOLVERS), default="dpm++2m-churn", help="default %(default)s")
    script.add_climb(parser, None, f"{CLIMB}; with --prompt none")
    parser.add_argument(
        "--weight",
        type=float,
        nargs="+",
        default=[1.0],
        help="one, or for t > 0.6, t > 0.1 and the rest, which leaves the picture alone while t > 0.5 (default 1); "
        "with --keep audio or video the second from t = 1, of both",
    )
    parser.add_argument("--given", type=Path, metavar="CLIP", help="a media file, part of which is kept")
    parser.add_argument("--keep", choices=("audio", "video", "start"), help="what to keep of --given")
    parser.add_argument("--prompt", help="what is seen and heard, for a run on models that take text")
    parser.add_argument(
        "--prompt-scale", type=float, nargs=2, metavar=("V", "A"),
        help="classifier-free guidance of video and audio (default 7.5 2.5)",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=Path, default=checkpoint.PRETRAINED, help="a run of train.py (default pretrained)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (here %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder (default %(default)s)")
    args = script.parse_options(parser, argv)
    if args.n < 1 or args.steps < 1 or len(args.weight) > 3:
        parser.error("--n and --steps must be at least 1, and --weight one to three numbers")
    if bool(args.given) != bool(args.keep):
        parser.error("--given CLIP and --keep audio|video|start go together")
    if args.prompt is None and args.prompt_scale:
        parser.error("--prompt-scale is of --prompt, which is not given")
    if args.prompt is not None and args.climb:
        parser.error("--climb is for this project's own base models, not for --prompt")
    if args.climb is None:
        args.climb = CLIMB if args.prompt is None else 0.0
    args.prompt_scale = args.prompt_scale or [7.5, 2.5]
    if args.prompt is not None and args.keep == "start":
        parser.error("--keep start is for this project's own base models, not for --prompt")
    return args


def make_pairs(args: argparse.Namespace) -> None:
    """Guided and independent clips of this project's own models."""
    start = time.time()
    models = checkpoint.load_run(args.run, args.device)
    world = Xylophone(models[2].video_shape[-1])
    given, keep = {}, {}
    if args.given:
        clip = given_clip(args.given, args.n, world, 0.5 if args.keep == "start" else 1.0)
        given = dict(zip(("given_video", "given_audio"), (x.to(args.device) for x in clip), strict=True))
        if args.keep == "start":
            keep["keep"] = tuple(mask.to(args.device) for mask in media.first_half(*clip))
        else:
            given = {f"given_{args.keep}": given[f"given_{args.keep}"]}
    guided = by_noise_level(*args.weight, given=args.keep in ("audio", "video"))
    clips, agreements, sheet = {}, {}, []
    for system, weight in (("guided", guided), ("independent", 0.0)):
        how = {"steps": args.steps, "solver": args.solver, "climb_below": args.climb, "device": args.device}
        draw = partial(sample, *models, weight=weight, **how, **keep)
        video, audio, _ = generate(draw, world.shapes, args.seed, args.n, system, given)
        if distributed.rank() > 0:
            continue
        frames, waveforms = media.to_frames(video), media.griffin_lim(audio)
        clips[system] = write_clips(args.out, system, frames, waveforms, audio, world.fps)
        seen, heard = hits.see(video), hits.hear(audio)
        agreements[system], labels = hits.agreement(seen, heard), captions(system, seen, heard)
        for k, clip in enumerate(clips[system]):
            clip |= {"label": labels[k], "seen": [h[0] for h in seen[k]], "heard": [h[0] for h in heard[k]]}
        sheet.append(zip(video[:4], audio[:4], labels[:4], strict=True))

    if distributed.rank() > 0:
        return
    video, audio, titles = zip(*itertools.chain(*zip(*sheet, strict=True)), strict=True)  # guided, independent, ...
    figures.save_sheet(args.out / "contact.png", torch.stack(video), torch.stack(audio), titles)

    rows = [dict(zip(clips, files, strict=True)) for files in zip(*clips.values(), strict=True)]
    found = {name: a["hit_f1"] * a["pitch_accuracy"] for name, a in agreements.items()}
    summary = (
        "Left: guided by the discriminator. Right: the same noise, the two base models each on their own. "
        f"Hits seen and heard at the same time and on the same bar: {found['guided']:.0%} guided, "
        f"{found['independent']:.0%} independent."
    )
    save_page(args.out / "index.html", "Sound that belongs to the picture", summary, world.seconds, rows)
    asked = sum(any(guided(t)) for t in time_grid(args.steps, models[0].sde, args.climb)[:-1].tolist())
    report = {
        "clips": [{name: str(args.out / files["video"]) for name, files in row.items()} for row in rows],
        "seconds": time.time() - start,
        "network_calls": {"base": args.steps * (1 if args.keep in ("audio", "video") else 2), "discriminator": asked},
        "alignment": found["guided"],
        "alignment_independent": found["independent"],
        "seed": args.seed,
    }
    save_report(args, report)
    print(f"{'':12} {'hit_f1':>8} {'pitch':>8} {'both':>8}")
    for name, a in agreements.items():
        print(f"{name:12} {a['hit_f1']:8.3f} {a['pitch_accuracy']:8.3f} {found[name]:8.3f}")
    print(f"{report['seconds']:.0f} s; mp4, wav, png, contact.png and report.json are in {args.out}")
    print(f"next: open {args.out / 'index.html'}")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with distributed.processes(args.device) as args.device:
        (make_pairs if args.prompt is None else make_clips)(args)


if __name__ == "__main__":
    script.run_main(main)
