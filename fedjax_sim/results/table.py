"""Results of runs, labelled by configuration, seed and round, as tables and files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy.special import stdtrit

from fedjax_sim.core import notebook
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.files import SaveError, reason, replace_file, to_json
from fedjax_sim.core.versions import versions
from fedjax_sim.results.columns import LABELS, is_measured, lowest_is_best, score_of
from fedjax_sim.results.folder import ROUNDS, SUMMARY, TABLE
from fedjax_sim.results.runs import Mean as Mean
from fedjax_sim.results.runs import Run as Run
from fedjax_sim.results.runs import Scalar as Scalar
from fedjax_sim.results.runs import ranked as ranked

FORMAT = 1  # of these files; read by `report`


@dataclass(frozen=True)
class Results:
    """A table of runs: what `fs.sweep` returns.

    Attributes:
      runs: by configuration, then by seed.
    """

    runs: tuple[Run, ...]

    def __repr__(self) -> str:
        return f"Results({self._title()}: {', '.join(self.metrics) or 'nothing measured'})"

    def _repr_html_(self) -> str:
        return notebook.table(self._title(), self.table())

    def _title(self) -> str:
        configurations = len({repr(run.configuration) for run in self.runs})
        return f"{len(self.runs):,} runs of {configurations:,} configurations"

    def table(self) -> list[dict[str, Scalar]]:
        """One row a run."""
        return [run.row() for run in self.runs]

    def long(self) -> list[dict[str, Scalar]]:
        """One row a run and round, numbered from 1; what was not measured there is None."""
        rows: list[dict[str, Scalar]] = []
        for run in self.runs:
            columns = {k: x for k, x in run.rounds.items() if x.ndim == 1 and k != "evaluated"}
            has = {name: run.has(name) for name in columns}
            for t in range(run.done if columns else 0):
                row: dict[str, Scalar] = {**run.configuration, "seed": run.seed, "round": t + 1}
                row |= {k: x[t].item() if has[k][t] else None for k, x in columns.items()}
                rows.append(row)
        return rows

    def __add__(self, other: "Results") -> "Results":
        """The runs of both, those of one configuration together.

        Raises:
          ValueError: for a run that both have, the same configuration and seed, or one without
            hyper-parameters beside others that have some: `labelled` tells them apart.

        >>> a, b = (Results((Run({"lr": 0.1}, seed, {}, {"error": seed}, 1),)) for seed in (3, 5))
        >>> (a + b).mean("error")[0].mean
        4.0
        """
        if not isinstance(other, Results):
            return NotImplemented
        _check_labelled(self.runs, other.runs)
        own_runs = {(repr(run.configuration), run.seed) for run in self.runs}
        for run in other.runs:
            if (repr(run.configuration), run.seed) in own_runs:
                raise ValueError(
                    f"results to add must not share a run; both have {run.configuration} with seed "
                    f'{run.seed} (tell them apart first: results.labelled(attempt="second"))'
                )
        order = {repr(run.configuration): i for i, run in reversed([*enumerate(self.runs)])}
        for run in other.runs:
            order.setdefault(repr(run.configuration), len(order) + len(self.runs))
        runs = (*self.runs, *other.runs)
        return Results(tuple(sorted(runs, key=lambda run: order[repr(run.configuration)])))

    def __radd__(self, other: Any) -> "Results":
        """Lets `sum` add results, which begins with 0."""
        return self if type(other) is int and other == 0 else NotImplemented

    def labelled(self, **labels: Scalar) -> "Results":
        """The same runs with more hyper-parameters to tell them by, before their own.

        Raises:
          ValueError: for a name that runs have already, or that every table has a column of.

        >>> results = Results((Run({"lr": 0.1}, 0, {}, {}, 1),)).labelled(rule="selected")
        >>> results.runs[0].configuration
        {'rule': 'selected', 'lr': 0.1}
        """
        for name in labels:
            if name in LABELS or any(
                name in (*run.configuration, *run.rounds, *run.values) for run in self.runs
            ):
                raise ValueError(f"labels must be new names; the runs have {name!r} already")
        return Results(
            tuple(run._replace(configuration={**labels, **run.configuration}) for run in self.runs)
        )

    @property
    def score(self) -> str:
        """The metric that `best` compares by default.

        It is the validation set's accuracy, else the test set's; where there is no accuracy, R^2,
        the loss, or any other metric.

        Raises:
          ValueError: if nothing was measured.
        """
        metric = score_of(self.metrics)
        if metric is None:
            raise ValueError("there is nothing to compare the runs by: no metric was measured")
        return metric

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics: measured columns, and values of a whole run."""
        names: dict[str, None] = {}
        for run in self.runs:
            names |= {k: None for k, x in run.rounds.items() if is_measured(k) and x.ndim == 1}
            names |= {k: None for k, x in run.values.items() if not isinstance(x, str)}
        return list(names)

    def mean(self, metric: str, confidence: float = 0.95) -> list[Mean]:
        """The last value of `metric` by configuration, over the seeds.

        `mean +- t_{(1 + confidence) / 2, n - 1} s / sqrt(n)` with the sample's standard deviation
        s of n seeds.

        Raises:
          ValueError: for an unknown metric, or a confidence not in (0, 1).
        """
        self._check_metric(metric)
        check_number("confidence", confidence, lambda x: 0 < x < 1, "in (0, 1)")
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(repr(run.configuration), []).append(run)
        means = []
        for runs in groups.values():
            last = np.array([_number(run.row().get(metric)) for run in runs])
            n, half = len(last), math.nan
            if n > 1:
                with np.errstate(invalid="ignore"):  # an infinite value has no deviation
                    deviation = float(last.std(ddof=1))
                half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
            mean = float(last.mean())
            diverged = sum(run.diverged for run in runs)
            means.append(Mean(runs[0].configuration, mean, mean - half, mean + half, n, diverged))
        return means

    def best(self, metric: str | None = None, *, lowest: bool | None = None) -> Mean:
        """The configuration with the best mean; those that diverged lose.

        Args:
          metric: None for `score`: that of a validation set, where there is one.
          lowest: whether the lowest is the best; None for yes if the metric is a loss, an error or
            rounds to a target.

        Raises:
          ValueError: for an unknown metric, or if no configuration has a finite mean.
        """
        metric = self.score if metric is None else metric
        means = self.mean(metric)
        first = means[ranked(means, lowest_is_best(metric) if lowest is None else lowest)[0]]
        if not math.isfinite(first.mean):
            raise ValueError(
                f"no configuration has a finite {metric}"
                + (": all diverged" if all(mean.diverged for mean in means) else "")
            )
        return first

    def to_csv(self, path: str | Path, *, long: bool = False) -> None:
        """Writes the table, or with `long` a line a round, whole or not at all."""
        rows = self.long() if long else self.table()
        replace_file(Path(path), lambda file: _write_csv(file, rows))

    def to_parquet(self, path: str | Path, *, long: bool = False) -> None:
        """As `to_csv`, in Parquet; needs pyarrow (the `tables` extra)."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("to_parquet needs pyarrow: pip install fedjax-sim[tables]") from error
        rows = self.long() if long else self.table()
        names = _names(rows)
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        replace_file(Path(path), lambda file: pyarrow.parquet.write_table(table, file))

    def to_pandas(self, *, long: bool = False) -> Any:
        """The table as a pandas DataFrame; needs pandas (the `tables` extra)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install fedjax-sim[tables]") from error
        return pandas.DataFrame(self.long() if long else self.table())

    def save(self, folder: str | Path, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """Writes summary.json, table.csv and rounds.csv, each whole or not at all.

        Args:
          summary: further entries of summary.json; `fedjax-sim report` reads `kind`,
            `configuration` and `score`.

        Raises:
          SaveError: saying which of them were not written, and why.
        """
        folder = Path(folder)
        labels = [{**run.configuration, **run.values} for run in self.runs]
        contents = {
            "format": FORMAT,
            "complete": all(run.done == run.num_rounds for run in self.runs),
            "axes": sorted({name for run in self.runs for name in run.configuration}),
            # Columns of text alone, which a CSV cannot mark: there "1e-3" is no number.
            "text": sorted(name for name in _names(labels) if _is_text(labels, name)),
            "versions": versions(),
            **summary,
        }
        lost = [TABLE, ROUNDS, SUMMARY]
        try:
            self.to_csv(folder / TABLE)
            lost.remove(TABLE)
            self.to_csv(folder / ROUNDS, long=True)
            lost.remove(ROUNDS)
            replace_file(folder / SUMMARY, lambda file: file.write(to_json(contents)))
        except SaveError as error:
            raise SaveError(
                f"not written in {folder}: {', '.join(lost)} ({reason(error)})"
            ) from error
        return SUMMARY, TABLE, ROUNDS

    def _check_metric(self, metric: str) -> None:
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}; got {metric!r}")


