import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")

import tiny  # noqa: E402, after what may skip

import checkpoint  # noqa: E402
import latents  # noqa: E402
import media  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402
from data import Xylophone  # noqa: E402
from latents import LatentFolder  # noqa: E402
from pretrained import Side, open_sides  # noqa: E402


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return str(tiny.animatediff(root / "video")), str(tiny.audioldm(root / "audio"))


@pytest.fixture(scope="module")
def sides(models):
    return open_sides(*models)


@pytest.fixture
def folder(tmp_path):
    """Three clips of six seconds, three windows each, two of them with one prompt; one short clip, one broken."""
    frames, waveforms, _ = Xylophone().render(3, torch.Generator().manual_seed(0))
    for k in range(3):
        media.save_mp4(tmp_path / f"{k}.mp4", frames.roll(k, 0).flatten(0, 1), waveforms.roll(k, 0).flatten(), 8, 1)
    media.save_mp4(tmp_path / "short.mp4", frames[0], waveforms[0], 8, 1)
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    for name, prompt in (("0", "a ball"), ("1", " a ball\n"), ("short", "alone")):
        (tmp_path / f"{name}.txt").write_text(prompt)
    return tmp_path


def counted(monkeypatch) -> list:
    """The paths that are read from now on."""
    read, real = [], media.read_clip
    monkeypatch.setattr(media, "read_clip", lambda path, *a, **k: (read.append(path.name), real(path, *a, **k))[1])
    return read


def test_windows_are_encoded_once_and_are_the_latents_of_their_clip(folder, sides, monkeypatch, capsys):
    read = counted(monkeypatch)
    world = LatentFolder(folder, *sides)
    assert len(world.windows) == 10 and len(read) == 5
    assert "broken.mp4: it cannot be read" in capsys.readouterr().err
    again = LatentFolder(folder, *sides)
    assert len(read) == 5 and "broken.mp4" in capsys.readouterr().err
    pair, same = (w.batch(8, torch.Generator().manual_seed(1)) for w in (world, again))
    for x, y in zip(pair[:2], same[:2], strict=True):
        assert torch.equal(x, y)
    frames, waveform = media.read_clip(folder / "2.mp4", 8, sides[0].size)
    row = [shard["clip"][row].startswith("2.mp4") for shard in world.shards for row in range(10)].index(True)
    third = {x: world.shards[0][x][row + 2].float() for x in ("video", "audio")}
    assert_close(third["video"], sides[0].encode(frames[None, 32:48])[0], rtol=2e-3, atol=2e-3)
    assert_close(third["audio"], sides[1].encode(waveform[None, 64_000:96_000])[0], rtol=2e-3, atol=2e-3)


