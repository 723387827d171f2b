"""The command line of train.py: options, their defaults, and which go together.

Options have no default of their own in argparse: with --resume, one that is not given holds the run's value.

Used by train.py.
"""

import argparse
import shutil
from pathlib import Path

import torch

import checkpoint
import script
from objective import GROUP

BUDGETS = {"video": 60.0, "audio": 45.0, "joint": 75.0, "discriminator": 19.5}  # minutes on 2 cores
DEFAULTS = {
    "data": "xylophone",
    "video_model": "",
    "audio_model": "",
    "pairing": "index",
    "hold_out": 0.0,
    "size": 32,
    "start": "",
    "low": 0.0,
    "motion": 0.0,
    "loud": 0.0,
    "batch": 32,
    "bce_weight": 3.0,
    "noise_weight": 2.0,
    "warmup": 250,
    "fakes": "shuffled",
    "lr": 1e-2,
    "seed": 0,
    "bases": checkpoint.PRETRAINED,
    "compile": False,
}
OF_DISCRIMINATOR = ("bce_weight", "noise_weight", "warmup", "fakes", "bases")


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", choices=tuple(BUDGETS), default="discriminator", help="what to train (default %(default)s)"
    )
    parser.add_argument("--data", help="xylophone (default), or a folder of clips")
    parser.add_argument("--hold-out", type=float, metavar="SHARE", help="of a folder, not trained on (default 0)")
    parser.add_argument("--size", type=int, help="pixels a side, half as many frames at 8 a second (default 32)")
    parser.add_argument("--video-model", metavar="NAME", help="a diffusers video pipeline, a folder or a hub name")
    parser.add_argument("--audio-model", metavar="NAME", help="an AudioLDM pipeline; docs/guide.md has what fits")
    parser.add_argument("--pairing", choices=("index", "log-snr"), help="of the two models' steps (default index)")
    parser.add_argument("--steps", type=int, help="train this many steps; repeats exactly on the same machine")
    budgets = ", ".join(f"{minutes:g} {model}" for model, minutes in BUDGETS.items())
    parser.add_argument("--minutes", type=float, help=f"or this long (default {budgets})")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run, its options holding where none is given")
    parser.add_argument("--from", dest="start", metavar="FILE", help="model.pt to start from (default random weights)")
    parser.add_argument("--low", type=float, metavar="SHARE", help="of the clips at low noise alone (default 0)")
    parser.add_argument("--motion", type=float, metavar="W", help="of what is out of place, for video (default 0)")
    parser.add_argument("--loud", type=float, metavar="W", help="of errors where it is loud, for audio (default 0)")
    parser.add_argument("--batch", type=int, help="clips a step, of all processes together (default 32)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default 1e-2)")
    parser.add_argument("--bce-weight", type=float, help="of the cross-entropy (default 3)")
    parser.add_argument("--noise-weight", type=float, help="of the noise loss (default 2)")
    parser.add_argument("--warmup", type=int, help="first steps, on cross-entropy alone (default 250)")
    parser.add_argument("--fakes", choices=("shuffled", "generated"), help="real pairs shuffled (default), or made")
    parser.add_argument("--bases", type=Path, help="folder with video.pt and audio.pt (default pretrained)")
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile: takes minutes first")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="between checkpoints (default %(default)g)")
    parser.add_argument("--seed", type=int, help="of weights, clips and noise (default 0)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (here %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="run folder (default runs/MODEL)")
    return parser


def parse(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a run; those that do not go together end the program with a line that says so."""
    parser = make_parser(description)
    args = script.parse_options(parser, argv)
    stored = {}
    if args.resume:
        stored = checkpoint.load(Path(args.resume) / "last.pt")["args"]
        args.model, args.out = stored["model"], Path(args.resume)
        if args.steps is None and args.minutes is None:
            args.steps = stored["steps"]
    if args.steps is not None and args.minutes is not None:
        parser.error("--steps and --minutes are two ways to say when to stop: give one")
    given = [f"--{name.replace('_', '-')}" for name in OF_DISCRIMINATOR if getattr(args, name) is not None]
    if given and args.model != "discriminator":
        parser.error(f"{', '.join(given)}: for the discriminator, not for train.py {args.model}")
    if args.resume and args.start:
        parser.error("--resume goes on with a run's own weights: leave out --from")
    models = [getattr(args, f"{kind}_model") or stored.get(f"{kind}_model") for kind in ("video", "audio")]
    if not any(models) and args.pairing:
        parser.error("--pairing is of --video-model and --audio-model, which are not given")
    if any(models) and args.bases:
        parser.error("--bases are this project's own models; --video-model and --audio-model take their place")
    defaults = DEFAULTS | {"minutes": BUDGETS[args.model]} | ({"size": 0} if any(models) else {})
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value if stored.get(name) is None else type(value)(stored[name]))
    args.out = args.out or Path("runs") / args.model
    if args.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        parser.error("--compile needs a C++ compiler: install g++, or train without")
    if any(models) and args.low:
        parser.error("--low is in noise levels of this project's own models, not of --video-model and --audio-model")
    if args.motion < 0 or (args.motion and args.model != "video"):
        parser.error("--motion is a weight of at least 0, for train.py video")
    if args.loud < 0 or (args.loud and args.model != "audio"):
        parser.error("--loud is a weight of at least 0, for train.py audio")
    if not 0 <= args.low < 1:
        parser.error("--low is a share of the clips: from 0 up to, but not 1")
    if not 0 <= args.hold_out < 1:
        parser.error("--hold-out is a share of the files: from 0 up to, but not 1")
    if args.hold_out and args.data == "xylophone":
        parser.error("--hold-out is a share of a folder's files: xylophone has none, its clips are drawn anew")
    if any(models) and (not all(models) or args.model != "discriminator" or args.data == "xylophone"):
        parser.error("--video-model and --audio-model go together, with --data FOLDER, and take a discriminator")
    if any(models) and args.fakes == "generated":
        parser.error("--fakes generated is for this project's own base models")
    if not any(models) and (args.size < 32 or args.size % 16):
        parser.error("--size must be a multiple of 16 and at least 32")
    if args.batch < 1 or args.batch % GROUP or (args.steps is not None and args.steps < 1) or args.minutes <= 0:
        parser.error(f"--batch must be a multiple of {GROUP}, --steps at least 1 and --minutes above 0")
    return args
