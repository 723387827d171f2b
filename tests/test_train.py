import contextlib
import functools
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import checkpoint
import guidance
import media
import objective
import sample
import script
import train
from data import Xylophone
from score import VPSDE, FrozenModel

ROOT = Path(train.__file__).parent


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train, "preview", lambda *_: None)


def small(bases: Path, out: Path, *more: str, kind: str = "discriminator") -> list[str]:
    """Options of six small steps."""
    own = ["--warmup", "3", "--fakes", "shuffled", "--bases", str(bases)] if kind == "discriminator" else []
    return [kind, "--steps", "6", "--batch", "4", *own, "--out", str(out), *more]


def few_fakes(monkeypatch) -> None:
    """A batch of clips from the base models, in two steps."""
    monkeypatch.setattr(objective, "FAKES", 32)
    monkeypatch.setattr(objective, "sample", functools.partial(guidance.sample, steps=2))


def weights(run: Path) -> dict:
    return checkpoint.load(run / "last.pt")["model"]


@pytest.mark.parametrize(
    ("kind", "fakes"), [("discriminator", []), ("discriminator", ["--fakes", "generated"]), ("audio", [])]
)
def test_stopped_and_resumed_training_gives_the_weights_of_an_undisturbed_run(
    kind, fakes, bases, tmp_path, monkeypatch
):
    few_fakes(monkeypatch)
    train.train(train.parse(small(bases, tmp_path / "whole", *fakes, kind=kind)))

    @contextlib.contextmanager
    def stops_at_three():
        asked = threading.Event()
        asked.is_set = iter([False] * 3 + [True] * 9).__next__
        yield asked

    with monkeypatch.context() as patch:
        patch.setattr(script, "interruptible", stops_at_three)
        train.train(train.parse(small(bases, tmp_path / "parts", *fakes, kind=kind)))
    assert checkpoint.load(tmp_path / "parts" / "last.pt")["step"] == 3
    train.train(train.parse(["--resume", str(tmp_path / "parts")]))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    report = json.loads((tmp_path / "parts" / "report.json").read_text())
    assert report["steps"] == 6 and report["peak_memory_mb"] > 0 and report["loss"]


@pytest.mark.draws
def test_noise_loss_joins_after_the_warm_up_and_trains_the_repairs(bases, tmp_path):
    train.train(train.parse(small(bases, tmp_path)))
    losses = checkpoint.load(tmp_path / "last.pt")["run"]["history"][-1]["loss"].keys()
    assert losses == {"bce", "noise", "noise_base", "correct"}
    assert (tmp_path / "loss.png").stat().st_size > 1000
    networks = checkpoint.load_run(tmp_path)
    assert networks[2].repair_v[2].weight.norm() > 0


@pytest.mark.parametrize("option", [("--noise-weight", "0"), ("--warmup", "6")])
def test_without_a_noise_loss_the_base_models_are_not_asked(option, bases, tmp_path, monkeypatch):
    monkeypatch.setattr(FrozenModel, "forward", lambda *_: pytest.fail("a base model was asked"))
    train.train(train.parse(small(bases, tmp_path, *option)))
    losses = json.loads((tmp_path / "report.json").read_text())["loss"]
    assert set(losses) == {"bce", "correct"}


def test_the_options_of_a_resumed_run_are_what_is_asked_for_and_else_its_own(bases, tmp_path):
    train.train(train.parse(small(bases, tmp_path)))
    resumed = train.parse(["--resume", str(tmp_path), "--minutes", "5"])
    assert resumed.steps is None and resumed.minutes == 5
    assert train.parse(["--resume", str(tmp_path)]).steps == 6
    changed = train.parse(["--resume", str(tmp_path), "--fakes", "generated", "--lr", "1e-3"])
    assert (changed.fakes, changed.lr, changed.batch, changed.warmup) == ("generated", 1e-3, 4, 3)
    assert (changed.bases, train.parse(["--resume", str(tmp_path), "--bases", "other"]).bases) == (bases, Path("other"))
    train.train(train.parse(["--resume", str(tmp_path), "--steps", "9", "--lr", "1e-3"]))
    used = [o["param_groups"][0]["lr"] for o in checkpoint.load(tmp_path / "last.pt")["optimizers"]]
    assert used == pytest.approx([rate * train.learning_rate(8, 8 / 9) for rate in (1e-3, 1e-4)])


