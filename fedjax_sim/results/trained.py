"""The models that runs and sweeps keep in their folders, and the facts that are saved with them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_sim.core.checks import check_known
from fedjax_sim.core.files import to_json
from fedjax_sim.core.types import FederatedState, Params, PyTree
from fedjax_sim.core.versions import versions
from fedjax_sim.results import model_file
from fedjax_sim.results.folder import MODEL, MODELS, RUN, SWEEP, RunFolder

KEPT = ("final", "best")  # which of its models a run or a sweep can keep

_SHOWN = 8  # models, or values of a label, that an error lists at most


class Trained(NamedTuple):
    """What `fs.load` returns.

    Attributes:
      params: the model, NumPy leaves; of `fs.baselines.local_only` each client's, `[K, ...]`,
        as the personal parameters of `fs.partial` are.
      configuration: the run's labels: the settings of the command line, as configuration.toml has
        them; a sweep's hyper-parameters; or the `configuration` that `fs.simulate` was given.
      seed: the seed that was given in place of a key; None if a key was given.
      round: rounds that the model was trained for; a best model is that of the end of this round.
      num_rounds: R, the rounds that were asked for.
      status: of the run: "finished", "stopped" or "interrupted".
      kept: "final", or "best" by `metric`.
      metric: the column by which the best model was chosen; None for a final model.
      value: of the metric, for this model; None for a final model, or if it was never measured.
      versions: packages, Python and machine that made it.
      path: the file.
    """

    params: Params
    configuration: dict[str, Any]
    seed: int | None
    round: int
    num_rounds: int
    status: str
    kept: str
    metric: str | None
    value: float | None
    versions: dict[str, str]
    path: Path

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        best = "" if self.metric is None else f", best {self.metric}={self.value}"
        return (
            f"Trained({sum(x.size for x in leaves):,} parameters in {len(leaves)} arrays, "
            f"round {self.round} of {self.num_rounds}{best}, seed {self.seed}, {self.path})"
        )


def trained_params(state: FederatedState) -> Params:
    """The trained params: the global model, or the clients' own where nothing is averaged.

    Parameters that stay with the clients are each client's, `[K, ...]`.
    """
    models = getattr(state.clients, "local_models", None)
    if models is not None:
        return models()
    put_own = getattr(state.clients, "put_own", None)
    return state.params if put_own is None else put_own(state.params)


def save_trained(
    path: Path,
    params: Params,
    *,
    configuration: Mapping[str, Any],
    seed: int | None,
    round: int,
    num_rounds: int,
    status: str,
    kept: str = "final",
    metric: str | None = None,
    value: float | None = None,
) -> None:
    """Writes a run's model where `fs.load` finds it; the arguments are the fields of `Trained`.

    Raises:
      SaveError: if the file cannot be written.
    """
    about = {
        "configuration": configuration,
        "seed": seed,
        "round": round,
        "num_rounds": num_rounds,
        "status": status,
        "kept": kept,
        "metric": metric,
        "value": value,
        "versions": versions(),
    }
    model_file.write(path, params, json.loads(to_json(about)))


def relabel(path: Path, configuration: Mapping[str, Any]) -> None:
    """Replaces the configuration that is saved with a run's model.

    A resume compares the configuration without the criteria that stop a run, because they may
    change. The model's file has them, too.

    Raises:
      SaveError: if the file cannot be written; it is then as it was.
    """
    params, about = model_file.read(path)
    relabelled = json.loads(to_json({"configuration": configuration}))
    if about["configuration"] != relabelled["configuration"]:
        model_file.write(path, params, about | relabelled)


def load(
    folder: str | Path,
    configuration: Mapping[str, Any] | None = None,
    seed: int | None = None,
    *,
    like: PyTree | None = None,
) -> Trained:
    """The model that a run or a sweep kept in its folder, and the facts that were saved with it.

    Args:
      folder: `out` of `fs.simulate`, of `fs.sweep(..., keep_models=...)` or of `fedjax-sim`'s run
        and sweep; or one model's file.
      configuration: hyper-parameter -> value, as many as tell the model from a sweep's others.
      seed: likewise.
      like: params of the same structure, to get the model in it; None for nested dicts (see
        `fs.load_params`).

    Raises:
      ValueError: if there is no model (what there is instead, and what to do), none or several of
        that configuration and seed, or one that does not fit `like`.

    >>> import fedjax_sim as fs, numpy as np, optax, tempfile
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3)
    >>> out = tempfile.mkdtemp()
    >>> simulation = fs.simulate(experiment, key=0, out=out)
    >>> trained = fs.load(out)
    >>> round(float(trained.params), 3), trained.seed, trained.round
    (0.488, 0, 3)
    """
    folder = Path(folder)
    labels_given = json.loads(to_json({"configuration": configuration or {}, "seed": seed}))
    about_of = {path: _read(path) for path in _paths(folder)}
    matching = [path for path, about in about_of.items() if _matches(about, labels_given)]
    if len(matching) != 1:
        asked_labels = _labels(labels_given)
        models_text = "several models"
        if asked_labels:
            labels_text = ", ".join(f"{name}={value!r}" for name, value in asked_labels.items())
            models_text = f"{len(matching) or 'no'} models of {labels_text}"
        labels = {path: _labels(about) for path, about in about_of.items()}
        cure = _cure([*labels.values()], [labels[path] for path in matching], asked_labels)
        raise ValueError(f"{folder} holds {models_text}; {cure}")
    (path,) = matching
    params, about = model_file.read(path, like)
    return Trained(params=params, path=path, **about)


def _paths(folder: Path) -> list[Path]:
    """The model files of a folder.

    Raises:
      ValueError: if there are none: what there is instead, and what to do.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"folder {folder} is not there")
    results_folder = RunFolder(folder)
    if paths := results_folder.models():
        return paths
    if results_folder.holds(RUN):
        cure = (
            f"it is of an older version, or was killed before its end; resume it, and it writes "
            f"{MODEL} at its end (a finished run at once)"
        )
    elif results_folder.holds(SWEEP):
        cure = (
            'its sweep kept none, or no batch is through; fs.sweep(..., keep_models="final") or '
            '"best", and fedjax-sim sweep --keep-models, keep them'
        )
    else:
        cure = "it is no folder of fs.simulate, fs.sweep or fedjax-sim's run and sweep"
    raise ValueError(f"{folder} holds no {MODEL} and no {MODELS}: {cure}")


