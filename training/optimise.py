"""What a training step is made of: AdamW with rates as tensors, an average of the weights, steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EAGER_STEPS_BEFORE_CAPTURE = 3


def adamw(groups: Sequence[tuple[Iterable[nn.Parameter], float]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over (parameters, peak rate) groups whose step can be captured: rates are tensors beside the parameters."""
    made: list[dict[str, Any]] = []
    for parameters, peak in groups:
        listed = list(parameters)
        rate = torch.tensor(peak, device=listed[0].device)
        made.append({"params": listed, "lr": rate, "peak": peak})
    capturable = made[0]["params"][0].is_cuda
    return torch.optim.AdamW(made, betas=betas, weight_decay=0.01, fused=True, capturable=capturable)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` of its peak, in place, so that captured steps see it."""
    for group in optimizer.param_groups:
        group["lr"].fill_(group["peak"] * factor)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe, on a GPU; no cache of cast weights, which a captured step must not carry over."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


class Replay:
    """A training step as one CUDA graph: eager a few times, captured once, replayed from then on.

    The step must read and write tensors that stay in place and must not wait for the device. On a CPU, or if `eager`,
    the step is called as it is.
    """

    def __init__(self, step: Callable[[], Tensor], device: torch.device, *, eager: bool = False) -> None:
        self.step = step
        self.eager = eager or device.type != "cuda"
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result = torch.empty(0)

    def __call__(self) -> Tensor:
        """Run one step; its result lies in the same tensor each time once captured."""
        self.calls += 1
        if self.eager:
            return self.step()
        if self.graph is not None:
            self.graph.replay()
            return self.result
        if self.calls <= EAGER_STEPS_BEFORE_CAPTURE:
            return self._aside()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.step()
        self.graph.replay()
        return self.result

    def _aside(self) -> Tensor:
        """Before a capture work must have run on another stream than the default one."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        return result


class Average:
    """An exponential moving average of a module's parameters, which samples better than the last step's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [p.detach() for p in module.parameters()]
        self.names = [name for name, _ in module.named_parameters()]
        self.mean = [p.clone() for p in self.live]

    @torch.no_grad()
    def update(self, *, restart: bool) -> None:
        """Move towards the parameters, or, early in a run, begin again at them."""
        if restart:
            torch._foreach_copy_(self.mean, self.live)
        else:
            torch._foreach_lerp_(self.mean, self.live, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.mean, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, mean in zip(self.names, self.mean, strict=True):
            mean.copy_(state[name])
