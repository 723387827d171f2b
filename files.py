"""Files written whole or not at all, and errors told in one line.

Used by every script, for every file it leaves behind.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix) to write to; rename it on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, report: dict) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")


def run_main(main: Callable[[], None]) -> None:
    """Run a script; what the user can mend (a file, a value, a full disk) is one line on stderr and exit code 1."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
