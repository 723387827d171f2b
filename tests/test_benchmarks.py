import argparse
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import checkpoint
import evaluate
import guidance
import information
import media
import train
from benchmarks import attacks, instants, levers, models, onsets, reach, speed, steps
from data import Xylophone
from guidance import JointEps, time_grid
from pairs import Noisy, perturb_pairs
from score import VPSDE, FrozenModel
from toy.target import ExactEps, gaussian


def test_speed_reports_every_part_its_memory_and_the_ratios(tmp_path, capsys):
    speed.main(["--batch", "4", "--rounds", "1", "--profile", "--out", str(tmp_path), "--device", "cpu"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["seconds"]) == 11 and min(report["seconds"].values()) > 0
    assert report["peak_memory_mb"].keys() == report["seconds"].keys()
    assert set(report["ratios"]) == {
        "guided / unguided sampler step",
        "double backprop / first order",
        "discriminator's step / (first order + base models)",
        "clips loaded / clips trained on, per second",
    }
    assert all(0 < share < 1 for share in report["matrix_work"].values()) and len(report["matrix_work"]) == 2
    assert "steps/s" in capsys.readouterr().out


def test_steps_adds_a_row_for_each_solver_number_of_steps_and_weight_and_keeps_those_it_has(
    bases, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "REFERENCE", 32)

    def systems(*options: str) -> dict:
        steps.main(["--n", "2", "--run", str(bases), "--out", str(tmp_path), *options])
        return json.loads((tmp_path / "report.json").read_text())["systems"]

    systems("--steps", "1", "2", "--solvers", "ddim", "ddpm", "--weight", "0", "--climb", "0")
    both = ["--steps", "2", "--solvers", "ddim", "ddpm", "--weight", "0", "--audio-weight", "3", "--climb", "0"]
    rows = systems(*both)
    unguided = [f"{solver} {k}, 0" for solver in ("ddim", "ddpm") for k in (1, 2)]
    assert list(rows) == ["real", "shuffled", *unguided, "ddim 2, 0 / 3", "ddpm 2, 0 / 3"]
    assert rows["ddim 2, 0 / 3"]["video_frechet"] == rows["ddim 2, 0"]["video_frechet"]  # the sound alone is guided
    assert rows["ddim 2, 0 / 3"]["audio_frechet"] != rows["ddim 2, 0"]["audio_frechet"]
    assert (tmp_path / "steps.png").stat().st_size > 1000

    climbing = systems("--steps", "2", "--solvers", "ddim", "--weight", "0", "--climb", "0.9")
    assert list(climbing)[-1] == "ddim 2, 0, climb 0.9" and climbing["ddim 2, 0, climb 0.9"]["calls"] == 6
    assert climbing["ddim 2, 0, climb 0.9"]["video_frechet"] != rows["ddim 2, 0"]["video_frechet"]

    monkeypatch.setattr(steps, "generate", None)
    assert systems(*both) == climbing
    assert f"ddpm 2, 0 / 3: the row that {tmp_path / 'report.json'} holds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        systems("--seed", "3")
    other = Path(shutil.copytree(bases, tmp_path / "other"))
    assert systems(*both, "--run", str(other)) == climbing  # the same weights elsewhere
    checkpoint.save(other / "model.pt", checkpoint.load(other / "model.pt") | {"step": 99})
    with pytest.raises(SystemExit):
        systems(*both, "--run", str(other))
    assert "holds rows for another --n, --seed or other weights" in capsys.readouterr().err


def test_steps_fine_keeps_the_coarse_levels_outside_of_its_range_and_takes_the_fine_ones_inside(
    bases, tmp_path, monkeypatch
):
    sde = VPSDE()
    for climb_below, levels in ((0.0, 26 - 6 + 58), (0.3, 26 - 9 + 87)):  # in exchange for those in the range
        coarse, grid, fine = (
            x.tolist()
            for x in (
                time_grid(25, sde, climb_below),
                steps.refined(25, 0.3, 0.6, sde, climb_below),
                time_grid(250, sde, climb_below),
            )
        )
        assert grid == sorted(grid, reverse=True) and grid[0] == 1 and grid[-1] == coarse[-1]
        assert [t for t in grid if not 0.3 < t <= 0.6] == [t for t in coarse if not 0.3 < t <= 0.6]
        assert [t for t in grid if 0.3 < t <= 0.6] == [t for t in fine if 0.3 < t <= 0.6]
        assert len(grid) == levels

    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    options = ["--n", "2", "--run", str(bases), "--out", str(tmp_path), "--solvers", "ddim", "--weight", "0"]
    options += ["--climb", "0"]
    steps.main([*options, "--steps", "2", "--fine", "0.9", "1"])
    row = json.loads((tmp_path / "report.json").read_text())["systems"]["ddim 2, 0, 250 for t in (0.9, 1]"]
    assert row["calls"] == 3 * 15
    with pytest.raises(SystemExit):
        steps.main([*options, "--fine", "0.6", "0.3"])


def test_onsets_finds_a_delay_of_the_sound_and_a_ball_that_leaves_its_parabola(generator):
    video, audio = Xylophone().batch(64, generator)
    real = onsets.breakdown(video, audio, fps=8)
    late = onsets.breakdown(video, audio.roll(2, 3), fps=8)
    assert real["all hits"] < 2.5 and real["fall - rebound"] < 1.5
    assert late["all hits"] == pytest.approx(2 * 15.625, abs=1) and late["later"] > 25 and late["edge bars"] > 25
    video[:, :, ::2, :24] = video[:, :, ::2, :24].roll(1, 3)  # above the bars, every other frame a pixel lower
    assert onsets.breakdown(video, audio, fps=8)["fall - rebound"] > 10


@pytest.mark.parametrize("f", [1.0, 3.0])
def test_a_model_told_of_more_noise_keeps_less_of_what_it_sees(f, generator):
    """Of x0 ~ N(0, 1) it is 1 / (1 + (f sigma / alpha)^2) of x_t / alpha, and outside of TOLD its own answer."""
    sde = VPSDE()
    model = FrozenModel(ExactEps(gaussian(0.8, sde), 0), sde)
    xt, t = torch.randn(9, 1, generator=generator, dtype=torch.float64), torch.full((9,), 0.3, dtype=torch.float64)
    alpha, sigma = (a[0] for a in sde.marginal(t))
    x0 = sde.eps_to_x0(xt, onsets.Told(model, f)(xt, t), t)
    assert_close(x0, xt / alpha / (1 + (f * sigma / alpha) ** 2))
    for t in (torch.full((9,), level, dtype=torch.float64) for level in (0.01, 0.4)):
        assert torch.equal(onsets.Told(model, f)(xt, t), model(xt, t))


def test_onsets_reports_a_row_for_each_system(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 2)
    monkeypatch.setattr(onsets, "sample", partial(guidance.sample, steps=2))
    options = ["--n", "2", "--run", str(bases), "--told", "3", "2", "--device", "cpu", "--out", str(tmp_path)]
    onsets.main(options)
    systems = json.loads((tmp_path / "report.json").read_text())["systems"]
    assert list(systems) == ["real", "guided", "audio given video", "video given audio"]
    assert "fall - rebound" in capsys.readouterr().out
    onsets.main([*options, "--from", "0.002"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["from"] == 0.002
    systems = report["systems"]
    assert list(systems) == ["real", "guided", "audio given video", "video given audio", "unguided"]
    assert systems["guided"]["hit_f1"] == 1


def test_clips_drawn_from_little_noise_are_the_real_ones_and_from_all_of_it_are_not(bases, generator):
    *models, discriminator = checkpoint.load_run(bases, "cpu")
    video, audio = Xylophone().batch(4, generator)
    for start, near in ((0.002, True), (1.0, False)):
        eps_model = JointEps(*models, discriminator, 1.0, (None, audio), generator=generator)
        drawn, kept = onsets.draw_from(start, eps_model, video, audio, generator)
        assert torch.equal(kept, audio)
        assert ((drawn - video).square().mean().sqrt() < 0.1) == near
    with pytest.raises(SystemExit):
        onsets.main(["--from", "0"])


def test_levers_trains_another_network_judges_it_and_keeps_the_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    monkeypatch.setattr(information, "LEVELS", levers.SHOWN)
    monkeypatch.setattr(train, "preview", lambda *_: None)
    options = ["--rows", "width 48", "--steps", "1", "--n", "2", "--out", str(tmp_path)]
    levers.main(options)
    weights = checkpoint.load(tmp_path / "width-48" / "model.pt")["model"]
    assert weights["mix.weight"].shape == (48, 3 * 48)
    made = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(train, "train", None)  # a second run reads the row
    levers.main(options)
    assert "width 48" in made[-1] and capsys.readouterr().out.splitlines() == made[-3:]


def test_uniform_log_snr_is_uniform(generator):
    sde, u = VPSDE(), torch.rand(1000, generator=generator)
    way = sde.log_snr(levers.uniform_log_snr(u, sde).double())
    first, last = sde.log_snr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))
    assert_close((way - first) / (last - first), u.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("k", "low", "high"), [(0.5, -0.04, -0.015), (1.0, -0.004, 0.004), (2.0, 0.1, 0.15)])
def test_the_exact_log_ratio_is_self_consistent_and_no_multiple_of_it(k, low, high, generator, monkeypatch):
    """d/ds consistency(s k L) at s = 1, the target held: 0 where D is right, of the sign of k - 1 where it is not."""
    torch.manual_seed(0)
    sde, scale = VPSDE(), torch.ones((), dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(levers.objective, "logit_normal", lambda u, sde: 0.1 + 0.2 * u.double())  # where L tells much
    target, n = gaussian(0.95, sde), 40_000
    t = 0.02 + 0.1 * torch.rand(n // 4, generator=generator).double().repeat_interleave(4)
    eps = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    clean = target.sample(n, generator).double().T[..., None]
    noisy = [sde.perturb(x, t, e) for x, e in zip(clean, eps, strict=True)]
    exact = argparse.Namespace(
        encode=lambda v, a, t: (v, a), pair=lambda v, a, t: k * scale * target.log_ratio(torch.cat([v, a], 1), t)
    )
    loss = levers.consistency(exact, sde, Noisy(*noisy, t, None), group=4).mean()
    assert low < torch.autograd.grad(loss, scale)[0] < high


@pytest.mark.parametrize("name", levers.ROWS)
def test_every_lever_gives_a_discriminator_or_noise_levels_that_work(name, generator):
    _, changed = levers.ROWS[name]
    with changed():
        t = levers.objective.logit_normal(torch.rand(8, generator=generator), VPSDE())
        logit = checkpoint.NETWORKS["discriminator"]()(torch.randn(2, 3, 16, 32, 32), torch.randn(2, 1, 64, 128), t[:2])
    assert t.min() >= VPSDE().t_min and t.max() <= 1 and logit.shape == (2,)


def test_weights_of_published_models_are_told_without_making_them(capsys):
    """1,313 million parameters are what an SD 1.5 UNet (860) and a motion adapter (453) have together."""
    pytest.importorskip("diffusers")
    models.main([])
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split()[:2] == ["AnimateDiff", "1312.7"]
    assert "3.88 GB in float16, 7.76 in float32" in rows[4]


def test_instants_reads_a_shift_of_the_clip_in_ms():
    """Clips with all in them 2 ms later differ from the clips by 2 ms at the hits, in picture and in sound."""
    world = Xylophone()
    drawn = instants.drawn_with_change(world, 64, 3)
    later, waveform, all_hits = world.render(64, torch.Generator().manual_seed(3), 0.002)
    assert 0.9 * sum(map(len, all_hits)) < sum(map(len, drawn.found)) < sum(map(len, all_hits))  # 1 in 31: near a frame
    for kind, moved in (("video", media.to_video(later)), ("audio", media.log_mel(waveform))):
        read = instants.shifts(kind, moved - drawn.clips[kind], drawn)
        around = instants.around_hits(kind, drawn.change[kind], drawn)
        information = torch.stack([d.square().sum() for d in around])
        assert ((read * information).sum() / information.sum()).item() == pytest.approx(2, abs=0.03)


def test_instants_gives_a_pull_the_weight_that_explains_most(generator):
    missed = torch.randn(1000, generator=generator)
    row = instants.row(missed, torch.ones(1000), missed / 3 + 0.1 * torch.randn(1000, generator=generator))
    assert row["missed"] == pytest.approx(1, abs=0.1)
    explained = (1 / 9) / (1 / 9 + 0.01)
    assert row["explained"] == pytest.approx(explained, abs=0.03)
    assert row["best weight"] == pytest.approx(3 * explained, abs=0.1)
    assert row["left"] == pytest.approx((1 - explained) ** 0.5, abs=0.03)
    faint = instants.row(torch.tensor([1.0, 50.0]), torch.tensor([1.0, 1e4]), torch.zeros(2))
    assert faint["missed"] == pytest.approx(1, abs=1e-4)  # a hit that nobody can time decides nothing


def test_instants_reports_each_modality_and_the_shipped_pull_points_at_the_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(instants, "LEVELS", (0.3,))
    instants.main(["--n", "32", "--out", str(tmp_path), "--device", "cpu"])
    rows = json.loads((tmp_path / "report.json").read_text())["systems"]
    assert set(rows) == {f"{kind}, {mode}, 0.3" for kind in ("video", "audio") for mode in ("both", "given")}
    assert all(0.7 < row["missed"] / row["bound"] < 1.3 for row in rows.values())
    for kind in ("video", "audio"):
        assert rows[f"{kind}, given, 0.3"]["best weight"] > 1 and rows[f"{kind}, given, 0.3"]["explained"] > 0.15
    assert "best weight" in capsys.readouterr().out


def test_attacks_fits_a_shift_and_a_loudness_and_leaves_the_rest(generator):
    """Sounds of clips played 0.5 ms later and 0.3 dB louder, with grain of 0.6 dB."""
    world, n = Xylophone(), 64
    drawn = attacks.drawn_with_slopes(world, n, 3)
    waveform = world.render(n, torch.Generator().manual_seed(3), 0.0005)[1]
    moved = media.log_mel(10 ** (0.3 / 20) * waveform)
    fitted = []
    for clip, found in enumerate(drawn.found):
        for start in [round(time * 64) - 3 for time, *_ in found]:
            window = [x[clip, 0, :, start : start + 8] for x in (moved - drawn.audio, *drawn.slopes)]
            (shift, gain), rest = attacks.fit(window[0], window[1:])
            assert abs((rest * window[1]).sum()) < 1e-3 and abs((rest * window[2]).sum()) < 1e-3
            fitted.append((shift, gain))
    assert torch.tensor(fitted).median(0).values.tolist() == pytest.approx([0.5, 0.3], abs=0.03)
    grain = 0.6 * attacks.DECIBEL * torch.randn(moved.shape, generator=generator)
    still, moved, grainy = (attacks.row(x, drawn) for x in (drawn.audio, moved, drawn.audio + grain))
    assert still["shift"] < 1e-5 and still["attack error"] < 1e-5 and still["onset error"] == still["real"]
    assert moved["shift"] == pytest.approx(0.5, abs=0.05)
    assert grainy["attack error"] == pytest.approx(0.6, rel=0.1) and grainy["shift"] < 0.1


def test_attacks_reports_the_sound_of_a_picture_and_of_each_level(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attacks, "LEVELS", (0.1,))
    monkeypatch.setattr(attacks, "NOISES", 1)
    attacks.main(["--n", "8", "--out", str(tmp_path)])
    systems = json.loads((tmp_path / "report.json").read_text())["systems"]
    assert list(systems) == ["audio given video", "mean estimate at 0.1"]
    for row in systems.values():
        assert row["hits"] > 5 and 0 < row["attack error"] < 3 and row["shift"] < 3
    assert "attack error" in capsys.readouterr().out


def test_reach_explains_what_a_residual_has_right_and_no_frame_after_the_first_hit(bases):
    """A residual that is what is missing in the last three frames, twice that in the one before, nothing earlier."""
    *base_models, _ = checkpoint.load_run(bases)
    *pairs, first = reach.late_pairs(Xylophone(), 6, 3)
    assert (first > 16 * reach.LATE[0]).all() and (first < 16 * reach.LATE[1]).all()
    t, seed = torch.full((6,), 0.5), 5
    before = first[:, None].floor() - torch.arange(16)
    times = torch.where(before < 3, 1.0, torch.where(before == 3, 2.0, 0.0))[:, None, :, None, None]
    missing = perturb_pairs(*base_models, pairs, t, reach.stream(seed, 1)).missing[0] * times
    sigma = VPSDE().marginal(t)[1]
    logit = lambda v, a, t: -(v * missing).flatten(1).sum(1) / sigma + 0 * a.flatten(1).sum(1)  # noqa: E731
    row = reach.explained((*base_models, logit), pairs, first, t, seed)
    last = int(before.max()) + 1
    assert last > 10
    assert_close(torch.tensor(row["explained"]), torch.tensor([1.0, 1.0, 1.0] + [0.0] * (last - 3)), atol=1e-5, rtol=0)
    assert_close(
        torch.tensor(row["length"]), torch.tensor([1.0, 1.0, 1.0, 4.0] + [0.0] * (last - 4)), atol=1e-4, rtol=0
    )


def test_reach_reports_each_level(bases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reach, "LEVELS", (0.5, 0.7))
    reach.main(["--n", "3", "--run", str(bases), "--out", str(tmp_path)])
    levels = json.loads((tmp_path / "report.json").read_text())["levels"]
    assert list(levels) == ["0.5", "0.7"] and all(
        len(row["explained"]) == len(row["length"]) for row in levels.values()
    )
    assert "frames before the first hit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reach.main(["--n", "0"])