def _read(path: Path) -> dict[str, Any]:
    about = model_file.describe(path)
    if missing := {*Trained._fields} - {"params", "path", *about}:
        raise ValueError(
            f"{path} is a model of no run ({', '.join(sorted(missing))} missing); read it by "
            "fs.load_params"
        )
    return about


def _matches(about: Mapping[str, Any], labels_given: Mapping[str, Any]) -> bool:
    labels = _labels(about)
    return all(name in labels and labels[name] == x for name, x in _labels(labels_given).items())


def _labels(about: Mapping[str, Any]) -> dict[str, Any]:
    seed = {} if about["seed"] is None else {"seed": about["seed"]}
    return {**about["configuration"], **seed}


def _cure(
    labels: Sequence[Mapping[str, Any]],
    matching: Sequence[Mapping[str, Any]],
    asked_labels: Mapping[str, Any],
) -> str:
    """A sentence that lists the models to choose from.

    Args:
      labels: of all models of the folder.
      matching: of those that match what was asked for; if none does, all are listed.
      asked_labels: label -> value.
    """
    # The seed comes last because it distinguishes models least.
    names = sorted(dict.fromkeys(name for label in labels for name in label), key="seed".__eq__)
    for name in asked_labels:
        check_known(name, names, "hyper-parameter")
    candidates = matching or labels
    telling = [name for name in names if len(_values(candidates, name)) > 1]
    telling = telling or [name for name in names if name in asked_labels] or names
    if len(candidates) <= _SHOWN:
        choices = [
            f"({', '.join(f'{name}={label[name]!r}' for name in telling if name in label)})"
            for label in candidates
        ]
        return f"give configuration and seed of one of {', '.join(choices)}"
    choices = [f"{name} {_few(_values(candidates, name))}" for name in telling]
    return f"give configuration and seed of one of its {len(candidates)}: {'; '.join(choices)}"


def _values(labels: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a label, each once."""
    values: list[Any] = []
    for label in labels:
        if label.get(name) not in values:
            values.append(label.get(name))
    return values


def _few(values: Sequence[Any]) -> str:
    num_left_out = len(values) - _SHOWN
    return ", ".join(map(repr, values[:_SHOWN])) + (
        f" and {num_left_out} more" if num_left_out > 0 else ""
    )
