"""Where texts stop, whatever pieces they come in."""

from __future__ import annotations

import pytest

from inference.generation.stopping import Stops

CASES = [
    # stops, what stands before, the text, what is shown, the stop
    (Stops(("花落",), ()), "", "夜来风雨声，花落知多少。", "夜来风雨声，", "花落"),
    (Stops(("花开",), ()), "", "夜来风雨声，花落知多少。花", "夜来风雨声，花落知多少。花", None),
    (Stops(("abab", "b"), ()), "", "xxabab", "xx", "abab"),
    (Stops((), ("line",)), "", "白日依山尽\n黄河入海流", "白日依山尽", "\n"),
    (Stops((), ("blank-line",)), "", "白日依山尽\n黄河入海流\n \n欲穷", "白日依山尽\n黄河入海流", "\n \n"),
    (Stops((), ("blank-line",)), "", "白日依山尽\n", "白日依山尽\n", None),
    (Stops((), ("chapter",)), "", "且听下回分解。\n\u3000第八十一回 占旺相", "且听下回分解。\n", "\u3000第八十一回"),
    # A heading that begins the text, and one that is not at the beginning of a line, are no next chapter.
    (Stops((), ("chapter",)), "", "第八十一回\n话说第二回书中，\n第二日", "第八十一回\n话说第二回书中，\n第二日", None),
    (Stops((), ("chapter",)), "\n", "第八十一回", "", "第八十一回"),
    (Stops(("。",), ("chapter",)), "", "话说。\n第二回", "话说", "。"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(("stops", "before", "text", "shown", "stop"), CASES)
def test_a_stop_and_what_follows_is_never_shown_and_all_else_is(
    size: int, stops: Stops, before: str, text: str, shown: str, stop: str | None
) -> None:
    certain, stopped = len(before), False
    for end in range(size, len(text) + size, size):
        written = before + text[:end]
        certain, stopped = stops.certain(written, certain, is_last=False)
        assert shown.startswith(written[len(before) : certain])
        if stopped:
            break
    else:
        certain, stopped = stops.certain(written, certain, is_last=True)
    assert written[len(before) : certain] == shown
    assert stopped == (stop is not None)
    assert written[certain:].startswith(stop or "")
    # When a text is over, nothing more comes of it.
    assert stops.certain(written, certain, is_last=True) == (certain, stopped)


def test_without_stops_every_piece_is_shown_at_once() -> None:
    assert [Stops().certain(text, 0, is_last=False) for text in ("床前\n", "床前\n\n第一回")] == [(3, False), (7, False)]


@pytest.mark.parametrize(
    ("strings", "boundaries", "message"), [(("",), (), "is empty"), ((), ("page",), "stop at = page; it must be one of line")]
)
def test_a_stop_that_is_none_is_refused(strings: tuple[str, ...], boundaries: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stops(strings, boundaries)