def test_an_interrupted_encoding_goes_on_and_changed_clips_are_encoded_again(folder, sides, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 3)
    read, encode = counted(monkeypatch), Side.encode

    def stopped(self, clips):
        if read[-1] == "2.mp4":
            raise KeyboardInterrupt
        return encode(self, clips)

    monkeypatch.setattr(Side, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        LatentFolder(folder, *sides)
    monkeypatch.setattr(Side, "encode", encode)
    read.clear()
    assert len(LatentFolder(folder, *sides).windows) == 10
    assert read == ["2.mp4", "broken.mp4", "short.mp4"]
    read.clear()
    frames, waveforms, _ = Xylophone().render(1, torch.Generator().manual_seed(9))
    media.save_mp4(folder / "1.mp4", frames[0], waveforms[0], 8, 1)
    (folder / "0.mp4").unlink()
    assert len(LatentFolder(folder, *sides).windows) == 5 and read == ["1.mp4"]
    shard = next(folder.glob(".mmdisco-latents/*/*.pt"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert len(LatentFolder(folder, *sides).windows) == 5


def test_groups_share_a_prompt_or_have_the_empty_one(folder, sides, generator):
    world = LatentFolder(folder, *sides)
    assert world.prompts == ["", "a ball", "alone"]
    empty, ball = (tuple(c[k] for c in world.conditions[1]) for k in (0, 1))
    (shard,) = world.shards
    rows = {tuple(shard["video"][k].flatten().tolist()): shard["clip"][k][0] for k in range(10)}
    seen = {"ball": 0, "empty": 0}
    for _ in range(60):
        video, _, told = world.batch(4, generator)
        clips = {rows[tuple(x.flatten().tolist())] for x in video}
        condition = told["conditions"][1][0]
        assert (condition == condition[0]).all() and torch.equal(told["text"][1], condition)
        if torch.equal(condition[0], ball[0]):
            seen["ball"] += 1
            assert clips <= {"0", "1"}
        else:
            seen["empty"] += 1
            assert torch.equal(condition[0], empty[0])
    assert seen["ball"] > 15 and seen["empty"] > 5


def test_from_a_folder_of_clips_to_prompted_mp4(folder, models, tmp_path_factory, capsys):
    """Encode, train, sample, decode; with a given picture it is the clip's own, through the VAE."""
    out = tmp_path_factory.mktemp("run")
    named = ["--video-model", models[0], "--audio-model", models[1], "--data", str(folder), "--out", str(out / "run")]
    train.train(train.parse([*named, "--batch", "4", "--steps", "6", "--warmup", "2"]))
    whole = checkpoint.load(out / "run" / "model.pt")
    assert whole["models"]["pairing"] == "index" and whole["options"]["text"] == (16, 16)
    with pytest.raises(ValueError, match="only sample.py --prompt"):
        checkpoint.load_run(out / "run")
    arguments = ["--run", str(out / "run"), "--n", "2", "--steps", "3"]
    sample.main([*arguments, "--prompt", "a ball", "--out", str(out / "clips")])
    page = (out / "clips" / "index.html").read_text()
    for name in ("guided_00", "guided_01", "independent_00", "independent_01"):
        frames, waveform = media.read_clip(out / "clips" / f"{name}.mp4", 8, 16)
        assert len(frames) == 16 and len(waveform) >= 31_000 and f"{name}.mp4" in page
    given = ["--given", str(folder / "0.mp4"), "--keep", "video", "--prompt", "a ball"]
    sample.main([*arguments, *given, "--out", str(out / "given")])
    shown, _ = media.read_clip(out / "given" / "guided_01.mp4", 8, 16)
    unguided, _ = media.read_clip(out / "given" / "independent_00.mp4", 8, 16)
    assert torch.equal(shown, unguided)
    side, (frames, _) = Side("video", models[0]), media.read_clip(folder / "0.mp4", 8, 16)
    own, other = side.decode(side.encode(torch.stack([frames[:16], frames[16:32]]))).float()
    assert (shown - own).abs().mean() < 0.7 * (shown - other).abs().mean()


def test_a_resumed_run_on_latents_is_the_undisturbed_one(folder, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    named = ["--video-model", models[0], "--audio-model", models[1], "--data", str(folder), "--batch", "4"]
    named += ["--warmup", "2", "--pairing", "log-snr"]
    train.train(train.parse([*named, "--steps", "6", "--out", str(out / "whole")]))
    args = train.parse([*named, "--steps", "6", "--out", str(out / "half")])
    real, count = train.progress_of, iter(range(100))
    train.progress_of = lambda run, args: 1.0 if next(count) > 3 else real(run, args)
    try:
        train.train(args)
    finally:
        train.progress_of = real
    assert checkpoint.load(out / "half" / "model.pt")["step"] < 6
    resumed = train.parse(["--resume", str(out / "half")])
    assert resumed.pairing == "log-snr" and resumed.size == 0
    train.train(resumed)
    ours, theirs = (checkpoint.load(out / name / "model.pt")["model"] for name in ("half", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_models_and_options_that_do_not_go_together_are_refused(models, capsys):
    for arguments, reason in (
        (["--video-model", models[0]], "go together"),
        (["--video-model", models[0], "--audio-model", models[1]], "--data FOLDER"),
        (["joint", "--video-model", models[0], "--audio-model", models[1], "--data", "x"], "take a discriminator"),
        (["--video-model", models[0], "--audio-model", models[1], "--data", "x", "--fakes", "generated"], "own base"),
    ):
        with pytest.raises(SystemExit):
            train.parse(arguments)
        assert reason in capsys.readouterr().err
