"""Figures of results made by hand: what is drawn where."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedjax_sim import plots
from fedjax_sim.compare import measured, report
from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.partition import describe
from fedjax_sim.plots import canvas, line_styles
from fedjax_sim.results import Results, Run
from fedjax_sim.settings.setting import Setting


def made(values, configuration=None, seed=0, **columns):
    """A run whose test_accuracy is `values`."""
    values = np.asarray(values, float)
    rounds = {"test_accuracy": values, **{k: np.asarray(x) for k, x in columns.items()}}
    return Run(configuration or {}, seed, rounds, {}, len(values))


def drawn(figure, place=0):
    return [line for line in figure.axes[place].get_lines() if len(line.get_xdata())]


def said(figure):
    """Everything written below the axes."""
    (legend,) = figure.legends
    return [text.get_text() for text in (legend.get_title(), *legend.get_texts())]


def test_a_curve_is_the_mean_over_seeds_and_its_band_students_interval():
    runs = [made([0.1, 0.5], {"lr": 0.1}, 0), made([0.3, 0.9], {"lr": 0.1}, 1)]
    runs = [run._replace(rounds={"test_r2": run.rounds["test_accuracy"]}) for run in runs]
    figure = plots.curves(Results(tuple(runs)), "test_r2", band="interval")
    (line,) = drawn(figure)
    np.testing.assert_array_equal(line.get_xdata(), [1, 2])
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.7])
    (band,) = figure.axes[0].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    half = 12.706205 * 0.2828427 / math.sqrt(2)  # t_{0.975, 1} s / sqrt(2)
    np.testing.assert_allclose([low, high], [0.7 - half, 0.7 + half], rtol=1e-6)
    assert "mean over 2 seeds; bands: 95% interval" in figure.axes[0].get_xlabel()


def test_a_curve_has_the_rounds_in_which_every_seed_was_evaluated():
    values = [9, 0.2, 9, 0.4, 9, 0.6]
    where = np.array([False, True] * 3)
    runs = [made(values, seed=0, evaluated=where), made(values[:4], seed=1, evaluated=where[:4])]
    (line,) = drawn(plots.curves(Results(tuple(runs)), "test_accuracy"))
    np.testing.assert_array_equal(line.get_xdata(), [2, 4])
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.4])


def test_curves_against_megabytes():
    sent = {"bytes_down": [1_000_000, 2_000_000], "bytes_up": [500_000, 1_000_000]}
    figure = plots.curves(
        Results((made([0.1, 0.2], **sent),)), "test_accuracy", against="megabytes"
    )
    np.testing.assert_allclose(drawn(figure)[0].get_xdata(), [1.5, 3.0])
    with pytest.raises(ValueError, match="got 'bytes_down'"):
        plots.curves(Results((made([0.1]),)), "test_accuracy", against="megabytes")


def test_of_many_configurations_the_best_are_shown_and_the_legend_says_so():
    runs = [made([0.0, i / 100], {"lr": 0.01 * i}) for i in range(1, 21)]
    figure = plots.curves(Results(tuple(runs)), "test_accuracy", most=3)
    assert sorted(line.get_ydata()[-1] for line in drawn(figure)) == [0.18, 0.19, 0.2]
    assert said(figure)[0] == "the 3 best of 20 by final test_accuracy"
    losses = [run._replace(rounds={"test_loss": run.rounds["test_accuracy"]}) for run in runs]
    lowest = plots.curves(Results(tuple(losses)), "test_loss", most=2)
    assert sorted(line.get_ydata()[-1] for line in drawn(lowest)) == [0.01, 0.02]


def test_several_columns_of_one_configuration():
    results = Results((made([0.1, 0.2], train_accuracy=[0.3, 0.4]),))
    figure = plots.curves(results, ["train_accuracy", "test_accuracy"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "test"]
    assert figure.axes[0].get_ylabel() == "accuracy"


def test_the_modes_keep_their_styles():
    runs = [made([0.1, 0.2], {"mode": mode}) for mode in ("all_clients", "selected")]
    colours = {
        line.get_label(): line.get_color()
        for line in drawn(plots.curves(Results(tuple(runs)), "test_accuracy"))
    }
    assert colours == {mode: line_styles.MODE_STYLES[mode]["color"] for mode in colours}
    assert set(colours) == {"all_clients", "selected"}


def test_a_response_has_a_point_a_configuration_and_marks_what_diverged():
    rates = [0.001, 0.01, 0.1, 1.0]
    runs = [made([0.0, rate], {"lr": rate}, seed) for rate in rates[:3] for seed in range(2)]
    runs += [made([0.0, math.nan], {"lr": 1.0}, seed) for seed in range(2)]
    figure = plots.response(Results(tuple(runs)), "test_accuracy")
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"  # 0.001 to 1 spans more than 20
    line = drawn(figure)[0]
    np.testing.assert_allclose(line.get_xdata(), rates)
    np.testing.assert_allclose(line.get_ydata()[:3], rates[:3])
    crosses = [line for line in drawn(figure) if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[1.0]]
    assert "diverged" in said(figure)


def test_a_response_has_a_line_for_each_combination_of_the_others():
    runs = [
        made([lr + mu], {"lr": lr, "mu": mu}) for mu in (0.0, 1.0) for lr in (1.0, 1.5, 2.0, 3.0)
    ]
    figure = plots.response(Results(tuple(runs)), "test_accuracy")
    assert figure.axes[0].get_xscale() == "linear"
    assert said(figure)[1:] == ["mu=0", "mu=1"]
    heights = [x.get_ydata() for x in drawn(figure) if x.get_label().startswith("mu")]
    np.testing.assert_allclose(heights, [[1, 1.5, 2, 3], [2, 2.5, 3, 4]])


def test_two_numeric_axes_are_a_heat_map():
    runs = [
        made([lr + mu], {"lr": lr, "mu": mu}) for mu in (0.0, 1.0, 2.0) for lr in (1.0, 2.0, 3.0)
    ]
    figure = plots.response(Results(tuple(runs[:-1])), "test_accuracy")
    cells = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(np.ravel(cells)[:8], [1, 2, 3, 2, 3, 4, 3, 4])
    assert np.ma.getmaskarray(np.ravel(cells)).tolist() == [False] * 8 + [True]
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {"1", "2", "3", "4"}


def test_two_axes_of_words_are_a_heat_map_in_the_order_of_the_grid():
    attacks, rules = ("none", "ipm"), ("selected", "median", "krum")
    runs = [
        made([i + 10 * j], {"attack": attack, "mode": rule})
        for j, attack in enumerate(attacks)
        for i, rule in enumerate(rules)
    ]
    ax = plots.response(Results(tuple(runs)), "test_accuracy").axes[0]
    np.testing.assert_allclose(
        np.reshape(ax.collections[0].get_array(), (2, 3)), [[0, 1, 2], [10, 11, 12]]
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == [*rules]
    assert [text.get_text() for text in ax.get_yticklabels()] == [*attacks]
    assert ax.yaxis_inverted()
    # A grid with a hole is none.
    assert not plots.response(Results(tuple(runs[:-1])), "test_accuracy").axes[0].texts


def test_random_draws_are_points_and_no_line():
    rng = np.random.default_rng(0)
    draws = [{"lr": x, "mu": y} for x, y in rng.uniform(size=(12, 2)).tolist()]
    figure = plots.response(Results(tuple(made([x["lr"]], x) for x in draws)), "test_accuracy")
    assert {line.get_linestyle() for line in drawn(figure)} == {"None"}


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_writes_the_format_of_the_suffix(tmp_path, suffix):
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    path = plots.plot(Results((made([0.1, 0.2]),)), tmp_path / f"a.{suffix}", "test_accuracy")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]


def test_everything_diverged_is_said_and_no_warning_given(recwarn, tmp_path):
    runs = [
        made([math.inf, math.nan], {"lr": lr}, s) for lr in (1.0, 2.0, 3.0, 4.0) for s in (0, 1)
    ]
    results = Results(tuple(runs))
    plots.plot(results, tmp_path / "a.png", "test_accuracy")
    figure = plots.curves(results, "test_accuracy")
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].texts] == ["no finite value"]
    assert [str(w.message) for w in recwarn] == []


def test_names_are_no_formulas(recwarn):
    runs = [made([0.1, 0.2], {"how": how}) for how in ("_$x_{$", "$$\\frac$", "a & <b>")]
    figure = plots.curves(Results(tuple(runs)), "test_accuracy")
    figure.canvas.draw()
    assert len(figure.legends[0].get_texts()) == 3
    assert list(recwarn) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: plots.curves(r, "nothing"), "test_accuracy; got 'nothing'"),
        (lambda r: plots.curves(r, "test_accuracy", against="hours"), "against must be one of"),
        (lambda r: plots.curves(r, "test_accuracy", band="wide"), "band must be one of"),
        (
            lambda r: plots.curves(r, "test_accuracy", most=9),
            r"most must be finite and in \[1, 8\]",
        ),
        (lambda r: plots.response(r, "nothing"), "metric must be one of"),
        (lambda r: plots.plot(r, "a.gif", "test_accuracy"), "suffix must be one of"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(Results((made([0.1, 0.2]),)))


def grid(rates=(0.01, 0.1, 1.0), momenta=(0.9, 0.0), last=lambda lr, m: lr + m):
    return Results(
        tuple(
            made(np.linspace(0, last(lr, m), 9), {"lr": lr, "m": m})
            for lr in rates
            for m in momenta
        )
    )


def test_two_hyper_parameters_are_told_by_colours_and_dashes():
    lines = {x.get_label(): x for x in drawn(plots.curves(grid(), "test_accuracy"))}
    assert len(lines) == 6
    for name, line in lines.items():
        lr, m = name.split(", ")
        assert line.get_color() == lines[f"{lr}, m=0"].get_color()
        assert line.get_marker() == lines[f"{lr}, m=0"].get_marker()
        assert line._unscaled_dash_pattern == lines[f"lr=0.01, {m}"]._unscaled_dash_pattern
    assert len({x.get_color() for x in lines.values()}) == 3
    assert lines["lr=0.1, m=0"].get_linestyle() == "-"  # the least value
    assert len({(x.get_color(), str(x._unscaled_dash_pattern)) for x in lines.values()}) == 6


@pytest.mark.parametrize("many", [5, 6])
def test_more_than_five_lines_have_no_bands(many):
    runs = [made([0.1, i / 9 + s / 50], {"lr": i}, s) for i in range(many) for s in range(2)]
    figure = plots.curves(Results(tuple(runs)), "test_accuracy")
    assert len(figure.axes[0].collections) == (many if many <= 5 else 0)
    assert ("band" in said(figure)[0]) == (many <= 5)


def test_a_figure_alone_is_wider_than_a_card_and_its_legend_fits():
    figure = plots.curves(grid(), "test_accuracy")
    card = plots.curves(grid(), "test_accuracy", width=canvas.WIDTH)
    assert figure.get_figwidth() * 100 > 750 > 530 > card.get_figwidth() * 100
    for drawn_figure in (figure, card):
        drawn_figure.canvas.draw()
        box = drawn_figure.legends[0].get_window_extent()
        assert box.width <= drawn_figure.bbox.width


def test_an_interval_that_leaves_the_axes_has_an_arrow():
    runs = [
        made([x], {"lr": lr}, s)
        for lr in (1.0, 2.0, 3.0, 4.0)
        for s, x in enumerate((0.5, 0.5 + 0.1 * lr) if lr > 1 else (0.0, 1.0))
    ]
    figure = plots.response(Results(tuple(runs)), "test_accuracy")
    low, high = figure.axes[0].get_ylim()
    arrows = {x.get_marker(): x for x in drawn(figure) if x.get_marker() in "^v"}
    assert set(arrows) == {"^", "v"}
    # t_{0.975, 1} = 12.7: of lr = 1 it is 0.5 +- 6.35, of lr = 4 0.7 +- 2.54.
    assert 1.0 in arrows["v"].get_xdata()
    assert set(arrows["^"].get_ydata()) == {high}
    assert set(arrows["v"].get_ydata()) == {low}
    assert "arrows: an interval goes on" in figure.axes[0].get_xlabel()


def test_intervals_at_one_value_stand_side_by_side():
    runs = [
        made([lr + m + s / 9], {"lr": lr, "m": m}, s)
        for lr in (1.0, 2.0, 3.0, 4.0)
        for m in (0.0, 0.1)
        for s in range(3)
    ]
    figure = plots.response(Results(tuple(runs)), "test_accuracy")
    figure.canvas.draw()
    first, second = [x for x in drawn(figure) if x.get_label().startswith("m=")]
    at = [x.get_transform().transform((1.0, 0.0))[0] for x in (first, second)]
    assert at[1] - at[0] == pytest.approx(3 * figure.dpi / 72)


@pytest.mark.parametrize("last", [3, 5, 10, 20, 200])
def test_rounds_have_whole_ticks(last):
    figure = plots.curves(Results((made(np.linspace(0, 1, last)),)), "test_accuracy")
    ticks = figure.axes[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_a_class_that_a_client_has_not_is_white_and_all_of_it_dark():
    split = plots.split(describe(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])))
    mesh = split.axes[0].collections[0]
    split.canvas.draw()
    np.testing.assert_allclose(np.ravel(mesh.get_array()), [1.0, 0.5, 0.0, 0.5])
    brightness = mesh.get_facecolors()[:, :3].mean(axis=1)
    np.testing.assert_allclose(brightness[2], 1.0)
    assert brightness[0] < 0.3 < brightness[1] < 0.7  # neither like none nor like all


def test_a_comparisons_picture_starts_where_its_curves_do_and_has_the_tables_order():
    setting = Comparison(Setting(rounds=40), seeds=1, fractions=(0.1,)).resolved()
    score = 1 - np.exp(-np.arange(1, 41) / 8)
    runs = [
        Run(
            {"fraction": 0.1, "mode": mode},
            0,
            {
                "test_accuracy": score,
                "train_loss": 1 - score,
                "reporting_share": np.full(40, 0.1),
                "nonfinite": np.zeros(40, int),
                "evaluated": np.ones(40, bool),
                "bytes_down": 10**6 * np.arange(1, 41),
                "bytes_up": 10**6 * np.arange(1, 41),
            },
            {},
            40,
        )
        for mode in setting.modes
    ]
    found = measured.curves(setting, Results(tuple(runs)))
    lowest = 0.5  # of 1 - exp(-t / 8), first in round 6: 12 MB, after 10 MB
    low, high = report._shown_from(found, report._megabytes, lowest)
    assert (low, high) == (pytest.approx(np.sqrt(10.0 * 12.0)), 80.0)
    figure = report.figure(setting, found)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["selected", "all_clients", "uniform", "unbiased", "target 0.9"]
    for ax in figure.axes:  # in both columns
        assert any(line.get_label() == "target 0.9" for line in ax.get_lines())


@pytest.mark.parametrize("band", ["interval", "std", None])
def test_a_band_of_a_share_stays_within_it_and_sets_no_limits(band):
    runs = [made([0.3 + s, 0.6 + 0.3 * s], {"lr": lr}, s) for lr in (0.1, 0.2) for s in (0, 0.4)]
    results = Results(tuple(runs))
    figure = plots.curves(results, "test_accuracy", band=band)
    for filled in figure.axes[0].collections:
        heights = filled.get_paths()[0].vertices[:, 1]
        assert 0 <= heights.min() < heights.max() <= 1
    alone = plots.curves(results, "test_accuracy", band="none")
    assert figure.axes[0].get_ylim() == alone.axes[0].get_ylim()
    # The table's interval is Student's, whatever is drawn.
    assert results.mean("test_accuracy")[0].high > 1
    words = figure.axes[0].get_xlabel() + " ".join(said(figure))
    assert ("95% interval" in words) == (band == "interval")
    drawn_intervals = plots.response(results, "test_accuracy").axes[0].containers
    for container in drawn_intervals:
        for segment in container[2][0].get_segments():
            assert 0 <= segment[:, 1].min() < segment[:, 1].max() <= 1


def test_a_constant_line_has_limits_about_it_whatever_its_band():
    runs = [made([x] * 3, {"lr": 0.1}, s) for s, x in enumerate((0.0, 0.5, 1.0))]
    low, high = plots.curves(Results(tuple(runs)), "test_accuracy").axes[0].get_ylim()
    assert (low, high) == (pytest.approx(0.47), pytest.approx(0.53))


def test_what_has_not_the_axis_of_others_has_a_name():
    """A sum of results with different hyper-parameters: each line can be told."""
    plain, tuned = made([0.1, 0.2], {"rule": "selected"}), made([0.2, 0.3], {"rule": "selected"})
    tuned = tuned._replace(configuration={"rule": "selected", "mu": 0.1})
    both = Results((plain,)) + Results((tuned,))
    assert said(plots.curves(both, "test_accuracy"))[1:] == ["without mu", "mu=0.1"]
    labels = [x.get_text() for x in plots.response(both, "test_accuracy").axes[0].get_xticklabels()]
    assert labels == ["without mu", "mu=0.1"]
    # Values that read alike are written out.
    runs = [made([x, x], {"lr": x}) for x in (0.10001, 0.10002)]
    other = made([0.4, 0.4], {"mu": 0.10001})
    words = said(plots.curves(Results((*runs, other)), "test_accuracy"))
    assert words[1:] == ["lr=0.10001", "lr=0.10002", "mu=0.1"]


def comparison(rounds, reached=1.0, seeds=2, more_modes=()):
    setting = Comparison(Setting(rounds=rounds), seeds=seeds, fractions=(0.1,)).resolved()
    setting = replace(setting, modes=(*setting.modes, *more_modes))
    at = np.arange(1, rounds + 1)
    runs = [
        made(
            reached * (1 - np.exp(-at / 8 - place / 50)) + 0.01 * seed,
            {"fraction": 0.1, "mode": mode},
            seed,
            train_loss=1 / at,
            reporting_share=np.full(rounds, 0.1),
            bytes_down=10**6 * at,
            bytes_up=10**6 * at,
        )
        for place, mode in enumerate(setting.modes)
        for seed in range(seeds)
    ]
    return report.figure(setting, measured.curves(setting, Results(tuple(runs))))


def test_a_mode_without_a_style_of_its_own_is_drawn_too():
    figure = comparison(20, more_modes=("mine", "yours"))
    for ax in figure.axes:
        lines = [line for line in ax.get_lines() if not line.get_label().startswith("target")]
        assert [x.get_label() for x in lines] == [*line_styles.MODE_STYLES, "mine", "yours"]
        assert len({x.get_color() for x in lines}) == 6
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"mine", "yours"} < {*words}


@pytest.mark.parametrize("rounds", [1, 2, 3, 20])
def test_a_comparison_of_few_rounds_shows_all_of_them(rounds):
    figure = comparison(rounds)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    for ax in figure.axes:
        left, right = ax.get_xlim()
        low, high = ax.get_ylim()
        lines = {x.get_label(): x for x in ax.get_lines()}
        assert list(lines) == [x for x in (*line_styles.MODE_STYLES, "target 0.9") if x in words]
        for line in lines.values():
            y = np.asarray(line.get_ydata())
            assert ((low < y) & (y < high)).all()
            x = np.asarray(line.get_xdata())
            assert line.get_label() == "target 0.9" or ((left < x) & (x < right)).all()
            assert len(x) > 1 or line.get_marker() in tuple("osD^")
    assert ("target 0.9" in words) == (rounds == 20)


def test_clients_are_counted_over_the_same_bins():
    values = {"global": [0.0, 0.5, 0.5], "personal": [0.5, 1.0, float("nan")]}
    figure = plots.clients(values, "accuracy")
    (ax,) = figure.axes
    outlines = {patch.get_label(): patch for patch in ax.patches if patch.get_label() in values}
    edges = [patch.get_data().edges for patch in outlines.values()]
    np.testing.assert_array_equal(*edges)
    for name, expected in (("global", {0.0: 1, 0.5: 2}), ("personal", {0.5: 1, 0.95: 1})):
        counts = outlines[name].get_data().values
        at = {round(float(x), 6): int(n) for x, n in zip(edges[0][:-1], counts, strict=True) if n}
        assert at == expected
    medians = sorted(float(line.get_xdata()[0]) for line in ax.get_lines())
    assert medians == [0.5, 0.75]
    with pytest.raises(ValueError, match="values must be of one to 4 models; got 0"):
        plots.clients({}, "accuracy")
