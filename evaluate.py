"""Alignment and fidelity of every system, in one table.

    python evaluate.py                      the shipped weights, 512 clips a system
    python evaluate.py --run runs/mine      a discriminator of your own
    python evaluate.py --score a.mp4 b.mp4  only: does the sound of these files belong to their picture?
    torchrun --nproc-per-node 4 -- evaluate.py --n 10000       clips drawn by four processes

real         held-out pairs of the world                shuffled     the same, sound and picture of different clips
independent  the two base models, each on its own       guided       the same with the discriminator's gradient
joint        one model of both, of train.py joint

    alignment = (hit_f1 * pitch_accuracy - that of shuffled) / (that of real - that of shuffled)       0 chance, 1 real

Hits come from the detectors of hits.py; fidelity to other held-out real clips, and diversity, are those of fidelity.py.
Below, by noise level on held-out real pairs: how well real and shuffled are told apart, and what the residual explains
of the noise eps - eps_base that the base models leave.
"""

import script  # isort: skip, before what takes seconds to import

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import distributed
import figures
import hits
import media
import sync
from clips import open_world
from data import Xylophone
from fidelity import RandomFeatures, frechet, frechet_error, seam, statistics
from guidance import CLIMB, SOLVERS, by_noise_level, draw, sample, unguided_eps
from information import MODALITIES, by_level, mutual_information
from manifest import save_report
from many import generate
from seeds import stream

INFORMATION_LEVELS = (0.1, 0.8)  # the noise levels over which information is summed: training hardly looks beyond
REFERENCE = 1024  # clips, at least, that a system is compared with
SYNC, HALVES = 1000, 256  # clips, at most, on which sync is judged, and to which a second half is made


