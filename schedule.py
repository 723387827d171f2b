"""Discrete schedules as noise levels of the VPSDE, and which levels of two models belong together.

A model of the diffusers library has a table alphas_cumprod[k], k = 0 ... N - 1, for a time. But a variance-preserving
process is known by its log-SNR alone, so step k is that noise level t of our VPSDE which has the same alpha and sigma:

    lambda_k = log(alphas_cumprod[k] / (1 - alphas_cumprod[k])),      t_k = sde.time_at(lambda_k)

and whatever the schedule (linear, scaled-linear, cosine, zero terminal SNR), the rest of the code knows only t.

Used by pretrained.py.
"""

import torch
from torch import Tensor

from score import VPSDE

SDE = VPSDE()
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SNR_FLOOR = 2.0**-24  # alphas_cumprod of a step without any signal (zero terminal SNR), which eps cannot express


class Schedule:
    """The N training steps of a diffusers scheduler as noise levels t_k of the VPSDE, (N,) float64."""

    def __init__(self, scheduler):
        from diffusers import DDIMScheduler

        config = dict(scheduler.config)
        if not hasattr(scheduler, "alphas_cumprod") or config.get("prediction_type", "epsilon") not in PREDICTIONS:
            raise ValueError(
                f"its scheduler ({type(scheduler).__name__}) is not one of a variance-preserving diffusion: "
                "flow matching and sigma-parametrised models cannot be paired"
            )
        self.scheduler = DDIMScheduler.from_config(config)  # its tables and its steps, whatever solver was saved
        self.prediction = PREDICTIONS[self.scheduler.config.prediction_type]
        self.times = self.time_of(self.scheduler.alphas_cumprod)

    @staticmethod
    def time_of(alphas_cumprod: Tensor) -> Tensor:
        """t with alpha_t^2 = alphas_cumprod, float64; 0 where that is 1."""
        cumprod = alphas_cumprod.double().clamp(min=SNR_FLOOR)
        return SDE.time_at(torch.logit(cumprod))

    def step(self, t: Tensor) -> Tensor:
        """The step k (B,) at noise level t (B,): linear in t between two steps, ends held; whole where t is a t_k."""
        times = self.times.to(t.device)
        right = torch.searchsorted(times, t.double().contiguous()).clamp(1, len(times) - 1)
        share = (t.double() - times[right - 1]) / (times[right] - times[right - 1])
        k = (right - 1 + share).clamp(0, len(times) - 1)
        return torch.where((k - k.round()).abs() < 0.01, k.round(), k).float()  # t is a float32, t_k is not

    def level(self, u: Tensor) -> Tensor:
        """The noise level after a share u (B,) in (0, 1] of the training steps, one of t_k."""
        k = (u.double() * len(self.times)).ceil().long() - 1
        return self.times.to(u.device)[k.clamp(0, len(self.times) - 1)].to(u.dtype)

    def grid(self, steps: int) -> Tensor:
        """t of the steps that the scheduler itself takes, then of the clean end: (steps + 1,) float64."""
        self.scheduler.set_timesteps(steps)
        return torch.cat([self.times[self.scheduler.timesteps], self.time_of(self.scheduler.final_alpha_cumprod)[None]])


class Pairing:
    """Noise levels of a video and an audio model that belong together.

    "index" (default): the same share of each model's own training steps. At weight 0 each is then sampled
        just as its own pipeline would, neither is asked for a noise level it never saw, and both end at their own
        last step; the discriminator is told both levels, which may differ.
    "log-snr": the same signal-to-noise ratio, on the steps of the video model. Sound and picture are then
        equally far decided, but where one schedule reaches further, the other model is held at its last step.
    """

    def __init__(self, video: Schedule, audio: Schedule, by: str = "index"):
        self.schedules = video, audio if by == "index" else video

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(t_v, t_a) to train at, from shares u (B,) of the steps."""
        return tuple(schedule.level(u) for schedule in self.schedules)

    def grid(self, steps: int) -> tuple[Tensor, Tensor]:
        """(t_v, t_a) to sample at, (steps + 1,) each."""
        return tuple(schedule.grid(steps) for schedule in self.schedules)
