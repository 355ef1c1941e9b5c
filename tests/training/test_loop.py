"""A run follows the wall clock, can be cut anywhere, and never leaves anything on disk that is not sound."""

import time

import pytest
import torch

from training.loop import Clock, Plan, export, run
from training.optimise import Average


class Time:
    """A clock set by hand."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class Toy:
    """A trainer of one weight, which grows by one a step; `poison` makes that step's loss infinite."""

    losses = ("loss",)
    device = torch.device("cpu")

    def __init__(self, poison=None):
        self.steps, self.weight, self.poison, self.began_with = 0, torch.zeros(2), poison, None

    def advance(self, progress, rate):
        self.steps += 1
        self.weight = self.weight + 1
        return torch.tensor([float("inf") if self.steps == self.poison else 1.0])

    def refresh(self):
        pass

    def state(self):
        return {"weight": self.weight, "steps": self.steps}

    def load(self, state):
        self.weight, self.steps = state["weight"], state["steps"]

    def start_from(self, weights):
        self.began_with = dict(weights)

    def weights(self):
        return {"weight": self.weight}


def test_progress_is_the_share_of_the_minutes_spent():
    now = Time()
    clock = Clock(2.0, spent=30.0, now=now)
    assert clock.progress == 0.25
    now.seconds += 45
    assert clock.progress == 0.625
    assert not clock.over
    now.seconds += 45
    assert clock.progress == 1
    assert clock.over


def test_a_stop_ends_a_run_before_its_minutes_are_spent():
    now = Time()
    clock = Clock(2.0, spent=30.0, stop=15.0, now=now)
    now.seconds += 16
    assert clock.over
    assert clock.progress < 1


def test_the_rate_rises_at_first_and_falls_to_a_floor():
    now = Time()
    clock = Clock(1.0, now=now)
    rates = []
    for _ in range(61):
        rates.append(clock.rate)
        now.seconds += 1
    assert rates[0] < 0.05
    assert max(rates) > 0.95
    assert rates.index(max(rates)) < 4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_an_optimiser_without_moments_is_warmed_up_again():
    assert Clock(1.0, spent=30.0, cold=True).rate < 0.1 < 0.4 < Clock(1.0, spent=30.0).rate


def test_a_plan_without_minutes_ends_at_its_deadline_with_what_was_spent_before(tmp_path):
    clock = Plan("toy", tmp_path, minutes=None, until=time.time() + 60).clock(60.0, cold=False)
    assert clock.budget == pytest.approx(120.0, abs=1.0)
    assert clock.progress == pytest.approx(0.5, abs=0.01)


def test_a_run_writes_its_losses_its_weights_and_what_it_needs_to_go_on(tmp_path):
    first = Toy()
    run(first, Plan("toy", tmp_path, minutes=0.001, log_every=1))
    rows = (tmp_path / "toy.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,loss"
    assert len(rows) == 1 + first.steps
    weights = torch.load(tmp_path / "toy.pt", weights_only=True)
    torch.testing.assert_close(weights["weight"], torch.full((2,), float(first.steps)).half())
    second = Toy()
    run(second, Plan("toy", tmp_path, minutes=0.002, log_every=1))
    assert second.steps > first.steps
    assert second.weight[0] == second.steps
    assert len((tmp_path / "toy.csv").read_text().splitlines()) == 1 + second.steps


def test_a_run_whose_time_is_over_changes_nothing(tmp_path):
    trainer = Toy()
    run(trainer, Plan("toy", tmp_path, minutes=None, until=time.time() - 1))
    assert trainer.steps == 0
    assert not (tmp_path / "toy.pt").exists()


def test_given_weights_are_where_a_run_begins_but_a_checkpoint_counts_for_more(tmp_path):
    given = tmp_path / "given.pt"
    export(given, {"weight": torch.full((2,), 7.0)})
    plan = Plan("toy", tmp_path, minutes=0.001, init=given)
    first = Toy()
    run(first, plan)
    assert first.began_with["weight"].tolist() == [7.0, 7.0]
    assert first.began_with["weight"].dtype == torch.float32
    second = Toy()
    run(second, plan)
    assert second.began_with is None


@pytest.mark.parametrize("part", ["loss", "weight"])
def test_a_run_that_breaks_leaves_the_last_sound_state(tmp_path, part):
    run(Toy(), Plan("toy", tmp_path, minutes=0.001, log_every=1))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    broken = Toy()
    run_plan = Plan("toy", tmp_path, minutes=0.002, log_every=1)
    broken.load = lambda state: None
    if part == "loss":
        broken.poison = 1
    else:
        broken.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="start again"):
        run(broken, run_plan)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_weights_ship_in_half_precision_and_shared_ones_once(tmp_path):
    table = torch.randn(100, 100)
    export(tmp_path / "shared.pt", {"a": table[:50], "b": table[:50], "n": torch.arange(3)})
    loaded = torch.load(tmp_path / "shared.pt", weights_only=True)
    assert loaded["a"].dtype == torch.float16
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    assert loaded["n"].dtype == torch.int64
    assert (tmp_path / "shared.pt").stat().st_size < 50 * 100 * 2 + 3000


def test_weights_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(FloatingPointError, match="big"):
        export(tmp_path / "big.pt", {"big": torch.tensor([1e6])})
    assert list(tmp_path.iterdir()) == []


def test_an_average_follows_the_weights_at_a_distance():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = Average(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        average.update(restart=True)
        layer.weight.fill_(3.0)
    average.update(restart=False)
    torch.testing.assert_close(average.state()["weight"], torch.tensor([[2.1]]))
