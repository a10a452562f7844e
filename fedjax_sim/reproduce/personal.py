"""PFLlib's leaderboard on Fashion-MNIST (Zhang et al. 2023, arXiv 2312.04992), fewer rounds."""

from typing import Any

import optax

from fedjax_sim.core.evaluate import of_state
from fedjax_sim.core.types import Array, FederatedState, LocalTraining
from fedjax_sim.reproduce.accuracies import AccuracyTable, Published, accuracy_cell, of_settings
from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting
from fedjax_sim.settings.splits import parts_of_clients
from fedjax_sim.training.experiment import Experiment
from fedjax_sim.training.fine_tuning import FineTuning
from fedjax_sim.training.personal import evaluate_clients

SCORE = "validation_accuracy"  # the quarter of each client's examples that it holds back
_ALL = Setting(
    dataset="fashion_mnist",
    model="unpadded_cnn",
    clients=20,
    sampler="everyone",
    epochs=1,
    batch_size=10,
    client_lr=0.005,
    rounds=5,
    evaluate_every=5,
    validation=0.25,
)
_SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "pathological": ("2 labels a client", {"partition": "labels", "classes_per_client": 2}),
    "dirichlet": (
        "Dirichlet 0.1",
        {"partition": "dirichlet", "alpha": 0.1, "min_examples": 10},
    ),
}
_HEAD, _BODY = "layers_9", "layers_0, layers_3, layers_7"  # of `unpadded_cnn`
_METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"algorithm": "fedavg"},
    "FedProx": {"algorithm": "fedprox"},
    "Per-FedAvg": {"algorithm": "perfedavg", "hessian": "first_order"},
    "pFedMe": {"algorithm": "pfedme"},
    "APFL": {"algorithm": "apfl"},
    "Ditto": {"algorithm": "ditto"},
    "FedPer": {"algorithm": "fedper", "personal": _HEAD},
    "LG-FedAvg": {"algorithm": "lgfedavg", "personal": _BODY},
    "FedRep": {"algorithm": "fedrep", "personal": _HEAD, "epochs": 2},
    "FedBABU": {"algorithm": "fedbabu", "personal": _HEAD},
}
_RECORD = "PFLlib, 2000 rounds"
_NAMES = (
    "FedAvg",
    "FedProx",
    "Per-FedAvg",
    "pFedMe",
    "APFL",
    "Ditto",
    "FedPer",
    "FedRep",
    "FedBABU",
)
_PATHOLOGICAL = ("80.41", "78.08", "99.18", "99.35", "99.41", "99.44", "99.47", "99.56", "99.41")
_DIRICHLET = ("85.85", "85.63", "95.10", "97.25", "97.25", "97.47", "97.44", "97.56", "97.46")
_RECORDS: dict[str, Published] = {
    "pathological": dict(zip(_NAMES, _PATHOLOGICAL, strict=True)),
    "dirichlet": dict(zip(_NAMES, _DIRICHLET, strict=True)),
}


def experiment(setting: Setting) -> Experiment:
    """The setting's; FedBABU's clients are measured fine-tuned, as its paper has them."""
    plain = of_settings(setting)
    return _fine_tuned(setting, plain) if setting.algorithm == "fedbabu" else plain


def _fine_tuned(setting: Setting, plain: Experiment) -> Experiment:
    """Measures each client's model after one more epoch on what the client trains on."""
    resolved = setting.resolved()
    parts = build.problem(resolved)
    own = parts_of_clients(resolved.data).validation
    assert own is not None
    assert resolved.client is not None
    assert resolved.local is not None
    fine_tune = FineTuning(
        optax.sgd(resolved.client.lr), LocalTraining(1, resolved.local.batch_size)
    )

    def measure(state: FederatedState) -> dict[str, Array]:
        tuned = evaluate_clients(
            parts.loss_fn, plain.algorithm, state, parts.data, test=own, fine_tune=fine_tune
        )
        return {f"validation_{name}": value for name, value in tuned.after.mean.items()}

    return plain._replace(evaluate=of_state(measure))


PERSONAL = AccuracyTable(
    "personal",
    "PFLlib's leaderboard on Fashion-MNIST (arXiv 2312.04992): personal models after 5 rounds",
    "All of twenty clients, 5 rounds of the record's 2000, E = 1, B = 10, rate 0.005, the 4-layer "
    "CNN (`unpadded_cnn`), one seed. In the cells: accuracy of each client's own model on the "
    "quarter of its examples that it holds back, over all of these, in %, after the last round, "
    "where the record has the best one. Two things differ besides: the record splits all 70,000 "
    "examples, ours the 60,000 of the training set; and what the leaderboard does not give has "
    "our defaults (`docs/declared.md`). Per-FedAvg is of first order; FedRep has one epoch for the "
    "head and one for the rest; FedBABU is measured after one epoch of fine-tuning. What can be "
    "compared after so few rounds is the order, and the step from the global to the personal "
    "models.",
    tuple(
        accuracy_cell(
            f"personal-{split}",
            place,
            {name: _ALL.but(**options, **values) for name, values in _METHODS.items()},
            {_RECORD: _RECORDS[split]},
            score=SCORE,
            seeds=1,
            experiment_of=experiment,
        )
        for split, (place, options) in _SPLITS.items()
    ),
    ordered=True,
)
