"""Runs by configuration, and the hyper-parameters in which these differ."""

from fedjax_sim.results import Results, Run


def groups(results: Results) -> list[list[Run]]:
    """The runs by configuration, in order, as `Results.mean` takes them together."""
    runs_of: dict[str, list[Run]] = {}
    for run in results.runs:
        runs_of.setdefault(repr(run.configuration), []).append(run)
    return list(runs_of.values())


def varying(results: Results) -> list[str]:
    """The hyper-parameters that differ between configurations, in order."""
    names = dict.fromkeys(name for run in results.runs for name in run.configuration)
    return [n for n in names if len({repr(r.configuration.get(n)) for r in results.runs}) > 1]


def numeric_axes(results: Results) -> dict[str, list[float]]:
    """The numeric hyper-parameters that vary -> their values, ascending; the longest first."""
    axes = {}
    for name in varying(results):
        values = [run.configuration.get(name) for run in results.runs]
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values):
            # mypy does not infer from `all(...)` that these are numbers.
            axes[name] = sorted({float(x) for x in values})  # type: ignore[arg-type]
    return dict(sorted(axes.items(), key=lambda item: -len(item[1])))


def crossed(results: Results) -> tuple[str, str] | None:
    """The two axes of a whole grid of words, as an attack and a rule; None for all else."""
    names = varying(results)
    if len(names) != 2 or numeric_axes(results):
        return None
    pairs = [tuple(run.configuration.get(name) for name in names) for run in results.runs]
    if not all(isinstance(value, str) for pair in pairs for value in pair):
        return None
    num_first, num_second = (len({pair[place] for pair in pairs}) for place in (0, 1))
    return (names[0], names[1]) if len({*pairs}) == num_first * num_second else None
