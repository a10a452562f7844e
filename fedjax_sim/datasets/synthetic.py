"""FedProx's Synthetic(alpha, beta): a generated classification whose clients differ by degrees."""

import jax
import numpy as np

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.types import Array
from fedjax_sim.datasets.types import FEATURES, Dataset, Facts

_FEATURES, _CLASSES = 60, 10

_FACTS = Facts(
    "logistic",
    30,
    FEATURES,
    fraction=1 / 3,
    client_lr=0.01,
    target=0.7,
    natural=True,
    fixed=False,
)


@declare(
    "generated, FedProx's Synthetic(alpha, beta)",
    Option(
        "synthetic_alpha",
        "how far models differ",
        1.0,
        range=AT_LEAST_0,
        parameter="alpha",
        metavar="ALPHA",
    ),
    Option(
        "synthetic_beta",
        "how far features differ",
        1.0,
        range=AT_LEAST_0,
        parameter="beta",
        metavar="BETA",
    ),
    facts=_FACTS,
)
def synthetic(
    key: Array, alpha: float = 1.0, beta: float = 1.0, num_clients: int = 30, iid: bool = False
) -> Dataset:
    """Synthetic(alpha, beta) of Li et al. 2020, FedProx (arXiv 1812.06127): 10 classes.

    Client k has a model and a distribution of features of its own,

        y = argmax(W_k^T x + b_k),    W_k ~ N(u_k, 1), b_k ~ N(u_k, 1),    u_k ~ N(0, alpha),
        x ~ N(v_k, diag(j^-1.2)),     v_k ~ N(B_k, 1),                     B_k ~ N(0, beta),

    elementwise, j = 1, ..., 60: alpha says how far models differ and beta how far features do.
    With `iid` all clients have one W, b ~ N(0, 1) and v = 0. A client has
    floor(lognormal(4, 2)) + 50 examples, of which the first floor(0.9 n) train.

    The paper's second arguments are read as in the code that its authors released: alpha and beta
    are standard deviations, not variances (the same at 0 and 1, not at 0.5), and lognormal(4, 2)
    has the mean 4 and the deviation 2 of the logarithm. Where the paper is silent the code decides,
    too: the sizes, the nine tenths, one u_k for both W_k and b_k. The numbers drawn are not theirs.

    x: Float32[N, 60]; y: Int32[N]; client_ids: Int32[N].

    Args:
      key: one typed key; the same key makes the same data, and client k's whatever the number of
        clients.
      alpha: at least 0; of no effect with `iid`.
      beta: at least 0; of no effect with `iid`.
      num_clients: K.
      iid: the paper's Synthetic IID.

    Raises:
      ValueError: for a negative alpha or beta, or num_clients < 1.

    >>> data = synthetic(jax.random.key(0), alpha=1, beta=1)
    >>> data.train["x"].shape[1], data.num_classes, int(data.client_ids.max()) + 1
    (60, 10, 30)
    """
    check_key(key)
    check_count("num_clients", num_clients)
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_number(name, value, lambda x: x >= 0, "at least 0")
    words = [int(word) for word in np.ravel(jax.random.key_data(key))]
    common = np.random.default_rng(words)
    w, b = common.normal(size=(_FEATURES, _CLASSES)), common.normal(size=_CLASSES)
    deviations = np.arange(1, _FEATURES + 1) ** -0.6  # the square roots of the covariance's
    v = np.zeros(_FEATURES)
    clients = []
    for k in range(num_clients):
        rng = np.random.default_rng([*words, 1, k])
        size = int(rng.lognormal(4, 2)) + 50
        if not iid:
            u, centre = rng.normal(0, alpha), rng.normal(0, beta)
            w, b = rng.normal(u, 1, (_FEATURES, _CLASSES)), rng.normal(u, 1, _CLASSES)
            v = rng.normal(centre, 1, _FEATURES)
        x = v + deviations * rng.standard_normal((size, _FEATURES))
        train = np.arange(size) < int(0.9 * size)
        clients.append((x.astype(np.float32), (x @ w + b).argmax(axis=1), train, [k] * size))
    x, y, train, client_ids = (np.concatenate(column) for column in zip(*clients, strict=True))
    y = y.astype(np.int32)
    return Dataset(
        train={"x": x[train], "y": y[train]},
        test={"x": x[~train], "y": y[~train]},
        num_classes=_CLASSES,
        client_ids=client_ids[train].astype(np.int32),
        test_client_ids=client_ids[~train].astype(np.int32),
    )


@declare("generated, its clients alike", facts=_FACTS)
def synthetic_iid(key: Array, num_clients: int = 30) -> Dataset:
    """FedProx's Synthetic IID: `synthetic` whose clients have one model and one distribution.

    Args:
      key, num_clients: as in `synthetic`.

    Raises:
      ValueError: for num_clients < 1.

    >>> synthetic_iid(jax.random.key(0)).num_classes
    10
    """
    return synthetic(key, 0.0, 0.0, num_clients, iid=True)
