"""Loss scaling: float16 ends at 6e-8, so derivatives are multiplied on their way and divided afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..errors import OptionError

START, LEAST = 2.0**16, 1.0
EVERY = 2000  # steps without overflow, after which the scale is doubled


@dataclass
class LossScale:
    """The factor of all derivatives in training, a power of 2 unless it was chosen.

    A `dynamic` one is halved where a derivative overflows, a step which is then skipped, and doubled after
    2000 steps that went well. That is the method of Micikevicius et al. 2018 (arXiv:1710.03740, section 3.2)
    with the numbers of PyTorch's `GradScaler`.

    >>> scale = LossScale(1024.0, dynamic=True)
    >>> scale.step(finite=False)
    >>> scale.scale, scale.skipped
    (512.0, 1)
    """

    scale: float = 1.0
    dynamic: bool = False
    steps: int = 0  # since the scale changed
    skipped: int = 0

    @classmethod
    def of(cls, loss_scale: float | str | None, precision: str | None) -> LossScale:
        """As a trainer's options ask for it: by default "dynamic" for float16, else none."""
        if loss_scale == "dynamic" or (loss_scale is None and precision == "float16"):
            return cls(START, dynamic=True)
        return cls(1.0 if loss_scale is None else float(loss_scale))

    @property
    def exhausted(self) -> bool:
        """Whether no smaller scale may be tried."""
        return not self.dynamic or self.scale <= LEAST

    def step(self, finite: bool) -> None:
        """Take note of a step, whether its derivatives were finite."""
        self.steps += 1
        if not self.dynamic:
            return
        if not finite:
            self.skipped += 1
            self.scale, self.steps = self.scale / 2, 0
        elif self.steps == EVERY and isfinite(self.scale * 2):
            self.scale, self.steps = self.scale * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint ended; a scale that was chosen stays."""
        if self.dynamic and state:
            self.scale, self.steps = float(state["scale"]), int(state["steps"])


def check_loss_scale(loss_scale: Any) -> None:
    """OptionError unless it is None, "dynamic" or a positive number."""
    number = isinstance(loss_scale, int | float) and not isinstance(loss_scale, bool)
    if loss_scale in (None, "dynamic") or (number and 0 < loss_scale < float("inf")):
        return
    raise OptionError(f'loss_scale is a positive number or "dynamic". Received: {loss_scale!r}')