def joined(
    several: Results | Sequence[Results] | Mapping[str, Results], axis: str = "results"
) -> Results:
    """Joins several results in one table.

    Args:
      several: of a dict, each run is labelled with its results' name; others add up, or, if two
        of them share a run or some have no hyper-parameters, are numbered from 1 in order.
      axis: what the label is called; "results" and that again, where runs have such a name.

    Raises:
      ValueError: for what is no results, or none.

    >>> a = Results((Run({"lr": 0.1}, 0, {}, {"error": 3.0}, 1),))
    >>> [run.configuration for run in joined([a, a]).runs]
    [{'results': 1, 'lr': 0.1}, {'results': 2, 'lr': 0.1}]
    >>> [run.configuration for run in joined({"mine": a}).runs]
    [{'results': 'mine', 'lr': 0.1}]
    """
    if isinstance(several, Results):
        return several
    named = isinstance(several, Mapping)
    tables = list(several.values()) if isinstance(several, Mapping) else list(several)
    labels = list(several) if isinstance(several, Mapping) else [*range(1, len(tables) + 1)]
    if not tables or not all(isinstance(table, Results) for table in tables):
        types = ", ".join(type(table).__name__ for table in tables) or "none"
        raise ValueError(f"results must be fs.Results, several of them or a dict; got {types}")
    runs = [run for table in tables for run in table.runs]
    places = {(repr(run.configuration), run.seed) for run in runs}
    if named or len(places) < len(runs) or _are_part_labelled(runs):
        names = {x for run in runs for x in (*run.configuration, *run.rounds, *run.values)}
        while axis in names:
            axis = f"results {axis}"
        tables = [
            table.labelled(**{axis: label}) for label, table in zip(labels, tables, strict=True)
        ]
    return sum(tables[1:], tables[0])