def test_a_run_from_weights_that_are_there_starts_with_them_and_is_resumed_with_its_own(bases, tmp_path, capsys):
    source = tmp_path / "source.pt"
    source.write_bytes((bases / "audio.pt").read_bytes())
    given, still, first = ["--from", str(source)], ["--lr", "1e-9"], checkpoint.load(source)["model"]
    for options, near in ((given, True), ([], False)):
        train.train(train.parse(small(bases, tmp_path, *still, *options, kind="audio")))
        assert near == all(torch.allclose(value, first[name], atol=1e-6) for name, value in weights(tmp_path).items())
    train.train(train.parse(small(bases, tmp_path, *given, kind="audio")))
    trained = weights(tmp_path)
    source.unlink()
    train.train(train.parse(["--resume", str(tmp_path), "--steps", "7", *still]))
    assert checkpoint.load(tmp_path / "last.pt")["args"]["start"] == given[1]
    assert all(torch.allclose(value, trained[name], atol=1e-6) for name, value in weights(tmp_path).items())
    assert not all(torch.allclose(value, first[name], atol=1e-6) for name, value in trained.items())
    with pytest.raises(SystemExit):
        train.parse(["--resume", str(tmp_path), *given])
    assert "--resume goes on with a run's own weights: leave out --from" in capsys.readouterr().err


def test_a_run_is_not_resumed_for_other_clips(bases, tmp_path):
    train.train(train.parse(small(bases, tmp_path)))
    kept = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match=r"was trained for {.*\(3, 16, 32, 32\).*}, not {.*\(3, 24, 48, 48\)"):
        train.train(train.parse(["--resume", str(tmp_path), "--size", "48"]))
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_run_of_another_size_trains_and_samples_from_its_folder_alone(bases, tmp_path):
    own = tmp_path / "bases"
    for kind in ("video", "audio"):
        train.train(train.parse(small(own, tmp_path / kind, "--size", "48", "--steps", "1", kind=kind)))
        own.mkdir(exist_ok=True)
        (tmp_path / kind / "model.pt").rename(own / f"{kind}.pt")
    train.train(train.parse(small(own, tmp_path / "run", "--size", "48", "--steps", "1")))
    sample.main(["--n", "1", "--steps", "2", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "samples")])
    frames, waveform = media.read_clip(tmp_path / "samples" / "guided_00.mp4", 8, 48)
    assert frames.shape == (24, 48, 48, 3) and len(waveform) >= 47_000
    with pytest.raises(ValueError, match=r"video.pt is for --size 32, not 48: train.py video --size 48 makes another"):
        train.train(train.parse(small(bases, tmp_path / "none", "--size", "48")))


