"""What ends a run that had begun: an error, which carries what had been computed, or a signal."""

from typing import Any


class InterruptedRun(Exception):
    """A run or a sweep failed once it had begun; what it had computed until then is kept.

    Raised where a writer or `on_progress` raises, or a later batch of a sweep; that error is the
    cause (`__cause__`). `fs.SaveError`, where something could not be written, is one, too. What is
    refused before anything is computed stays a ValueError.

    Attributes:
      partial: what was computed: of `fs.simulate` an `fs.Simulation`, of `fs.sweep` the
        `fs.Results` of the runs that are through; None if an `fs.SaveError` is of no run.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=1)
    >>> def tell(progress):
    ...     raise ConnectionError("nobody listens")
    >>> try:
    ...     fs.simulate(experiment, key=0, on_progress=tell)
    ... except fs.InterruptedRun as error:
    ...     print(error, round(float(error.partial.state.params), 3), sep="; ")
    a round was not told of: ConnectionError('nobody listens'); 0.2
    """

    partial: Any = None

    def holding(self, partial: Any) -> "InterruptedRun":
        """Sets `partial`, and returns the error itself."""
        self.partial = partial
        return self


class LostProcessError(RuntimeError):
    """Another process of a run is gone, so that nothing more can be computed with it.

    What is saved can be resumed by all. This process cannot meet the others at its end, either.
    """


class SecondSignal(KeyboardInterrupt):
    """A run got another signal while it was ending on a first one: it ends at once.

    It saves nothing more, and tells no other process of the run.
    """
