"""Verdicts and what a person sees of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nescord_ops import checks, show
from nescord_ops.checks import Check, Status, headline, ok, unknown, verdict, warn

STATUSES = st.sampled_from(list(Status))
CHECKS = st.lists(st.builds(Check, st.text(), STATUSES, st.text(), st.text()), min_size=1)


@given(CHECKS)
def test_the_verdict_is_the_worst_check(found: list[Check]) -> None:
    order = [Status.OK, Status.WARN, Status.UNKNOWN, Status.FAIL]
    assert verdict(found) == max((c.status for c in found), key=order.index)


def test_nothing_looked_at_is_never_ok() -> None:
    assert verdict([]) is Status.UNKNOWN
    assert verdict([unknown("a", "b", expected=True)]) is Status.UNKNOWN


def test_an_expected_unknown_does_not_spoil_the_verdict_and_is_counted() -> None:
    found = [ok("a", "fine"), unknown("b", "not here", expected=True)]
    assert verdict(found) is Status.OK
    assert headline(found) == "Healthy. 1 not checked, 1 ok."
    with pytest.raises(ValueError, match="only an unknown"):
        Check("a", Status.FAIL, "bad", expected=True)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1), ("unknown", 2)])
def test_exit_codes(status: str, code: int) -> None:
    assert Status(status).exit_code == code


@given(st.text())
def test_hostile_text_never_becomes_markup(text: str) -> None:
    found = [warn("name", text, text, value=text)]
    html = show.checks_table("title", Status.WARN, found)
    assert html.count("<td") == 3
    assert "<script" not in show.table((text,), [(text, text)], caption=text).lower()


@given(st.text())
def test_controls_and_half_characters_become_visible(text: str) -> None:
    seen = checks.plain(text + "\x1b[31m\udcff")
    assert "\x1b" not in seen
    seen.encode("utf-8")


def test_what_begins_a_title_of_the_terminal_hides_nothing_behind_it() -> None:
    assert show.printable("the file \x1b]0;x is damaged") == "the file 0;x is damaged"
    assert show.printable("\x1b]0;title\x07\x1b]8;;x\x1b\\a\x1b[1mb") == "ab"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (4.2e9, "4.2 GB")],
)
def test_bytes_are_shown_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5 s ago"),
        (600, "10 min ago"),
        (10_800, "3 h ago"),
        (864_000, "10 days ago"),
        (-600, "in 10 min"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert show.age(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "$0.00"), (1.25, "$1.25"), (0.0034, "$0.0034"), (0.00001, "$0.00001")]
)
def test_dollars(amount: float, text: str) -> None:
    assert show.dollars(amount) == text