def test_ctrl_c_saves_and_says_how_to_go_on(bases, tmp_path):
    code = (
        "import script, train\ntrain.preview = train.figures.save_curves = lambda *_: None\nscript.run_main(train.main)"
    )
    options = [*small(bases, tmp_path, kind="audio"), "--steps", "100000", "--save-minutes", "0.001"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (tmp_path / "report.json").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"--resume {tmp_path}" in out and "Traceback" not in err
    assert checkpoint.load(tmp_path / "last.pt")["step"] > 0


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_state(bases, tmp_path, monkeypatch):
    train.train(train.parse(small(bases, tmp_path)))
    before = weights(tmp_path)

    def broken(args, network, *_):
        return lambda k: (), lambda batch: (torch.nan * next(network.parameters()).sum(), {}, torch.zeros(4))

    monkeypatch.setattr(train, "make_objective", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan and its gradient nan in batch 6 of --seed 0"):
        train.train(train.parse(["--resume", str(tmp_path), "--steps", "9"]))
    after = checkpoint.load(tmp_path / "last.pt")
    assert after["step"] == 6 and all(torch.equal(after["model"][name], value) for name, value in before.items())


@pytest.mark.parametrize(("kind", "compiled"), [("audio", 1), ("discriminator", 2)])
def test_compiled_training_gives_the_same_numbers(kind, compiled, bases, tmp_path, monkeypatch):
    """The compiler traces the network forwards and backwards; code is not generated, which would take minutes."""
    traced, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: traced.append(f) or real(f, backend="aot_eager"))
    warmup = ["--warmup", "0"] if kind == "discriminator" else []
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        train.train(train.parse(small(bases, tmp_path / name, "--steps", "2", *warmup, *more, kind=kind)))
    assert len(traced) == compiled
    plain, same = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    for name in plain:
        assert_close(same[name], plain[name], atol=1e-5, rtol=1e-4)


def test_noise_levels_are_stratified(generator):
    """One draw in each of n equal parts; the discriminator's are a monotone map of such draws."""
    sde, u = VPSDE(), objective.stratified(10_000, generator)
    assert (u * 10_000 - torch.arange(10_000) - 0.5).abs().max() < 0.5 + 1e-3
    t = objective.logit_normal(u, sde)
    assert t.min() >= sde.t_min and t.max() <= 1
    assert_close(t.median(), torch.sigmoid(torch.tensor(objective.LEVEL_MEAN)), atol=0.01, rtol=0)


def test_low_puts_a_share_of_the_clips_at_low_noise_uniform_in_its_logarithm():
    sde, u = VPSDE(), (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert_close(objective.more_low(u, 0.0, objective.uniform, sde), sde.t_min + (1 - sde.t_min) * u)
    assert_close(objective.more_low(u, 0.0, objective.logit_normal, sde).float(), objective.logit_normal(u, sde))
    for low in (0.3, 0.9):
        t = objective.more_low(u, low, objective.uniform, sde)
        few = round(1000 * low)
        alpha, sigma = sde.marginal(t)
        of_log = torch.log(sigma / alpha / objective.FINEST)[:few] / math.log(objective.LOW / objective.FINEST)
        assert_close(of_log, (torch.arange(few, dtype=torch.float64) + 0.5) / few)
        others = (torch.arange(1000 - few, dtype=torch.float64) + 0.5) / (1000 - few)
        assert_close(t[few:], sde.t_min + (1 - sde.t_min) * others)
    edge = sde.time_at(torch.tensor(-2 * math.log(objective.LOW))).item()
    for low, below in (("0", 40 * edge), ("0.75", 30 + 10 * edge)):
        args = train.parse(["audio", "--batch", "40", "--low", low])
        _, t, _ = objective.make_objective(args, None, Xylophone(), sde, ())[0](0)
        assert abs(int((t < edge).sum()) - below) <= 1
    usual = ((objective.logit_normal(u, sde) < edge).double().mean() * 10).item()
    for low, below in (("0", usual), ("0.5", 5 + usual / 2)):  # of ten groups of four
        args = train.parse(["--batch", "40", "--warmup", "9", "--low", low])
        noisy, _ = objective.make_objective(args, None, Xylophone(), sde, (FrozenModel(None, sde),) * 2)[0](0)
        t = torch.maximum(*noisy.t).unflatten(0, (10, 4))
        assert (t == t[:, :1]).all() and abs(int((t[:, 0] < edge).sum()) - below) <= 1


def test_beside_a_clean_side_the_discriminator_trains_at_all_levels():
    args, sde = train.parse(["--batch", "40", "--warmup", "99"]), VPSDE()
    make_batch = objective.make_objective(args, None, Xylophone(), sde, (FrozenModel(None, sde),) * 2)[0]
    v, a = (torch.cat(levels) for levels in zip(*(make_batch(k)[0].t for k in range(20)), strict=True))
    t, clean = torch.maximum(v, a), (v == sde.t_min) | (a == sde.t_min)
    assert clean.sum() == 400
    assert_close(t[clean].quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.25, 0.5, 0.75]), atol=0.1, rtol=0)
    assert (t[clean] > 0.9).sum() > 20 and t[~clean].max() < 0.95


