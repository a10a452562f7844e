"""Clients that attack: what they send in place of the updates that they trained."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_not_a_name, check_same_spec, check_takes, is_concrete
from fedjax_sim.core.randomness import stream
from fedjax_sim.core.registry import declared
from fedjax_sim.core.tasks import Attack, Executed, Tasks
from fedjax_sim.core.trees import all_finite, weighted_sum, where, zeros_like
from fedjax_sim.core.types import Array, FederatedAlgorithm, PyTree
from fedjax_sim.transforms import attacks
from fedjax_sim.transforms.compression.uplink import Encoded


class Attackers(NamedTuple):
    """Who attacks, and how; `malicious` is Bool[K]."""

    attack: Attack
    malicious: Array


def check_attackers(attack: Any, malicious: Any) -> Attackers | None:
    """The attack with who makes it; None where there is none.

    Raises:
      ValueError: for one without the other, and for what is no attack or no Bool[K].
    """
    if attack is None and malicious is None:
        return None
    if attack is None:
        raise ValueError("malicious clients need an attack, as fs.attacks.alie(); got attack=None")
    if malicious is None:
        raise ValueError(
            "attack needs malicious, Bool[K], as fs.attacks.draw_malicious(key, num_clients, share)"
        )
    check_not_a_name("attack", attack, {x: f"fs.attacks.{x}(...)" for x in declared(attacks)})
    if not callable(attack):
        raise ValueError(f"attack must be one of fs.attacks, or a function; got {attack!r}")
    check_takes("attack", attack, "updates", "malicious", "counted", "key")
    if is_concrete(malicious):
        malicious = np.asarray(malicious)
    if malicious.dtype != bool or malicious.ndim != 1:
        raise ValueError(
            f"malicious must be Bool[K], one for each client; got {malicious.dtype}"
            f"{list(malicious.shape)} (fs.attacks.malicious_of makes it of ids)"
        )
    return Attackers(attack, jnp.asarray(malicious))


def check_attackable(algorithm: FederatedAlgorithm, total: PyTree) -> None:
    """Refuses an algorithm whose clients send one thing, of which update and total are both made.

    An attack takes the place of the update, and the total would still be of what was trained.

    Args:
      total: what the clients' totals sum to, or its shapes.

    Raises:
      ValueError: with the reason.
    """
    # A codec's wire has the update and the total side by side.
    is_sent_once = algorithm.wire is not None and not isinstance(algorithm.wire, Encoded)
    if is_sent_once and jax.tree.leaves(total):
        raise ValueError(
            "attack must not be given for an algorithm whose clients send once what the server "
            "both averages and sums, as FedDyn and MIFA, because an attack takes the place of the "
            "update alone, and the sum would be of what malicious clients trained"
        )


def under_attack(
    attackers: Attackers,
    executed: Executed,
    tasks: Tasks,
    key: Array,
    *,
    num_clients: int,
    drops_nonfinite: bool,
) -> Executed:
    """What reaches the server: of malicious clients that report what their attack makes.

    Their totals, client states and metrics are those that they trained. What the attack makes of
    others is not read.

    Args:
      key: of the round's attack, folded here by client.
      drops_nonfinite: whether an attack that is not finite does not count.

    Raises:
      ValueError: for malicious clients of another federation, or an attack that changes shapes.
    """
    if attackers.malicious.shape != (num_clients,):
        raise ValueError(
            f"malicious must be Bool[K] of the federation's {num_clients} clients; got "
            f"{attackers.malicious.shape[0]}"
        )
    ids, counted = tasks.client_ids, executed.counted
    malicious = attackers.malicious[ids] & counted
    updates: PyTree = where(counted, executed.updates, zeros_like(executed.updates))
    keys = jax.vmap(lambda client_id: stream(key, client_id))(ids)
    sent = attackers.attack(updates, malicious, counted, keys)
    check_same_spec("attack", "the updates", updates, sent)
    updates = where(malicious, sent, updates)
    finite = executed.finite & jax.vmap(all_finite)(updates)
    if drops_nonfinite:
        counted = counted & finite
    return executed._replace(
        update=weighted_sum(tasks.weights, counted, updates),
        updates=updates,
        counted=counted,
        finite=finite,
    )
