"""The same training on the pooled data."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import aggregation as rules
from fedjax_sim.baselines.refusals import check_blind, check_plain
from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.local_training import num_steps
from fedjax_sim.core.types import Array, Cohort
from fedjax_sim.data import FederatedData, check_data, check_whole
from fedjax_sim.execution import packed
from fedjax_sim.execution.automatic import Automatic
from fedjax_sim.execution.packed import Packed
from fedjax_sim.execution.sharded import Sharded
from fedjax_sim.sampling import Sampler
from fedjax_sim.training.experiment import Experiment, check_experiment


def centralised(experiment: Experiment) -> Experiment:
    """The same algorithm on the pooled data: one client that holds all N examples.

    In round t it takes as many local steps as the federated run's cohort of that round and key,

        S_t = sum_{k in S} floor(work_k E ceil(n_k / B))

    over those that report, each draw counted, so that the budgets are equal to the step, round
    by round (beyond 2^21 steps a round, to a few in ten million). With FedAvg, SGD
    clients and the default server optimizer that is mini-batch SGD on the pooled data, S_t steps
    a round. What differs from the clients' local training:

    - B is the federation's, but at most N / K rounded up, the examples of a mean client. A full
      batch (B None) becomes that: S_t steps on all N would see K times the examples. A client's
      last block may be short where the pooled data's are full, so the pooled run may see more
      examples in as many steps; `RoundMetrics.examples` tells.
    - Blocks come in passes over all N (`order="epochs"`), each in a permutation of its own. A
      round begins a new pass. Without `shuffle` it begins at the first client's first example, so
      that fewer than N / B steps a round never see the last ones.
    - The client optimizer's state starts afresh each round, as in FedAvg.
    - Every example weighs the same, whatever `client_weights` the federation has.

    Model, evaluation and R stay as they are; the bytes counted are those of one client, and mean
    nothing here. The one client is trained by `packed(1)`;
    `vmapped()`, which can be differentiated in reverse, is kept.

    Raises:
      ValueError: for what is no experiment, for FedSGD, whose round is one gradient, and for an
        algorithm that is compressed, or has personal models.

    >>> import fedjax_sim as fs, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3)}, {"x": np.ones(5)}])
    >>> loss_fn = lambda w, batch, key: (batch["x"] - w) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(2, batch_size=2))
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.everyone(), num_rounds=3)
    >>> _, history = fs.baselines.centralised(experiment).run(jax.random.key(0))
    >>> history.rounds.client_steps.tolist()  # 2 epochs of ceil(3 / 2) + ceil(5 / 2)
    [10, 10, 10]
    """
    check_experiment(experiment)
    algorithm, sampler = experiment.algorithm, experiment.sampler
    data = check_data(experiment.data, "experiment.data")
    check_whole(data, "experiment.data")
    check_plain(algorithm)
    check_blind(sampler)
    if algorithm.pooled_gradient is not None:
        raise ValueError(
            "experiment.algorithm must take local steps, as fs.fedavg; got one whose round is one "
            "gradient, as fs.fedsgd: with fs.sampling.everyone() that is gradient descent on the "
            "pooled data already"
        )
    if algorithm.earlier:
        raise ValueError(
            "experiment.algorithm must exchange once a round, as fs.fedavg; got one of "
            f"{len(algorithm.exchanges)} exchanges, whose budget of local steps a single client "
            "does not have"
        )
    total, local = data.total_num_examples, algorithm.local
    mean = -(-total // data.num_clients)
    size = mean if local.batch_size is None else min(local.batch_size, mean)
    blocks = -(-total // size)
    epochs = max(1, -(-_most_steps(experiment) // blocks))

    def sample(key: Array, round: Array | int, pooled: FederatedData) -> Cohort:
        drawn = sampler.sample(key, round, data)
        if drawn.deadline is not None:
            raise ValueError(
                "experiment.sampler must not have a deadline, since only the round of the clients "
                "says who is late, and so what budget of local steps is left; give what was given "
                "to fs.sampling.deadline"
            )
        cohort, _, reports = as_arrays(drawn, data.num_clients, stateful=False)
        ids = jnp.clip(cohort.client_ids, 0, data.num_clients - 1)
        steps = num_steps(local, data.num_examples[ids], cohort.work)
        steps = jnp.where(reports & (ids == cohort.client_ids), steps, 0)
        one_array = jnp.ones(1, jnp.result_type(float))
        # `num_steps` rounds up what this division rounds off.
        work = jnp.sum(steps).astype(one_array.dtype) * one_array / (epochs * blocks)
        return Cohort(jnp.zeros(1, jnp.int32), inclusion=one_array, work=work)

    with jax.ensure_compile_time_eval():  # concrete values, also if this is called in a trace
        pooled = FederatedData(
            examples=data.examples,
            offsets=jnp.zeros(1, jnp.int32),
            num_examples=jnp.full(1, total, jnp.int32),
            client_weights=jnp.ones(1, jnp.result_type(float)),
            max_num_examples=total,
        )
    execution = experiment.execution
    if execution is None or isinstance(execution, (Automatic, Packed, Sharded)):
        execution = packed(1)
    return experiment._replace(
        algorithm=algorithm._replace(
            local=local._replace(epochs=epochs, batch_size=size, order="epochs")
        ),
        data=pooled,
        sampler=Sampler(1, False, sample),
        aggregation=rules.selected,
        execution=execution,
        clock=None,  # of K clients, of which the pooled data are none
    )


def _most_steps(experiment: Experiment) -> int:
    """The most local steps that a cohort can take, static."""
    local, data, sampler = experiment.algorithm.local, experiment.federation, experiment.sampler
    slots = data.num_clients if sampler.size is None else sampler.size
    size = data.max_num_examples if local.batch_size is None else local.batch_size
    if sampler.with_replacement or not is_concrete(data.num_examples):
        return local.epochs * slots * -(-data.max_num_examples // size)
    blocks = np.sort(-(-np.asarray(data.num_examples, np.int64) // size))[::-1]
    return local.epochs * int(blocks[:slots].sum())
