"""Running statistics that the server averages beside what its algorithm makes of a model."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.models import model_of, with_model
from fedjax_sim.core.paths import map_models, put
from fedjax_sim.core.trees import cast, sent_with
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    FederatedAlgorithm,
    Params,
    PyTree,
    RoundContext,
    accumulator,
)
from fedjax_sim.transforms.compression.compressed import is_compressed
from fedjax_sim.transforms.sharing.refusals import shapes_of_models
from fedjax_sim.transforms.sharing.shared_part import (
    shared_paths,
    statistics_of,
    stripped,
    with_zeros,
)


def with_averages(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm whose server averages the statistics s of its model, and does no more to them.

    A client finishes as if its s had not moved, and sends s_k - s beside what is left.

    Raises:
      ValueError: for an algorithm that is compressed, or makes something else of the rule; from
        `fs.init`, for one whose server has no model as its field `params`, or several, as IFCA's.
    """
    if is_compressed(algorithm):
        raise ValueError(
            "algorithm must not be compressed, for its statistics to be averaged; compress the "
            "result: compressed(with_statistics(..., averaged=True))"
        )
    if algorithm.aggregation is not None:
        raise ValueError(
            "algorithm must take the rule as it is, for its statistics to be averaged; this one "
            "makes something else of it, as its field `aggregation` says"
        )
    inner, inner_wire = algorithm.client, algorithm.wire

    def finish(carry: PyTree, message: PyTree, state: PyTree, *rest: Array) -> ClientOutput:
        sent, trained = model_of(message), model_of(carry)
        # What is sent may be shared in part, and then has other paths than the model.
        first, last, names = statistics_of(sent), statistics_of(trained), shared_paths(sent)
        by_name = {names[place]: x for place, x in first.items()}
        moved = {path: last[path] - x for path, x in by_name.items()}
        unmoved = with_model(carry, put(trained, by_name))
        output = inner.finish(unmoved, message, state, *rest)
        update, total = stripped((output.update, output.total), sent, first)
        return output._replace(update=(update, moved), total=total)

    def server_update(
        server: PyTree,
        update: tuple[PyTree, dict[str, Array]],
        total: PyTree,
        context: RoundContext,
    ) -> PyTree:
        of_model, moved = update
        params = algorithm.params(server)
        after = algorithm.server_update(
            server, with_zeros(of_model, accumulator), with_zeros(total, accumulator), context
        )
        check_same_spec("server_update", "the server state", server, after)

        def hold(before: PyTree, after: PyTree) -> PyTree:
            return put(after, statistics_of(before))

        after = map_models(hold, params, server, after)
        first = statistics_of(params)
        averages = cast(jax.tree.map(jnp.add, cast(first, moved), moved), first)
        return with_model(after, put(after.params, averages))

    def check(params: Params, examples: PyTree) -> None:
        if algorithm.check is not None:
            algorithm.check(params, examples)
        models = shapes_of_models(algorithm, params, examples)
        sent, last = models["message"], statistics_of(models["clients' carry"])
        server_has_one = hasattr(jax.eval_shape(algorithm.init, params), "params")
        if sent is None or not server_has_one:
            owner = "server's state" if sent is not None else "message"
            raise ValueError(
                f"algorithm must have the model as the field `params` of its {owner}, for its "
                "statistics to be averaged"
            )
        names = shared_paths(sent)
        for place, x in statistics_of(sent).items():
            if x.shape != last[names[place]].shape:
                raise ValueError(
                    "algorithm must send the one model that its clients train, for its statistics "
                    f"to be averaged; {names[place]!r} is sent as {list(x.shape)}, and trained as "
                    f"{list(last[names[place]].shape)}"
                )

    def wire(update: tuple[PyTree, PyTree], total: PyTree) -> Any:
        assert inner_wire is not None
        return sent_with(inner_wire(update[0], total), update[1])

    return algorithm._replace(
        client=inner._replace(finish=finish),
        server_update=server_update,
        check=check,
        wire=None if inner_wire is None else wire,
    )
