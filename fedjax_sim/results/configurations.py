"""Runs by configuration, and the hyper-parameters in which these differ."""

from fedjax_sim.results import Results, Run


def groups(results: Results) -> list[list[Run]]:
    """The runs by configuration, in order, as `Results.mean` takes them together."""
    found: dict[str, list[Run]] = {}
    for run in results.runs:
        found.setdefault(repr(run.configuration), []).append(run)
    return list(found.values())


def varying(results: Results) -> list[str]:
    """The hyper-parameters that differ between configurations, in order."""
    names = dict.fromkeys(name for run in results.runs for name in run.configuration)
    return [n for n in names if len({repr(r.configuration.get(n)) for r in results.runs}) > 1]


def numeric_axes(results: Results) -> dict[str, list[float]]:
    """The numeric hyper-parameters that vary -> their values, ascending; the longest first."""
    found = {}
    for name in varying(results):
        values = [run.configuration.get(name) for run in results.runs]
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values):
            # All are numbers, which mypy does not take from `all`.
            found[name] = sorted({float(x) for x in values})  # type: ignore[arg-type]
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
