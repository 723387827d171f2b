"""How every script begins and ends: its options; done, stopped by Ctrl-C, or an error told in one line, no traceback.

Imported before all else: other imports take seconds. Until `run_main` begins, and once it is through, Ctrl-C ends the
program at once, as nothing can be lost. In between it is a KeyboardInterrupt, on which files.atomic leaves no half
file; training asks to finish its step and save first (`interruptible`).

Used by train.py, sample.py, evaluate.py, toy/ and benchmarks/.
"""

import argparse
import difflib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
STOPPED = 130  # what a shell reports of a program that Ctrl-C ended
PATIENCE = 2.0  # seconds in which further signals are the first one again: torchrun passes on what the shell sent too


def end_at_once() -> None:
    """Ctrl-C ends the program, whatever it imports at that moment."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_ours() -> bool:
    """Whether a script of this project is being run, or one of its workers: whoever imports one keeps their Ctrl-C."""
    if multiprocessing.current_process().name != "MainProcess":
        return True
    started = getattr(sys.modules["__main__"], "__file__", None)
    places = (ROOT, ROOT / "toy", ROOT / "docs", ROOT / "benchmarks")
    return started is not None and Path(started).resolve().parent in places


if is_ours():
    end_at_once()


def unraisable(unraised) -> None:
    """Python drops an exception in a destructor or callback with a note; a Ctrl-C that fell there still ends us."""
    if isinstance(unraised.exc_value, KeyboardInterrupt):
        os._exit(STOPPED)
    sys.__unraisablehook__(unraised)


def run_main(main: Callable[[], None]) -> None:
    """Run a script; what the user can mend (a file, a value, a full disk) is one line on stderr and exit code 1."""
    sys.unraisablehook = unraisable
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        end_at_once()
    except KeyboardInterrupt:
        end_at_once()
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def parse_options(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """parser.parse_args, where an unknown option is told with the known one that is nearest."""
    known = re.findall(r"--[\w-]+", parser.format_usage())
    for word in sys.argv[1:] if argv is None else argv:
        name = word.split("=")[0]
        if re.match(r"--\w", name) and not any(option.startswith(name) for option in ["--help", *known]):
            near = difflib.get_close_matches(name, known, 1)
            parser.error(f"there is no option {name}" + (f", but {near[0]}" if near else "; --help lists them"))
    return parser.parse_args(argv)


def noise_level(word: str) -> float:
    """The type of an option that is a t in [0, 1]."""
    try:
        t = float(word)
    except ValueError:
        t = -1.0
    if not 0 <= t <= 1:
        raise argparse.ArgumentTypeError(f"{word} is no noise level: a number from 0 to 1")
    return t


def add_climb(parser: argparse.ArgumentParser, default: float | None, said: str = "%(default)s") -> None:
    """--climb T; `said` is what the help says of its default."""
    told = f"steps below it are climb.py's (default {said})"
    parser.add_argument("--climb", type=noise_level, default=default, metavar="T", help=told)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C (or SIGTERM) sets an event, so that a step is finished and saved; Ctrl-C once more stops at once."""
    asked, first = threading.Event(), 0.0

    def ask(number: int, _) -> None:
        nonlocal first
        if number == signal.SIGINT and asked.is_set() and time.monotonic() - first > PATIENCE:
            raise KeyboardInterrupt
        first = first if asked.is_set() else time.monotonic()
        asked.set()

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
