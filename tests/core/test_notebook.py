"""What a notebook shows: short words, escaped tables, figures, progress."""

import io
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.history import History
from fedjax_sim.results import Results
from fedjax_sim.results.runs import Run
from fedjax_sim.sweeps import Swept
from tests.helpers import killed


class Cells(HTMLParser):
    """The words of a table's cells, in order."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(html)
        self.close()

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)


def runs(count, name="lr"):
    columns = {"test_accuracy": np.array([0.5, 0.75])}
    return Results(tuple(Run({name: 0.1 * i}, 0, columns, {}, 2) for i in range(count)))


@pytest.fixture(scope="module")
def run():
    return fs.simulate(killed.experiment(0.03)._replace(num_rounds=8), 5)


def test_a_run_and_its_history_are_a_line_and_a_table(run):
    for shown, name in ((run, "Simulation"), (run.history, "History")):
        assert repr(shown).startswith(f"{name}(")
        assert len(repr(shown)) < 200
        assert "array" not in repr(shown)
        cells = Cells(shown._repr_html_())
        assert cells.words[0] == name
        b = cells.words[cells.words.index("b") + 1]
        assert float(b) == pytest.approx(float(run.state.params["b"]), rel=1e-3)
    assert "finished, rounds 8 of 8, train_loss" in repr(run)
    assert repr(run).endswith("parameters 5)")


def test_a_history_without_values_has_shapes(run):
    wide = jax.tree.map(lambda x: np.stack([x, x]), run.history)
    assert repr(wide) == "History([2, 8] rounds)"
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.history)
    assert repr(shapes) == "History([8] rounds)"
    told = []

    def traced(history):
        told.append(repr(history) + history._repr_html_())
        return history.evaluated

    jax.jit(traced)(jax.tree.map(jnp.asarray, run.history))
    assert told[0].startswith("History([8] rounds)<table>")


def test_results_are_counted_and_cut():
    assert repr(runs(3)) == "Results(3 runs of 3 configurations: test_accuracy)"
    assert repr(Results(())) == "Results(0 runs of 0 configurations: nothing measured)"
    html = runs(25)._repr_html_()
    assert html.count("<tr>") == 1 + 20
    assert html.endswith("<p>and 5 more rows</p>")
    assert "0.75" in Cells(html).words
    assert Results(())._repr_html_().startswith("<table>")


def test_what_users_name_is_escaped():
    evil = "<script>alert(1)</script>"
    results = Results((Run({evil: evil}, 0, {}, {}, 1),))
    data = fs.FederatedData.from_clients([{evil: np.ones(2)}])
    for shown in (results, data, Swept(1, 2, 3.0, 4.0, evil)):
        cells = Cells(shown._repr_html_())
        assert "script" not in cells.tags
        assert evil in "".join(cells.words)


def test_a_federation_is_a_table_of_sizes(data):
    words = Cells(data._repr_html_()).words
    assert words[words.index("clients") + 1] == "8"
    assert words[words.index("examples of a client") + 1] == "0 to 23, median 6"
    shapes = jax.eval_shape(lambda data: data, data)
    assert "examples of a client" not in shapes._repr_html_()


def test_a_sweep_at_work_is_a_line():
    now = Swept(3, 12, 1234.5, 61.0, "epochs=1")
    assert repr(now).startswith("Swept(runs 3 of 12, client steps a second 1234")


def test_a_figure_shows_itself():
    figure = fs.plots.curves(runs(2), "test_accuracy")
    shown = figure._repr_png_()
    assert shown.startswith(b"\x89PNG\r\n\x1a\n")
    image = pytest.importorskip("matplotlib.image").imread(io.BytesIO(shown))
    assert image[0, 0, :3].min() == 1  # white, whatever the notebook's colour
    assert image[..., :3].min() < 0.5


def test_a_bar_and_a_function_are_both_told(capsys):
    pytest.importorskip("tqdm")
    experiment, told = killed.experiment(0.03)._replace(num_rounds=8), []
    run = fs.simulate(experiment, 5, progress=True, on_progress=told.append)
    assert told[-1].round == 8
    assert run.status == "finished"
    said = capsys.readouterr()
    assert said.out == ""
    assert "8/8 rounds" in said.err
    with pytest.raises(fs.InterruptedRun, match="ZeroDivisionError"):
        fs.simulate(experiment, 5, progress=True, on_progress=lambda now: 1 / 0)
    told.clear()

    def constant(key, lr):
        return {"error": lr}

    fs.sweep(constant, {"lr": [0.1, 0.2]}, [3, 4], progress=True, on_progress=told.append)
    assert told[-1].runs == 4
    assert "4/4 runs" in capsys.readouterr().err


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(
        ImportError, match=r"progress needs tqdm: pip install fedjax-sim\[notebook\]"
    ):
        fs.simulate(killed.experiment(0.03), 5, progress=True)


def test_a_history_is_still_a_pytree(run):
    assert isinstance(jax.tree.map(lambda x: x, run.history), History)
