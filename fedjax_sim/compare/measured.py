"""The measurements of a comparison, side by side: curves by round, and rows of the table."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax_sim.compare.comparison import ResolvedComparison
from fedjax_sim.core.history import Communication
from fedjax_sim.results import Results, Run
from fedjax_sim.results.columns import SECONDS
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.settings.resolved import cohort_size
from fedjax_sim.settings.rooms import NONE

CLIENT_METRICS = ("accuracy", "loss")  # by which clients are spread, the first that there is
SPREAD_NAMES = tuple(
    f"{model}_{metric}_{statistic}"
    for model in ("personal", "global")
    for metric in CLIENT_METRICS
    for statistic in ("mean", "worst_tenth")
)


class Curve(NamedTuple):
    """The measurements of one mode, codec and fraction; arrays are [seeds, rounds]."""

    mode: str
    fraction: float
    score: np.ndarray
    train_loss: np.ndarray
    bytes_down: np.ndarray  # Int64, cumulative
    bytes_up: np.ndarray  # Int64, cumulative
    share: np.ndarray  # n_V / n
    diverged: int  # seeds
    test: np.ndarray | None = None  # of the same metric, where `score` is of a validation set
    # By column of the clients' spread, "personal_accuracy_mean": empty without models of their own.
    of_clients: Mapping[str, np.ndarray] = {}
    compress: str = NONE
    seconds: np.ndarray | None = None  # simulated, cumulative, where the clients have a clock

    def spread(self, model: str, statistic: str) -> np.ndarray | None:
        """The clients' "mean" or "worst_tenth" by their "personal" or the "global" model.

        Of the accuracy, in a regression of the loss; None where it was not measured.
        """
        names = (f"{model}_{metric}_{statistic}" for metric in CLIENT_METRICS)
        return next((self.of_clients[name] for name in names if name in self.of_clients), None)


class Row(NamedTuple):
    """One line of the table: a mode, a codec and a fraction, over the seeds."""

    mode: str
    fraction: float
    cohort: int  # m
    seeds: int
    rounds: int
    score_mean: float  # after the last round
    score_std: float | None  # sample standard deviation over seeds; None for one seed
    diverged: int  # seeds with an update or a measure that held a NaN or an infinity
    target_reached: int  # seeds that reached the target
    rounds_to_target: float | None  # mean over the seeds that did
    megabytes_down: float  # 10^6 bytes, the whole run, mean over seeds
    megabytes_up: float
    megabytes_up_all_send: float  # the reading in which every client sends in every round
    mean_share: float  # n_V / n
    min_share: float
    max_share: float
    test_mean: float | None = None  # after the last round, where the score is of a validation set
    test_std: float | None = None
    # Of clients on their own test examples, where they have models of their own; mean over seeds.
    personal_mean: float | None = None
    personal_worst_tenth: float | None = None
    global_mean: float | None = None
    global_worst_tenth: float | None = None
    compress: str = NONE
    seconds: float | None = None  # simulated, the whole run, mean over seeds


def curves(setting: ResolvedComparison, results: Results) -> list[Curve]:
    """The runs of each mode, codec and fraction side by side, cut to one length.

    After an interrupt these are the seeds that are complete or, if none is, all seeds with a
    round, up to the last round that all of them have.
    """
    cells: dict[tuple[float, str, str], list[Run]] = {}
    for run in results.runs:
        if run.done:
            chosen = run.configuration
            place = chosen["fraction"], chosen["mode"], chosen.get("compress", NONE)
            cells.setdefault(place, []).append(run)
    all_curves = []
    for (fraction, mode, codec), runs in cells.items():
        runs = [run for run in runs if run.done == run.num_rounds] or runs
        num_rounds = min(run.done for run in runs)

        def side_by_side(
            name: str, runs: list[Run] = runs, num_rounds: int = num_rounds
        ) -> np.ndarray:
            return np.stack([run.rounds[name][:num_rounds] for run in runs])

        all_curves.append(
            Curve(
                mode=mode,
                fraction=fraction,
                score=side_by_side(setting.base.score).astype(np.float64),
                train_loss=side_by_side("train_loss").astype(np.float64),
                bytes_down=side_by_side("bytes_down"),
                bytes_up=side_by_side("bytes_up"),
                share=side_by_side("reporting_share").astype(np.float64),
                diverged=sum(run.diverged for run in runs),
                test=None
                if setting.base.validation is None
                else side_by_side(setting.base.test_score).astype(np.float64),
                of_clients={
                    name: side_by_side(name).astype(np.float64)
                    for name in SPREAD_NAMES
                    if name in runs[0].rounds
                },
                compress=codec,
                seconds=side_by_side(SECONDS) if SECONDS in runs[0].rounds else None,
            )
        )
    return all_curves


def rows(
    setting: ResolvedComparison,
    all_curves: list[Curve],
    exchange: Communication,
    of_codecs: Mapping[str, Communication] | None = None,
) -> list[Row]:
    """The table of a resolved setting.

    Args:
      exchange: the bytes of one exchange without a codec.
      of_codecs: codec -> those with it.
    """
    clients = setting.base.clients
    table = []
    for curve in all_curves:
        seeds, rounds = curve.score.shape
        last = curve.score[:, -1]
        test = None if curve.test is None else curve.test[:, -1]
        reached = [rounds_to_target(score, setting.target) for score in curve.score]
        times = [time for time in reached if time is not None]
        everyone_up = rounds * clients * (of_codecs or {}).get(curve.compress, exchange).up
        table.append(
            Row(
                mode=curve.mode,
                fraction=curve.fraction,
                cohort=cohort_size(curve.fraction, clients),
                seeds=seeds,
                rounds=rounds,
                score_mean=float(last.mean()),
                score_std=float(last.std(ddof=1)) if seeds > 1 else None,
                diverged=curve.diverged,
                target_reached=len(times),
                rounds_to_target=float(np.mean(times)) if times else None,
                megabytes_down=float(curve.bytes_down[:, -1].mean()) / 1e6,
                megabytes_up=float(curve.bytes_up[:, -1].mean()) / 1e6,
                megabytes_up_all_send=everyone_up / 1e6,
                mean_share=float(curve.share.mean()),
                min_share=float(curve.share.min()),
                max_share=float(curve.share.max()),
                test_mean=None if test is None else float(test.mean()),
                test_std=float(test.std(ddof=1)) if test is not None and seeds > 1 else None,
                compress=curve.compress,
                seconds=None if curve.seconds is None else float(curve.seconds[:, -1].mean()),
                **{
                    f"{model}_{statistic}": None if values is None else float(values[:, -1].mean())
                    for model in ("personal", "global")
                    for statistic in ("mean", "worst_tenth")
                    for values in (curve.spread(model, statistic),)
                },
            )
        )
    return table
