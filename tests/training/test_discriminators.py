"""Discriminators judge audio of any length in several views, and their losses pull the two networks apart."""

import torch

from training.discriminators import (
    PERIODS,
    RESOLUTIONS,
    Discriminators,
    PeriodDiscriminator,
    adversarial_loss,
    discriminator_loss,
    matching_loss,
    split,
)


def test_every_view_judges_a_batch_of_any_length():
    with torch.no_grad():
        judged = Discriminators()(torch.randn(2, 4801))
    assert len(judged) == len(PERIODS) + len(RESOLUTIONS)
    assert all(len(score) == 2 and score.isfinite().all() for score, _ in judged)


def test_a_period_discriminator_sees_columns_of_equal_phase():
    judge = PeriodDiscriminator(5)
    audio = torch.randn(1, 500)
    changed = audio.clone()
    changed[:, 2::5] = 0
    with torch.no_grad():
        difference = (judge(audio)[0] - judge(changed)[0]).abs().amax((0, 1, 2))
    assert (difference > 0).tolist() == [False, False, True, False, False]


def test_losses_know_real_from_generated():
    real = [(torch.ones(2, 1, 3, 3), [torch.ones(2, 4)])]
    fake = [(torch.zeros(2, 1, 3, 3), [torch.zeros(2, 4)])]
    assert discriminator_loss(real, fake) == 0
    assert discriminator_loss(fake, real) == 2
    assert adversarial_loss(fake) == 1
    assert matching_loss(real, fake) == 1


def test_a_joint_batch_is_taken_apart_into_real_and_generated():
    joint = [(torch.arange(4.0).view(4, 1), [torch.arange(8.0).view(4, 2)])]
    real, fake = split(joint)
    assert real[0][0].flatten().tolist() == [0, 1]
    assert fake[0][1][0].flatten().tolist() == [4, 5, 6, 7]