def test_learning_rate_warms_up_and_falls_to_zero():
    assert train.learning_rate(0, 0.0) == pytest.approx(0.01)
    assert train.learning_rate(5000, 0.5) == pytest.approx(0.5)
    assert train.learning_rate(10_000, 1.0) == pytest.approx(0.0)


def test_denoising_loss_of_the_exact_clips_is_zero_and_of_silence_is_known(generator):
    """x0_hat = 0 costs E|x0|^2 / max(sigma, FINEST)^2, summed over the modalities."""
    sde, x0 = VPSDE(), (torch.full((64, 1, 4, 4), 0.5), torch.full((64, 3, 2), 0.25))
    t = objective.stratified(64, generator).clamp(min=0.01)
    eps = tuple(torch.randn(x.shape, generator=generator) for x in x0)
    assert objective.denoising_loss(lambda xt, t: x0, sde, x0, t, eps)[0] == 0
    loss, parts, _ = objective.denoising_loss(lambda xt, t: [torch.zeros_like(x) for x in xt], sde, x0, t, eps)
    sigma = sde.marginal(t)[1]
    assert (sigma < objective.FINEST).any() and (sigma > objective.FINEST).any()
    assert_close(loss, ((0.25 + 0.0625) / sigma.clamp(min=objective.FINEST) ** 2).mean())
    assert_close(parts["v_error"], (0.25 + 0.0625) / sigma**2)


def test_displacement_is_most_of_the_error_of_a_ball_out_of_place_and_next_to_nothing_of_grain(generator, monkeypatch):
    def clips(dx: float = 0.0, dy: float = 0.0) -> torch.Tensor:
        """The same four clips, the ball moved by so many pixels."""
        with monkeypatch.context() as patched:
            hypot = torch.hypot
            patched.setattr(torch, "hypot", lambda x, y: hypot(x - dx / 32, y - dy / 32))
            return Xylophone().batch(4, torch.Generator().manual_seed(0), "video")[0]

    x0 = clips()
    for moved in (clips(dx=0.3), clips(dy=0.3), clips(dy=-0.3)):
        share = objective.displacement(moved - x0, x0) / (moved - x0).square().flatten(1).mean(1)
        assert (share > 0.55).all()
    grain = torch.randn(x0.shape, generator=generator)
    assert (objective.displacement(grain, x0) < 0.01).all()
    assert_close(objective.displacement(3 * grain, x0), 9 * objective.displacement(grain, x0))


@pytest.mark.parametrize("axis", [3, 4])
def test_displacement_of_a_slope_is_all_of_its_error_and_nothing_of_an_error_across_it(axis):
    """x0 = 0.3 y, drawn d pixels too low: the error is -0.3 d everywhere, and of either sign in turn it is no shift."""
    ramp = 0.3 * torch.arange(16.0, dtype=torch.float64)
    x0 = (ramp[:, None] if axis == 3 else ramp).expand(2, 3, 4, 16, 16)
    error = torch.full_like(x0, -0.3 * 0.2)
    whole = error.square().flatten(1).mean(1)
    energy = 3 * 64 * 0.3**2  # of a window's slopes
    assert_close(objective.displacement(error, x0), whole * energy / (energy + 0.1))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
    assert_close(objective.displacement(error * signs, x0), torch.zeros_like(whole))