def held_out(world, n: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """n real pairs, and others that all systems are compared with."""
    generators = (torch.Generator().manual_seed(seed + k) for k in range(2))
    return tuple(world.batch(size, g) for size, g in zip((n, max(n, REFERENCE)), generators, strict=True))


def compare(clips: dict[str, tuple], reference: tuple[Tensor, Tensor], world: Xylophone | None) -> tuple[dict, dict]:
    """The table's row for each system's (video, audio, seconds per clip), and the hits found in its clips.

    Pictures are compared as a file holds them, with 8 bits a channel.
    Without a world (clips of a folder) there are no hits to be found, and Frechet distances alone.
    """
    features = RandomFeatures(3, 3), RandomFeatures(1, 2)
    truth = [net(x) for net, x in zip(features, reference, strict=True)]
    systems, found = {}, {}
    for name, (video, audio, seconds) in clips.items():
        row = {"hit_f1": None, "pitch_accuracy": None, "alignment": None, "onset_error_ms": None}
        video = media.to_video(media.to_frames(video))
        if world:
            found[name] = {"video": video, "audio": audio, "seen": hits.see(video), "heard": hits.hear(audio)}
            row |= hits.agreement(found[name]["seen"], found[name]["heard"])
        compared = [(net(x), y) for net, x, y in zip(features, (video, audio), truth, strict=True)]
        row |= {f"{modality}_frechet": frechet(*pair) for modality, pair in zip(MODALITIES, compared, strict=True)}
        row |= {f"{m}_frechet_error": frechet_error(*pair) for m, pair in zip(MODALITIES, compared, strict=True)}
        systems[name] = row | {"seconds_per_clip": seconds}
    if world:
        product = {name: row["hit_f1"] * row["pitch_accuracy"] for name, row in systems.items()}
        for name, row in systems.items():
            row["alignment"] = (product[name] - product["shuffled"]) / (product["real"] - product["shuffled"])
    return systems, found


def physics(found: dict[str, dict], reference: tuple[Tensor, Tensor], world: Xylophone) -> dict[str, dict]:
    """fidelity.statistics of each system against other real clips and against clips that train.py drew at --seed 0."""
    training = [world.batch(32, stream(0, k)) for k in range(REFERENCE // 32)]
    training = tuple(torch.cat(x) for x in zip(*training, strict=True))
    other = {"video": reference[0], "audio": reference[1]}
    other |= {"seen": hits.see(reference[0]), "heard": hits.hear(reference[1])}
    return {name: statistics(x, other, training, world.fps) for name, x in found.items() if name != "shuffled"}


def continuation(draws: dict, real: tuple[Tensor, Tensor], world: Xylophone, seed: int, device: str) -> dict[str, dict]:
    """The first half of real clips kept, the second made by each system: how its hits agree, and what the cut shows."""
    keep = tuple(mask.to(device) for mask in media.first_half(*real))
    given = dict(zip(("given_video", "given_audio"), (x.to(device) for x in real), strict=True))
    shapes, n, rows = [x.shape[1:] for x in real], len(real[0]), {}
    clips = {name: (partial(f, keep=keep), shapes, seed, n, f"{name}, second half", given) for name, f in draws.items()}
    for name, (video, audio, _) in {"real": (*real, None), **{k: generate(*x) for k, x in clips.items()}}.items():
        video = media.to_video(media.to_frames(video))
        half, cut, found = world.frames // 2, int(keep[1].sum()), (hits.see(video), hits.hear(audio))
        rows[name] = hits.agreement(*([[h for h in clip if h[0] >= half / world.fps] for clip in x] for x in found))
        rows[name] |= {"video_seam": seam(video, half, 2), "audio_seam": seam(audio, cut, 3)}
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="clips a system (default %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default %(default)s)")
    parser.add_argument("--solver", choices=tuple(SOLVERS), default="dpm++2m-churn", help="default %(default)s")
    script.add_climb(parser, CLIMB)
    parser.add_argument(
        "--weight",
        type=float,
        nargs="+",
        default=[1.0, 3.0],
        help="one, or for t > 0.6, t > 0.1 and the rest, which leaves the picture alone while t > 0.5 (default 1 3); "
        "where a modality is given the second from t = 1, of both",
    )
    parser.add_argument(
        "--run", type=Path, default=checkpoint.PRETRAINED, help="a run of train.py (default pretrained)"
    )
    parser.add_argument("--joint", type=Path, metavar="RUN", help="a run of train.py joint, to compare with")
    parser.add_argument("--score", type=Path, nargs="+", metavar="CLIP", help="only score the sync of media files")
    parser.add_argument("--data", default="xylophone", help="xylophone (default), or a folder (fidelity, no hits)")
    parser.add_argument(
        "--hold-out", type=float, default=0.0, metavar="SHARE", help="judge on files so held out (default 0)"
    )
    parser.add_argument("--seed", type=int, default=1_000_000, help="of clips and noise (default %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (here %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="folder (default %(default)s)")
    args = script.parse_options(parser, argv)
    if args.n < 2 or args.steps < 1 or len(args.weight) > 3:
        parser.error("--n must be at least 2, --steps at least 1, and --weight one to three numbers")
    if args.score and (args.joint or args.hold_out or args.data != "xylophone"):
        parser.error("--score judges the files it is given: leave out --joint, --data and --hold-out")
    if not 0 <= args.hold_out < 1 or (args.hold_out and args.data == "xylophone"):
        parser.error("--hold-out is a share, below 1, of the files of --data FOLDER, as it was given to train.py")
    return args


def evaluate(args: argparse.Namespace) -> None:
    models = checkpoint.load_run(args.run, args.device)
    if args.score:
        return print_scores(args, sync.score_files(models[2], models[0].sde, args.score, args.device))
    named = dict(zip((*MODALITIES, "discriminator"), models, strict=True))
    part = "held-out" if args.hold_out else "train"
    with distributed.rank_0_first():
        world = open_world(args.data, named["discriminator"].video_shape[-1], args.hold_out, part)
    real, reference = held_out(world, args.n, args.seed)
    solver = {"steps": args.steps, "solver": args.solver, "climb_below": args.climb, "device": args.device}
    guided = partial(sample, *models, weight=by_noise_level(*args.weight), **solver)
    draws = {"independent": partial(sample, *models, weight=0.0, **solver), "guided": guided}
    conditional = partial(guided, weight=by_noise_level(*args.weight, given=True))
    draws |= {"audio_given_video": conditional, "video_given_audio": conditional}
    given = [{f"given_{modality}": x.to(args.device)} for modality, x in zip(MODALITIES, real, strict=True)]
    given = dict(zip(("audio_given_video", "video_given_audio"), given, strict=True))
    if args.joint:
        sde, named["joint"] = models[0].sde, checkpoint.load_network(args.joint / "model.pt", "joint", args.device)
        eps_model = unguided_eps(named["joint"], sde)
        draws["joint"] = lambda *shapes, generator: draw(eps_model, shapes, sde, generator=generator, **solver)
    clips = {"real": (*real, None), "shuffled": (real[0], real[1].roll(1, 0), None)}
    for name, draw_clips in draws.items():
        shapes = [x.shape[1:] for x in real]
        clips[name] = generate(draw_clips, shapes, args.seed, args.n, name, given.get(name))

    halves, halved = {name: draws[name] for name in ("independent", "guided")}, tuple(x[:HALVES] for x in real)
    continued = continuation(halves, halved, world, args.seed, args.device) if args.data == "xylophone" else {}
    if distributed.rank() > 0:
        return

    systems, found = compare(clips, reference, world if args.data == "xylophone" else None)
    information = mutual_information(models, real, INFORMATION_LEVELS, args.seed, args.device)
    report = {
        **{key: getattr(args, key) for key in ("n", "steps", "solver", "climb", "weight", "seed")},
        "systems": systems,
        "statistics": physics(found, reference, world) if found else {},
        "continuation": continued,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in named.items()},
        "sync": sync.judge(models[2], models[0].sde, *(x[:SYNC].to(args.device) for x in real)),
        **dict(zip(("mutual_information_nats", "mutual_information_error"), information, strict=True)),
        "levels": by_level(models, real, args.seed, args.device),
    }
    save_report(args, report)
    for name in draws:
        video, audio, _ = clips[name]
        figures.save_sheet(args.out / f"{name}.png", video[:8], audio[:8], [f"{name} {k}" for k in range(8)])
    shifts, scores = zip(*(row.values() for row in report["sync"]["curve"]), strict=True)
    axes = {"xlabel": "sound delayed by, ms", "ylabel": "score, nats", "xscale": "linear"}
    figures.save_figure(args.out / "sync.png", figures.draw_lines(shifts, {"real clips": scores}, **axes))
    print_report(report)
    print(f"report.json, sync.png and {', '.join(f'{name}.png' for name in draws)} are in {args.out}")
    print(f"next: python sample.py --run {args.run} --weight {' '.join(f'{w:g}' for w in args.weight)}")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with distributed.processes(args.device) as args.device:
        evaluate(args)


def print_table(rows: dict[str, dict], columns: list[str]) -> None:
    print(f"{'':16}" + "".join(f"{name:>24}" for name in columns))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(" " * 24 if row[c] is None else f"{row[c]:24.4f}" for c in columns))


def print_report(report: dict) -> None:
    print_table(report["systems"], list(report["systems"]["real"]))
    if report["statistics"]:
        print_table(report["statistics"], list(report["statistics"]["real"]))
        print_table(report["continuation"], list(report["continuation"]["real"]))
    columns = [
        "accuracy",
        "calibration_error",
        "bce",
        "pair_real",
        *(f"{m}_{k}" for k in ("explained", "cosine") for m in MODALITIES),
    ]
    print_table({f"t = {row['t']}": row for row in report["levels"]}, columns)
    print("sync: " + ", ".join(f"{key} {value:.4g}" for key, value in report["sync"].items() if key != "curve"))
    best = max(report["sync"]["curve"], key=lambda row: row["score"])
    print(f"score against shift of the sound: best at {best['shift_ms']:g} ms, {best['score']:.1f} nats (sync.png)")
    nats, error = (report[f"mutual_information_{key}"] for key in ("nats", "error"))
    print(f"parameters {report['parameters']}; mutual information {nats:.2f} +- {error:.2f} nats")


def print_scores(args: argparse.Namespace, rows: list[dict]) -> None:
    save_report(args, {"scores": rows})
    print(f"{'nats':>9}      error  above 0: the sound belongs to the picture; below: it does not")
    for row in rows:
        print(f"{row['nats']:9.2f} +- {row['error']:5.2f}    {row['clip']}")
    print(f"report.json is in {args.out}; next: python sample.py --given CLIP --keep video, for a sound that belongs")


if __name__ == "__main__":
    script.run_main(main)