def _are_part_labelled(runs: Sequence[Run]) -> bool:
    """Whether some runs have hyper-parameters and others have none."""
    return len({bool(run.configuration) for run in runs}) > 1


def _check_labelled(runs: Sequence[Run], others: Sequence[Run]) -> None:
    """Refuses runs without a name beside those that have one.

    Raises:
      ValueError: saying how to give it.
    """
    if _are_part_labelled([*runs, *others]):
        labels = next(run.configuration for run in (*runs, *others) if run.configuration)
        raise ValueError(
            "results to add must all have hyper-parameters to be told by, or none; got runs "
            f"without any beside {labels} (name them first, by simulation.results(configuration) "
            f'or results.labelled({next(iter(labels))}="..."))'
        )


def _number(value: Scalar) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _is_text(rows: Sequence[Mapping[str, Scalar]], name: str) -> bool:
    """Whether the column has values and all are text."""
    cells = [row.get(name) for row in rows]
    texts = [cell for cell in cells if cell is not None]
    return bool(texts) and all(isinstance(cell, str) for cell in texts)


def _names(rows: Sequence[Mapping[str, Scalar]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_csv(file: IO[bytes], rows: Sequence[Mapping[str, Scalar]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, _names(rows), restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if x is None else x for k, x in row.items()})
    text.detach()