def test_motion_adds_the_displacement_along_the_slopes_of_the_estimate_under_the_same_weight(generator):
    sde, x0 = VPSDE(), Xylophone().batch(4, generator, "video")[:1]
    t, eps = torch.tensor([0.05, 0.2, 0.5, 0.9]), (torch.randn(x0[0].shape, generator=generator),)
    other = Xylophone().batch(4, generator, "video")[0].requires_grad_()
    guess = lambda xt, t: [other]  # noqa: E731
    plain, with_motion = (objective.denoising_loss(guess, sde, x0, t, eps, motion=w) for w in (0.0, 5.0))
    weight = 1 / sde.marginal(t)[1].clamp(min=objective.FINEST) ** 2
    added = 5 * (weight * objective.displacement(other - x0[0], other.detach())).mean()
    assert_close(with_motion[0] - plain[0], added)
    slopes = [torch.autograd.grad(loss, other)[0] for loss in (with_motion[0], plain[0], added)]
    assert_close(slopes[0] - slopes[1], slopes[2])  # the slopes themselves are not trained by it
    assert "displacement" not in plain[1] and "displacement" in with_motion[1]


def test_loudness_is_the_amplitude_of_a_spectrogram():
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / media.SAMPLE_RATE)
    whole, half = (objective.loudness(media.log_mel(gain * wave[None])).amax() for gain in (0.4, 0.2))
    assert 0.2 < whole < 1  # a mel band sums over some bins of the spectrum
    assert_close(half, whole / 2)
    assert_close(objective.loudness(torch.tensor([-1.0, -3.0])), torch.tensor([1e-3, 1e-3]))


def test_loud_adds_errors_by_the_loudness_of_the_estimate_and_leaves_the_minimum_at_the_mean(generator):
    """Of one x_t, two clips equally likely: the best x0_hat is their mean, however loud one of them is."""
    sde, x0 = VPSDE(), (torch.tensor([0.8, -0.9])[:, None, None, None].expand(2, 1, 4, 5),)
    t, eps = torch.tensor([0.2, 0.2]), (torch.zeros(2, 1, 4, 5),)
    estimate = torch.full((1, 1, 4, 5), -0.05, requires_grad=True)
    guess = lambda xt, t: [estimate.expand(2, 1, 4, 5)]  # noqa: E731
    plain, loud = (objective.denoising_loss(guess, sde, x0, t, eps, loud=w)[0] for w in (0.0, 100.0))
    amplitude = 10 ** (-1.05 / 2 * 60 / 20)
    assert_close(loud, plain * (1 + 100 * amplitude))
    (slope,) = torch.autograd.grad(loud, estimate)
    assert slope.abs().max() < 1e-5 < torch.autograd.grad(guess(0, 0)[0].square().sum(), estimate)[0].abs().max()


def test_batches_made_ahead_come_in_order_and_are_a_function_of_seed_and_step(bases):
    assert list(itertools.islice(objective.ahead(lambda k: k, 3), 40)) == list(range(3, 43))
    make, other = (
        objective.make_objective(train.parse(["audio", "--batch", "4", *seed]), None, Xylophone(), VPSDE(), ())[0]
        for seed in ([], ["--seed", "1"])
    )
    (x0,), t, (eps,) = make(7)
    assert all(torch.equal(x, y) for x, (y,) in zip((x0, eps), make(7)[::2], strict=True)) and torch.equal(
        t, make(7)[1]
    )
    for batch in (make(8), other(7)):
        assert not any(torch.equal(x, y) for x, (y,) in zip((x0, eps), batch[::2], strict=True))


@pytest.mark.parametrize("kind", checkpoint.NETWORKS)
def test_each_parameter_has_one_optimizer(kind):
    network = checkpoint.NETWORKS[kind]()
    groups = [g["params"] for o in train.make_optimizers(network, 1e-2) for g in o.param_groups]
    assert sorted(map(id, itertools.chain(*groups))) == sorted(map(id, network.parameters()))
