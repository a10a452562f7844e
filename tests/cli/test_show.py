"""What a terminal and a file are shown while something runs."""

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedjax_sim.cli import show
from fedjax_sim.host.driver import Progress
from fedjax_sim.sweeps import Swept
from fedjax_sim.sweeps.telling import Teller

NOW = Progress(
    22, 200, 908.2, 74_367.0, 4000.0, {"clients_accuracy_worst_tenth": 0.5, "train_loss": 0.392}
)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of some width; what is written on it."""

    def made(width):
        written = io.StringIO()

        def console(**options):
            return Console(file=written, force_terminal=True, width=width, highlight=False)

        monkeypatch.setattr(show, "Console", console)
        return written

    return made


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_bar_the_count_and_the_time_left_are_never_lost(terminal, width):
    written = terminal(width)
    with show.run_progress(200, "clients_accuracy_worst_tenth") as tell:
        tell(NOW)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue().replace("\x1b[2K", "\n"))
    lines = [line for line in shown.splitlines() if "22/200" in line]
    assert lines
    for line in lines:
        assert len(line.rstrip()) <= width
        assert sum(line.count(character) for character in "━╸╺") == 16
        assert "22/200 rounds, about 67 min left" in line
        assert ("clients_accuracy_worst_tenth 0.500" in line) == (width >= 100)
        assert ("train_loss 0.392" in line) == (width >= 140)


@given(
    st.text("a0 ", min_size=1, max_size=12),
    st.text("b", max_size=9),
    st.lists(st.text("cd", min_size=1, max_size=20)),
    st.integers(30, 120),
)
def test_a_line_fits_and_holds_its_first_parts_whole(count, left, parts, width):
    line = show.fitted(count, left, parts, width)
    assert len(line) <= width
    first = ", ".join(x for x in (count, left) if x)
    shown = line[len(first) + 2 :].split(", ") if len(line) > len(first) else []
    assert line.startswith(first)
    assert shown == parts[: len(shown)]


def test_what_is_in_brackets_is_no_markup(terminal):
    written = terminal(120)
    with show.sweep_progress(4) as tell:
        tell(Swept(1, 4, 10.0, 5.0, "width=[red]"))
    assert "width=[red]" in written.getvalue()


def test_no_time_left_is_told_before_a_pace_is_known(capsys):
    with show.run_progress(200, "train_loss") as tell:
        tell(NOW._replace(seconds_left=math.nan))
    line = capsys.readouterr().err
    assert line.startswith("22 of 200 rounds, train_loss 0.392, 908 rounds/s")
    assert "left" not in line


def test_a_sweeps_first_short_chunk_is_no_pace():
    told = []
    teller = Teller(told.append, 10)
    group = type("group", (), {"static": {}})
    teller.chunk(group, 2, 2, 0.01, 10.0, 0.5)  # of which 0.4 s load the program
    teller.chunk(group, 2, 2, 0.11, 10.0, 1.0)  # a tenth of two runs in a second
    assert math.isnan(told[0].seconds_left)
    assert told[1].seconds_left == pytest.approx((10 - 0.22) / 0.2)
