"""Written text becomes pieces: in order, within what the broker takes, and whole again when they are put together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lighttts.client.script import Mark, Script
from lighttts.transport.wire import MAX_PIECE, TEXT_WINDOW, Finish, Flush, Message, Piece


def text_of(messages: list[Message]) -> str:
    return "".join("|" if isinstance(m, Flush) else m.text if isinstance(m, Piece) else "." for m in messages)


@given(
    items=st.lists(st.one_of(st.text(max_size=30), st.just(Mark.FLUSH)), max_size=20),
    growth=st.integers(5, 60),
)
def test_all_that_is_written_is_sent_in_order_and_never_more_than_is_taken(
    items: list[str | Mark], growth: int
) -> None:
    script, sent, total = Script(), [], 0
    script.limit = 0
    for item in [*items, Mark.END]:
        script.add(item)
        script.limit += growth
        messages, size = script.take("r")
        sent += messages
        total += size
        assert total == sum(len(m.text.encode()) for m in sent if isinstance(m, Piece)) <= script.limit
    while not script.complete:
        script.limit += growth
        sent += script.take("r")[0]
    assert [m.seq for m in sent] == [*range(len(sent))]  # type: ignore[attr-defined]
    assert text_of(sent) == "".join(item if isinstance(item, str) else "|" for item in items) + "."
    assert script.take("r") == ([], 0)


def test_a_long_text_is_cut_between_letters_and_stops_where_the_broker_does() -> None:
    script = Script()
    script.add("é" * TEXT_WINDOW)
    messages, size = script.take("r")
    assert size == TEXT_WINDOW
    assert [len(m.text.encode()) for m in messages if isinstance(m, Piece)] == [MAX_PIECE] * 4
    script.limit += 3
    messages, size = script.take("r")
    assert (text_of(messages), size) == ("é", 2)


def test_the_end_waits_for_the_text_before_it() -> None:
    script = Script()
    script.add("x" * (TEXT_WINDOW + 1))
    script.add(Mark.END)
    script.take("r")
    assert not script.complete
    script.limit += 1
    messages, _ = script.take("r")
    assert [type(m) for m in messages] == [Piece, Finish]
    assert script.complete
