import json
import math

import pytest
import torch

import checkpoint
import evaluate
import information
import media
from data import Xylophone
from unet import JointUNet


def test_evaluation_reports_every_system_and_noise_level(bases, tmp_path, capsys, monkeypatch):
    drawn, weights = evaluate.sample, set()

    def sample(*args, weight, **how):
        whole = "keep" not in how and bool({"given_video", "given_audio"} & how.keys())
        weights.add((whole, weight(1.0) if callable(weight) else weight))
        return drawn(*args, weight=weight, **how)

    monkeypatch.setattr(evaluate, "sample", sample)
    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    checkpoint.save(tmp_path / "model.pt", {"kind": "joint", "options": {}, "model": JointUNet().state_dict()})
    out = ["--joint", str(tmp_path), "--out", str(tmp_path)]
    evaluate.main(["--n", "4", "--steps", "2", "--run", str(bases), *out])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n"] == 4 and report["steps"] == 2
    assert weights == {(False, 0.0), (False, (0.0, 1.0)), (True, (3.0, 3.0))}
    keys = {
        "hit_f1",
        "pitch_accuracy",
        "alignment",
        "onset_error_ms",
        "video_frechet",
        "audio_frechet",
        "video_frechet_error",
        "audio_frechet_error",
        "seconds_per_clip",
    }
    conditional = ("audio_given_video", "video_given_audio")
    for name in ("real", "shuffled", "independent", "guided", *conditional, "joint"):
        assert keys <= report["systems"][name].keys()
    assert report["systems"]["real"]["alignment"] == 1 and report["systems"]["shuffled"]["alignment"] == 0
    assert report["systems"]["real"]["hit_f1"] >= 0.98
    assert set(report["continuation"]) == {"real", "independent", "guided"}
    assert report["continuation"]["real"]["hit_f1"] > 0.9 and report["continuation"]["guided"]["video_seam"] > 0
    assert set(report["parameters"]) == {"video", "audio", "discriminator", "joint"}
    for name, given in zip(conditional, ("video", "audio"), strict=True):
        row = report["systems"][name]
        assert row[f"{given}_frechet"] == pytest.approx(report["systems"]["real"][f"{given}_frechet"], rel=0.01)
    assert set(report["statistics"]) == {"real", "independent", "guided", *conditional, "joint"}
    assert len(report["levels"]) == len(information.LEVELS)
    assert {"auc_shuffled", "auc_shift_250ms", "retrieval_top1", "retrieval_top5"} <= report["sync"].keys()
    assert math.isfinite(report["mutual_information_nats"]) and report["mutual_information_error"] > 0
    assert (tmp_path / "sync.png").stat().st_size > 1000
    assert "guided" in capsys.readouterr().out


def test_a_folder_of_clips_is_judged_by_fidelity_alone_and_twice_alike(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 16)
    frames, waveform, _ = Xylophone().render(2, torch.Generator().manual_seed(0))
    for k in range(2):
        media.save_mp4(tmp_path / "clips" / f"{k}.mp4", frames[k], waveform[k], 8)
    reports = []
    for _ in range(2):
        options = ["--n", "4", "--steps", "1", "--data", str(tmp_path / "clips"), "--run", str(bases)]
        evaluate.main([*options, "--out", str(tmp_path / "out")])
        reports.append(json.loads((tmp_path / "out" / "report.json").read_text()))
        for row in reports[-1]["systems"].values():
            row.pop("seconds_per_clip")
    guided = reports[0]["systems"]["guided"]
    assert guided["alignment"] is None and guided["video_frechet"] > 0
    assert reports[0] == reports[1]


def test_scoring_files_tells_a_clip_in_sync_from_one_whose_sound_is_late(tmp_path, capsys):
    frames, waveform, hits = Xylophone().render(8, torch.Generator().manual_seed(0))
    k = next(k for k, clip in enumerate(hits) if len(clip) > 1)
    late = torch.nn.functional.pad(waveform[k], (4000, 0))[:32_000]
    for name, sound in (("right", waveform[k]), ("late", late)):
        media.save_mp4(tmp_path / f"{name}.mp4", frames[k], sound, 8)
    clips = [str(tmp_path / f"{name}.mp4") for name in ("right", "late")]
    evaluate.main(["--score", *clips, "--out", str(tmp_path)])
    right, late = json.loads((tmp_path / "report.json").read_text())["scores"]
    assert right["nats"] - 3 * right["error"] > 0 > late["nats"] + 3 * late["error"]
    assert "late.mp4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="missing.mp4: it cannot be read"):
        evaluate.main(["--score", str(tmp_path / "missing.mp4"), "--out", str(tmp_path)])
