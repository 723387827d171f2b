import pytest
import torch
from torch.testing import assert_close

diffusers = pytest.importorskip("diffusers")

import tiny  # noqa: E402, needs diffusers

from guidance import denoise  # noqa: E402
from schedule import SDE, Pairing, Schedule  # noqa: E402
from score import FrozenModel  # noqa: E402

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class Network(torch.nn.Module):
    """Some function of a state and a step."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.at_step(x, self.schedule.step(t)[:, None])

    @staticmethod
    def at_step(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + k / 500) + 0.3 * x


@pytest.mark.parametrize("name", tiny.SCHEDULES)
def test_noise_levels_have_the_alphas_of_the_table(name):
    scheduler = tiny.scheduler(name)
    schedule = Schedule(scheduler)
    alpha, sigma = SDE.marginal(schedule.times)
    table = scheduler.alphas_cumprod.double().clamp(min=2.0**-24)
    assert_close(alpha**2, table, rtol=1e-10, atol=0)
    assert_close(sigma**2, 1 - table, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", tiny.SCHEDULES)
def test_each_noise_level_is_its_own_step_in_float32(name):
    schedule = Schedule(tiny.scheduler(name))
    n = len(schedule.times)
    assert torch.equal(schedule.step(schedule.times.float()), torch.arange(n).float())
    assert torch.equal(schedule.level((torch.arange(n) + 0.5) / n), schedule.times.float())
    between = torch.lerp(schedule.times[:-1], schedule.times[1:], 0.25)
    assert_close(schedule.step(between), torch.arange(n - 1) + 0.25)
    assert schedule.step(torch.tensor([0.0, 9.0])).tolist() == [0, n - 1]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", tiny.SCHEDULES)
@pytest.mark.parametrize("last", (True, False))
def test_ddim_takes_the_steps_of_diffusers(name, prediction, last, generator):
    """Without signal, where zero terminal SNR starts, eps says nothing of x0: it is used with v or x0."""
    if name == "zero_snr" and prediction == "epsilon":
        pytest.skip("eps knows nothing of x0 where there is no signal")
    scheduler = tiny.scheduler(name, prediction, set_alpha_to_one=last)
    schedule = Schedule(scheduler)
    x = torch.randn(2, 3, generator=generator)
    model = FrozenModel(Network(schedule), SDE, schedule.prediction)
    ours = list(denoise(lambda s, t: (model(s[0], t),), (x,), SDE, 10, "ddim", grid=schedule.grid(10)))
    scheduler.set_timesteps(10)
    for k, (mine,) in zip(scheduler.timesteps, ours, strict=True):
        x = scheduler.step(Network.at_step(x, k), k, x).prev_sample
        assert_close(mine, x, rtol=1e-5, atol=1e-3 if name == "zero_snr" else 1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ("linear", "scaled_linear", "cosine"))
def test_ddpm_takes_the_steps_of_diffusers_with_the_same_noise(name, prediction, generator):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=prediction, clip_sample=False, steps_offset=1, **tiny.SCHEDULES[name]
    )
    schedule = Schedule(scheduler)
    x = torch.randn(2, 3, generator=generator)
    model, noise = FrozenModel(Network(schedule), SDE, schedule.prediction), torch.Generator().manual_seed(5)
    grid = schedule.grid(10)
    ours = list(denoise(lambda s, t: (model(s[0], t),), (x,), SDE, 10, "ddpm", noise, grid))
    scheduler.set_timesteps(10)
    noise = torch.Generator().manual_seed(5)
    for k, (mine,) in zip(scheduler.timesteps, ours, strict=True):
        x = scheduler.step(Network.at_step(x, k), k, x, generator=noise).prev_sample
        assert_close(mine, x, rtol=1e-5, atol=1e-5)


def test_any_solver_of_the_family_gives_the_same_table():
    """What is saved with a model says its schedule, whichever solver it was saved with."""
    plain = Schedule(tiny.scheduler("scaled_linear"))
    for kind in (diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler):
        saved = kind(**tiny.SCHEDULES["scaled_linear"])
        assert torch.equal(Schedule(saved).times, plain.times)


def test_flow_matching_is_refused():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler.*cannot be paired"):
        Schedule(diffusers.FlowMatchEulerDiscreteScheduler())


def test_pairing_by_index_or_by_log_snr():
    video, audio = (Schedule(tiny.scheduler(name)) for name in ("linear", "scaled_linear"))
    u = torch.tensor([0.1, 0.5, 1.0])
    t_v, t_a = Pairing(video, audio).levels(u)
    assert torch.equal(video.step(t_v), audio.step(t_a)) and (t_v != t_a).all()
    assert [len(grid) for grid in Pairing(video, audio).grid(7)] == [8, 8]
    t_v, t_a = Pairing(video, audio, "log-snr").levels(u)
    assert torch.equal(t_v, t_a) and torch.equal(*Pairing(video, audio, "log-snr").grid(7))
    assert_close(SDE.log_snr(video.times), torch.logit(video.scheduler.alphas_cumprod.double()), rtol=1e-9, atol=1e-9)
