"""The flow's solver with TensorRT's estimator in it; state, hops and batches are those of the solver in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lighttts.models.cfm import GUIDANCE_HALVES, CausalConditionalCFM
from lighttts.models.estimator import CausalConditionalDecoder
from lighttts.models.streaming import StreamBatch
from lighttts.tensorrt.velocity import CachedVelocity, WholeVelocity


class TensorRTSolver(CausalConditionalCFM[CausalConditionalDecoder]):
    """Solves what an engine has been built for with it, and everything else with the estimator in torch.

    `cached` takes what is masked by chunks, in hops or in one pass. `whole` takes whole sequences without that mask,
    which is how requests at another speed are synthesised.
    """

    def __init__(
        self,
        decoder: CausalConditionalCFM[CausalConditionalDecoder],
        cached: CachedVelocity,
        whole: WholeVelocity | None,
    ) -> None:
        """Parameters and tables are shared with `decoder`, not copied."""
        # The parent's constructor would draw weights and noise that `decoder` has.
        nn.Module.__init__(self)
        self.config, self.shape, self.estimator = decoder.config, decoder.shape, decoder.estimator
        for name in ("noise", "times", "lengths"):
            self.register_buffer(name, decoder.get_buffer(name), persistent=False)
        self._cached, self._whole = cached, whole

    def solve(self, mu: Tensor, speaker: Tensor, prompt: Tensor, batch: StreamBatch) -> Tensor:
        rows, whole = GUIDANCE_HALVES * len(batch.states), self._whole
        if self._masked_by_chunks(batch):
            if self._cached.profile.holds(rows, batch.new, batch.past):
                return self._solve_cached(mu, speaker, prompt, batch)
        elif whole is not None and whole.holds(rows, batch.new) and not _any_goes_on(batch):
            return self._solve_whole(mu, speaker, prompt, batch, whole)
        return super().solve(mu, speaker, prompt, batch)

    def _masked_by_chunks(self, batch: StreamBatch) -> bool:
        """Inside one chunk there is nothing to mask; beyond it a mask differs from query to query."""
        return batch.new <= self.estimator.config.chunk or (batch.mask is not None and batch.mask.size(2) > 1)

    def _solve_cached(self, mu: Tensor, speaker: Tensor, prompt: Tensor, batch: StreamBatch) -> Tensor:
        x = self.noise_at([state.length for state in batch.states], mu.size(1))
        mu, speaker, prompt = (_both_halves(part) for part in (mu, speaker, prompt))
        mask = _valid_columns(batch)
        for step in range(self.config.steps):
            window = batch.window(step)
            out = self._cached.velocity(
                x.repeat(GUIDANCE_HALVES, 1, 1),
                mu,
                speaker,
                prompt,
                self.times[step].expand(len(mask)),
                mask,
                window.cache[..., : batch.past, :],
                window.tails,
            )
            window.cache[..., batch.past :, :] = out.keys_values
            window.new_tails.copy_(out.tails)
            batch.keep(step, window)
            x = self.follow(x, step, out.velocity)
        return x

    def _solve_whole(
        self, mu: Tensor, speaker: Tensor, prompt: Tensor, batch: StreamBatch, whole: WholeVelocity
    ) -> Tensor:
        x = self.noise_at([0] * len(batch.states), mu.size(1))
        mu, speaker, prompt = (_both_halves(part) for part in (mu, speaker, prompt))
        mask = _valid_columns(batch)
        for step in range(self.config.steps):
            t = self.times[step].expand(len(mask))
            x = self.follow(x, step, whole.velocity(x.repeat(GUIDANCE_HALVES, 1, 1), mu, speaker, prompt, t, mask))
        return x


def _both_halves(part: Tensor) -> Tensor:
    """The condition, and nothing: zeros."""
    return torch.cat([part, torch.zeros_like(part)])


def _any_goes_on(batch: StreamBatch) -> bool:
    """Whether some request of `batch` needs its state afterwards."""
    return any(kept is not None for kept in batch.kept)


def _valid_columns(batch: StreamBatch) -> Tensor:
    """Which columns hold a frame, bool (halves x requests, past + new)."""
    device = batch.tails.device
    past = torch.tensor([state.length for state in batch.states], device=device)
    new = torch.tensor(batch.lengths, device=device)
    columns = torch.arange(-batch.past, batch.new, device=device)
    valid = (columns >= -past[:, None]) & (columns < new[:, None])
    return valid.repeat(GUIDANCE_HALVES, 1)
