"""Files written whole or not at all.

Used by every script, for every file it leaves behind.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix) to write to; rename it on success, remove it on failure.

    Raises OSError, in one line, where the disk is full or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def unwritable(path: Path, error: OSError) -> OSError:
    return OSError(
        f"{path} cannot be written ({error.strerror or error}): make room or name another place; "
        "what was there is as it was"
    )


def append(path: Path, line: str) -> None:
    """One more line of a journal. Raises OSError as `atomic` does; the line may then be there in part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def remove_leftovers(folder: Path) -> None:
    """Temporary files of a process that was killed while it wrote to its own folder."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+\.\w+", path.name):
            path.unlink()


def save_json(path: Path, report: dict) -> None:
    """Paths, and all else that JSON has no form for, as text."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, default=str) + "\n")
