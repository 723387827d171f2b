import errno
import json
from pathlib import Path

import pytest
import torch

import checkpoint
import figures
import media
from files import atomic, remove_leftovers, save_json

WRITERS = {
    "pt": lambda path: checkpoint.save(path, {"x": torch.zeros(100_000)}),
    "wav": lambda path: media.save_wav(path, torch.zeros(32_000)),
    "mp4": lambda path: media.save_mp4(path, torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(8000), 8),
    "png": lambda path: figures.save_spectrogram(path, torch.zeros(64, 128)),
    "json": lambda path: save_json(path, {"x": list(range(100_000))}),
}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "on the way" / "x.json"
    save_json(path, {"a": Path("b")})
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": "b"} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_keeps_what_was_there(kind, tmp_path, monkeypatch):
    """The temporary file is /dev/full, a disk without room."""
    path, temporary = tmp_path / f"x.{kind}", tmp_path / f"temporary.{kind}"
    path.write_text("what was there")
    temporary.symlink_to("/dev/full")
    monkeypatch.setattr(Path, "with_name", lambda self, name: temporary)
    with pytest.raises(OSError, match=r"x.\w+ cannot be written \(No space left on device\): make room") as error:
        WRITERS[kind](path)
    assert "\n" not in str(error.value) and error.value.__cause__.errno == errno.ENOSPC
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OSError, match=r"taken/report.json cannot be written \((Not a directory|File exists)\)"):
        save_json(tmp_path / "taken" / "report.json", {})
    assert (tmp_path / "taken").read_text() == "x"


def test_leftovers_of_a_killed_process_go_and_all_else_stays(tmp_path):
    for name in (".last.123.pt", ".samples.9.png", "last.pt", ".hidden", ".mine.pt", "video.1.pt"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", ".hidden", ".mine.pt", "video.1.pt"}
