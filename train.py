"""Train a base model, the discriminator, or the joint model that it is measured against.

    python train.py video                         a base model, on one modality alone
    python train.py audio
    python train.py                               the discriminator, on the two shipped base models
    python train.py discriminator --data FOLDER   the same on a folder of your own clips
    python train.py --video-model NAME --audio-model NAME --data FOLDER
                                                  the same on two models of the diffusers library
    python train.py joint                         one model of both modalities, without guidance
    python train.py --from pretrained/model.pt --data FOLDER
                                                  start from weights that are there
    python train.py --resume runs/discriminator   go on where a run stopped (Ctrl-C saves)

What a step minimises is in objective.py, the options are in options.py.
"""

import script  # isort: skip, before what takes seconds to import

import argparse
import contextlib
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import distributed
import figures
import log
import options
import pretrained
from clips import open_world
from files import remove_leftovers
from guidance import draw, sample, unguided_eps
from latents import LatentFolder
from manifest import save_report
from muon import learning_rate, make_optimizers
from objective import GROUP, ahead, make_objective, of_states
from score import VPSDE, FrozenModel


def update_ema(ema: dict[str, Tensor], network: nn.Module, step: int, decay: float = 0.999) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        ema[name].lerp_(value, 1 - decay)


def preview(path: Path, args: argparse.Namespace, ema: dict, world, sde: VPSDE, bases: tuple) -> None:
    """A sheet of four samples from the EMA weights so far."""
    network = checkpoint.NETWORKS[args.model](**checkpoint.options_of(args.model, world)).to(args.device).eval()
    network.load_state_dict(ema)
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, *x.shape[1:]) for x in world.batch(1, generator)]
    if args.model == "discriminator":
        clips = sample(*bases, network, *shapes, generator=generator, device=args.device)
    else:
        shapes = {"video": shapes[:1], "audio": shapes[1:], "joint": shapes}[args.model]
        eps_model = unguided_eps(of_states(network, args.model), sde)
        clips = draw(eps_model, shapes, sde, generator=generator, device=args.device)
        clips = (None, *clips) if args.model == "audio" else (*clips, None)[:2]
    figures.save_sheet(path, *clips)


