"""Hops are upstream's, cover every token once, and never depend on how the tokens arrive."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lighttts.engine.schedule import Hop, HopSchedule

TINY = Path(__file__).parents[1] / "golden" / "cosyvoice2-tiny"


def plan(prompt: int, arrivals: list[int]) -> list[Hop]:
    """The hops of a request whose tokens arrive in portions of these sizes."""
    schedule, available, hops = HopSchedule(prompt), 0, []
    for index, portion in enumerate(arrivals):
        available += portion
        ended = index == len(arrivals) - 1
        while not (hops and hops[-1].final) and (hop := schedule.next(available, ended)) is not None:
            hops.append(hop)
            schedule = schedule.after(hop)
    return hops


def test_hops_are_those_of_the_reference():
    golden = load_file(TINY / "golden.safetensors")
    prompt, count = golden["flow.prompt_token"].size(1), golden["flow.token"].size(1)
    rows = [[hop.start, hop.given, int(hop.final)] for hop in plan(prompt, [1] * count)]
    assert rows == golden["stream.schedule"][:, :3].tolist()


def test_hops_double_up_to_four_chunks():
    assert [hop.end - hop.start for hop in plan(0, [500])] == [25, 50, 100, 100, 100, 100, 25]


def test_the_look_ahead_is_waited_for():
    schedule = HopSchedule(prompt=0)
    assert schedule.next(27, ended=False) is None
    assert schedule.next(28, ended=False) == Hop(0, 0, 25, 28, final=False)
    assert schedule.next(27, ended=True) == Hop(0, 0, 27, 27, final=True)


def test_a_request_without_tokens_has_one_empty_final_hop():
    assert plan(7, [0]) == [Hop(0, 0, 0, 0, final=True)]


@given(prompt=st.integers(0, 120), arrivals=st.lists(st.integers(0, 130), min_size=1, max_size=12))
def test_hops_cover_the_tokens_once_in_whole_chunks_whatever_the_arrivals(prompt, arrivals):
    hops = plan(prompt, arrivals)
    assert [hop.index for hop in hops] == list(range(len(hops)))
    assert [hop.start for hop in hops] == [0, *(hop.end for hop in hops[:-1])]
    assert hops[-1].end == hops[-1].given == sum(arrivals)
    assert [hop.final for hop in hops] == [False] * (len(hops) - 1) + [True]
    assert all((prompt + hop.end) % 25 == 0 and hop.given == hop.end + 3 for hop in hops[:-1])
    assert hops == plan(prompt, [sum(arrivals)])
