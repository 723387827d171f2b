import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import media
import sample
from data import Xylophone
from discriminator import JointDiscriminator

ROOT = Path(sample.__file__).parent


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("given") / "clip.mp4"
    frames, waveform, _ = Xylophone().render(1, torch.Generator().manual_seed(5))
    media.save_mp4(path, frames[0], waveform[0], 8)
    return path


def run(*options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "sample.py", *map(str, options)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.draws
def test_sampling_writes_clips_with_sound_a_page_and_a_report_into_out_alone(bases, clip, tmp_path, monkeypatch):
    """Whatever the name of the clip that is given: no part of it becomes a place to write to."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "..odd<b>"
    odd.mkdir()
    shutil.copy(clip, odd / "a&..mp4")
    for given in ([], ["--given", str(odd / ".." / odd.name / "a&..mp4"), "--keep", "start"]):
        sample.main(["--n", "2", "--steps", "3", "--run", str(bases), "--out", "out", *given])
        assert sorted(p.name for p in tmp_path.iterdir()) == [odd.name, "out"] and len(list(odd.iterdir())) == 1
        report = json.loads(Path("out/report.json").read_text())
        assert len(report["clips"]) == 2 and report["network_calls"] == {"base": 6, "discriminator": 3}
        assert {"seconds", "alignment"} <= report.keys()
        page = Path("out/index.html").read_text()
        assert "odd" not in page
        for row in report["clips"]:
            for path in map(Path, row.values()):
                assert path.parent == Path("out") and path.name in page
                frames, waveform = media.read_clip(path, 8, 32)
                assert frames.shape == (16, 32, 32, 3) and len(waveform) >= 31_000
        assert Path("out/guided_00.wav").exists() and Path("out/contact.png").stat().st_size > 1000


def test_the_same_seed_gives_the_same_clips_and_another_seed_others(bases, tmp_path):
    """Every byte of them; with another number of threads, whose sums have another order, what the eye can tell."""
    try:
        for name, threads, seed in (("a", 1, "0"), ("b", 1, "0"), ("c", 2, "0"), ("other", 1, "1")):
            torch.set_num_threads(threads)
            options = ["--n", "1", "--steps", "2", "--run", str(bases), "--seed", seed]
            sample.main([*options, "--out", str(tmp_path / name)])
    finally:
        torch.set_num_threads(1)
    kept = [path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".json"]
    assert len(kept) == 8
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in kept)
    clips = [name for name in kept if name.endswith((".mp4", ".wav"))]
    assert len(clips) == 4
    assert not any((tmp_path / "a" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in clips)
    a, c = (media.read_clip(tmp_path / run / "guided_00.mp4", 8, 32) for run in "ac")
    assert (a[0].float() - c[0].float()).abs().max() <= 2 and (a[1] - c[1]).abs().max() <= 1e-2


def test_one_weight_is_for_all_noise_levels_and_two_leave_the_picture_alone_at_the_large(bases, tmp_path):
    """Two steps start from t = 1 and t = 0.3, either side of SETTLED and of ALONE."""
    pictures, sounds = {}, {}
    for name in ("2", "2 2", "2 0", "0"):
        out = tmp_path / name
        sample.main(["--weight", *name.split(), "--n", "1", "--steps", "2", "--run", str(bases), "--out", str(out)])
        pictures[name] = media.read_clip(out / "guided_00.mp4", 8, 32)[0].numpy().tobytes()
        sounds[name] = (out / "guided_00.wav").read_bytes()
    assert pictures["2 0"] == pictures["0"] and len(set(pictures.values())) == 3
    assert len(set(sounds.values())) == 4


@pytest.mark.parametrize(
    ("weights", "steps", "climb", "asked"),
    [("1", 4, "0", 4), ("0 1", 4, "0", 3), ("1 5 0", 4, "0", 3), ("0", 4, "0", 0), ("1 5 0", 20, "0.3", 17)],
)
def test_the_discriminator_is_not_asked_where_its_weight_is_zero(
    weights, steps, climb, asked, bases, tmp_path, monkeypatch
):
    """Four steps start from t = 1, 0.59, 0.28 and 0.09. Of 20 with a climb one looks at t = 0.1, and two at 0.03."""
    seen, forward = [], JointDiscriminator.forward
    monkeypatch.setattr(JointDiscriminator, "forward", lambda *x, **options: seen.append(x) or forward(*x, **options))
    options = ["--weight", *weights.split(), "--n", "1", "--steps", str(steps), "--climb", climb, "--run", str(bases)]
    sample.main([*options, "--out", str(tmp_path)])
    calls = json.loads((tmp_path / "report.json").read_text())["network_calls"]
    assert calls == {"base": 2 * steps, "discriminator": asked} and len(seen) == asked


def test_of_two_weights_the_second_is_that_of_all_steps_where_a_modality_is_given(bases, clip, tmp_path):
    options = ["--weight", "0", "1", "--n", "1", "--steps", "4", "--given", str(clip), "--keep", "audio"]
    sample.main([*options, "--run", str(bases), "--out", str(tmp_path)])
    calls = json.loads((tmp_path / "report.json").read_text())["network_calls"]
    assert calls == {"base": 4, "discriminator": 4}


@pytest.mark.parametrize("keep", ["video", "audio"])
def test_a_given_modality_comes_back_as_it_was(bases, clip, tmp_path, keep):
    options = ["--n", "2", "--steps", "2", "--given", str(clip), "--keep", keep]
    sample.main([*options, "--run", str(bases), "--out", str(tmp_path)])
    frames, _ = media.read_clip(clip, 8, 32)
    kept, _ = media.read_clip(tmp_path / "guided_01.mp4", 8, 32)
    error = (frames.float() - kept.float()).abs().mean()
    assert (error < 4) == (keep == "video")


@pytest.mark.parametrize("seconds", [1, 2])
def test_the_start_of_a_clip_is_kept_and_the_rest_made_anew(bases, tmp_path, seconds):
    """A clip of one second has all that is needed."""
    frames, waveform, _ = Xylophone().render(1, torch.Generator().manual_seed(5))
    media.save_mp4(tmp_path / "clip.mp4", frames[0][: 8 * seconds], waveform[0][: 16_000 * seconds], 8)
    options = ["--n", "2", "--steps", "2", "--given", str(tmp_path / "clip.mp4"), "--keep", "start"]
    sample.main([*options, "--run", str(bases), "--out", str(tmp_path)])
    error = (frames[0].float() - media.read_clip(tmp_path / "guided_01.mp4", 8, 32)[0].float()).abs().mean((1, 2, 3))
    assert error[:8].max() < 5 < error[8:].min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "nowhere/model.pt is missing"),
        (["--given", "none.mp4", "--keep", "video"], "none.mp4: it cannot be read (No such file"),
        (["--given", "README.md", "--keep", "video"], "README.md: it"),
        (["--keep", "video"], "go together"),
        (["--n", "0"], "must be at least 1"),
        (["--weight", "1", "2", "3", "4"], "--weight one to three numbers"),
        (["--solver", "euler"], "invalid choice"),
        (["--colour"], "there is no option --colour"),
    ],
)
def test_bad_input_gets_one_clear_line_and_a_non_zero_exit(bases, tmp_path, options, message, capsys):
    """What is raised here is that line; test_script.py has how it is told."""
    run_options = [] if "--run" in options else ["--run", str(bases)]
    with pytest.raises((ValueError, OSError, SystemExit)) as error:
        sample.main([*options, *run_options, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err.splitlines()[-1] if error.type is SystemExit else str(error.value)
    assert message in told and "\n" not in told and getattr(error.value, "code", 1) != 0
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_ends_the_script_with_that_line(tmp_path):
    result = run("--run", "nowhere", "--out", tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: nowhere/model.pt is missing: make it with train.py, or name another run\n"