def open_data(args: argparse.Namespace) -> tuple:
    """The world of --data; for models of the diffusers library, the clips as their latents, and the two models."""
    if not args.video_model:
        return open_world(args.data, args.size, args.hold_out, device=args.device), ()
    sides = pretrained.open_sides(args.video_model, args.audio_model, args.size, args.device)
    world = LatentFolder(Path(args.data), *sides, args.pairing, GROUP, args.hold_out)
    return world, world.models


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    sde, out = VPSDE(), args.out
    with distributed.rank_0_first():
        remove_leftovers(out)
        world, bases = open_data(args)
    network = checkpoint.NETWORKS[args.model](**checkpoint.options_of(args.model, world)).to(args.device)
    if args.start and not args.resume:
        path = Path(args.start)
        checkpoint.fill(network, checkpoint.load_model(path, args.model, args.device)["model"], path)
    ema = {name: value.clone() for name, value in network.state_dict().items()}
    optimizers = make_optimizers(network, args.lr)
    rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    run = {"step": 0, "seconds": 0.0, "history": []}
    about = {"kind": args.model, "options": checkpoint.options_of(args.model, world)}
    if args.video_model:
        about["models"] = {name: getattr(args, f"{name}_model") for name in ("video", "audio")}
        about["models"] |= {"pairing": args.pairing, "size": args.size}
    if args.resume or (distributed.RESTARTS and (out / "last.pt").exists()):
        state = checkpoint.load(out / "last.pt", args.device)
        for name in ("kind", "options", "models"):
            if state.get(name) != about.get(name):
                raise ValueError(f"{out} was trained for {state.get(name)}, not {about.get(name)}: name another --out")
        network.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        ema, run = state["ema"], state["run"]
    if args.model == "discriminator" and not args.video_model:
        bases = tuple(
            checkpoint.load_base(args.bases / f"{kind}.pt", kind, args.size, sde, args.device)
            for kind in ("video", "audio")
        )
    asked = bases
    if args.compile and bases:  # the discriminator itself cannot be: compiled code has no second derivative
        asked = tuple(FrozenModel(torch.compile(model.network), sde, model.prediction) for model in bases)
    elif args.compile:
        network.compile()
    make_batch, loss_of = make_objective(args, network, world, sde, asked)
    loss_of = distributed.shared(network, loss_of)

    def save() -> None:
        if distributed.rank() > 0:
            return
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        common = {**about, "args": given, "step": run["step"]}
        checkpoint.save(out / "model.pt", {**common, "model": {name: value.half() for name, value in ema.items()}})
        state = {"model": network.state_dict(), "ema": ema, "run": run}
        checkpoint.save(out / "last.pt", {**common, **state, "optimizers": [o.state_dict() for o in optimizers]})
        if not args.video_model:
            preview(out / "samples.png", args, ema, world, sde, bases)
        figures.save_curves(out / "loss.png", run["history"])
        save_report(args, log.summary(run))

    for kind in ("video", "audio") if bases and not args.video_model and distributed.rank() == 0 else ():
        checkpoint.save(out / f"{kind}.pt", checkpoint.load(args.bases / f"{kind}.pt"))
    start, saved, window = time.time() - run["seconds"], time.time(), []
    threads = 4 if args.device.startswith("cuda") else 2  # a GPU takes batches faster than two threads make them
    form, quiet = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}", distributed.rank() > 0
    bar = tqdm(total=1000, initial=int(1000 * progress_of(run, args)), bar_format=form, desc=args.model, disable=quiet)
    with script.interruptible() as stop, bar, contextlib.closing(ahead(make_batch, run["step"], threads)) as batches:
        while True:
            stopped, progress = distributed.agree(float(stop.is_set()), progress_of(run, args))
            if stopped or progress >= 1:
                break
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * learning_rate(run["step"], progress)
            loss, parts, t = loss_of(next(batches))
            network.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if not torch.isfinite(norm):  # of all processes, as the loss of one is not
                save()
                raise FloatingPointError(
                    f"the loss is {loss.item():g} and its gradient {norm.item():g} in batch {run['step']} of --seed "
                    f"{args.seed}; {out}/last.pt holds the weights before it: resume it with a lower --lr"
                )
            for optimizer in optimizers:
                optimizer.step()
            update_ema(ema, network, run["step"])
            run["step"] += 1
            run["seconds"] = time.time() - start
            window.append((parts, t))
            if run["step"] % 100 == 0:
                run["history"].append(log.average(window, run["step"]))
                bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in run["history"][-1]["loss"].items()))
                window = []
            bar.update(int(1000 * progress) - bar.n)
            if time.time() - saved > 60 * args.save_minutes:
                save()
                saved = time.time()
        if window:
            run["history"].append(log.average(window, run["step"]))
        save()
    if distributed.rank() == 0:
        done = "stopped" if stopped else "done"
        print(f"{args.model}: {run['step']} steps in {run['seconds']:.0f} s, {done}; weights and pictures are in {out}")
        print(f"next: {next_command(args, stopped)}")


def next_command(args: argparse.Namespace, stopped: bool) -> str:
    """What one does with a run."""
    if stopped:
        return f"python train.py --resume {args.out}"
    if args.video_model:
        return f'python sample.py --run {args.out} --prompt "what is seen and heard"'
    return {
        "discriminator": f"python sample.py --run {args.out}",
        "joint": f"python evaluate.py --joint {args.out}",
    }.get(
        args.model, f"cp {args.out}/model.pt BASES/{args.model}.pt, and train.py --bases BASES with both models there"
    )


def progress_of(run: dict, args: argparse.Namespace) -> float:
    """How much of the budget is spent: of --steps where given (the same numbers again), else of --minutes."""
    return run["step"] / args.steps if args.steps else run["seconds"] / (60 * args.minutes)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return options.parse(__doc__, argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core makes the next batch
    torch.backends.cuda.matmul.allow_tf32 = True
    with distributed.processes(args.device) as args.device:
        if args.batch % (GROUP * distributed.count()):
            raise ValueError(f"--batch {args.batch} must be a multiple of {GROUP} for each of the processes")
        train(args)


if __name__ == "__main__":
    script.run_main(main)
