"""An algorithm whose clients, or whose server, send by a codec."""

import inspect
from typing import Any

from fedjax_sim.core.algorithm import as_algorithm
from fedjax_sim.core.types import FederatedAlgorithm
from fedjax_sim.transforms.compression.codec import Codec, no_memory
from fedjax_sim.transforms.compression.downlink import EncodedMessage, encoding_messages
from fedjax_sim.transforms.compression.uplink import Encoded, encoding_updates


def compressed(
    algorithm: FederatedAlgorithm,
    uplink: Codec | None = None,
    downlink: Codec | None = None,
    error_feedback: bool = False,
) -> FederatedAlgorithm:
    """The algorithm with clients' updates sent by a codec, or the server's model, or both.

    Up, what is averaged is the decoded update:

        wire_k, residual_k = encode(d_k + residual_k)
        w_{t+1} = server_update(w_t, sum_{k in V} a_k decode(wire_k) / denominator)

    With error feedback a client keeps its residual until it is picked again, beside the state that
    the algorithm keeps itself: memory of K updates. Whose update does not count (a dropout, or one
    that was dropped) keeps the residual that it had. Without, each round begins at `uplink.init`,
    which is zero. Seide et al. 2014; Karimireddy et al. 2019 (arXiv 1901.09847).

    Down, clients train from the decoded model v_t, and d_k is what they move from there. Without
    error feedback the server encodes the model, which is for codecs that come near to any numbers,
    as `quantise(8)` (Caldas et al. 2018, arXiv 1812.07210):

        v_t = decode(encode(w_t))

    With it, it encodes what clients do not have yet. Its error memory is w_t - v_t, as in
    DoubleSqueeze (Tang et al. 2019, arXiv 1905.05957), so that `top_k` serves here, too:

        v_{t+1} = v_t + decode(encode(w_{t+1} - v_t)),   v_0 = w_0

    For that each client must have had all messages: each is sent to all K, who take part or not,
    and so `RoundMetrics.receivers` counts them. The first model is known to all. A message after a
    round in which nothing was aggregated is the one before it. In one direction alone errors are
    fed back by two calls, of which the example's second feeds back none.

    Only `ClientOutput.update` and the message's model are encoded; a `total` and what is sent
    beside the model, as SCAFFOLD's control variates, travel as they are. `fs.communication` counts
    the bytes of both wires. A codec draws from a stream of its own of the round, and of the client;
    of the very first model from a fixed one. With an uplink, FedSGD's pooled gradient is not used,
    since each client's own update must be seen.

    Args:
      uplink, downlink: from `top_k`, `random_k`, `quantise`, `sign` or `drive`, or one's own; None
        where what travels is not encoded.
      error_feedback: whether what is held back is sent later.

    Raises:
      ValueError: for what is no algorithm or no codec, or no codec at all; for an algorithm that is
        compressed in that direction already, or has several exchanges in a round; up, for one that
        sends something else than its update, as IFCA one model of several, or is private; with
        error feedback, for a codec without a memory, and up for an algorithm whose clients probe,
        as AFL's, because the shapes of its update are not known without data; from the round or
        `fs.init`, for a codec that decodes to other shapes, or a message without a model.

    >>> import fedjax_sim as fs, jax.numpy as jnp, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 100))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> sparse = fs.compression.compressed(
    ...     algorithm, fs.compression.top_k(0.05), error_feedback=True)
    >>> fs.communication(sparse, jnp.zeros(100), data)
    Communication(down=400, up=40)
    >>> both = fs.compression.compressed(sparse, downlink=fs.compression.quantise(8))
    >>> fs.communication(both, jnp.zeros(100), data)
    Communication(down=108, up=40)
    """
    _check(algorithm, error_feedback)
    if uplink is None and downlink is None:
        raise ValueError(
            "uplink or downlink must be a codec, as fs.compression.top_k(0.1) makes; got None for "
            "both"
        )
    if uplink is not None:
        _check_codec("uplink", uplink, error_feedback)
        _check_uplink(algorithm, error_feedback)
        algorithm = encoding_updates(algorithm, uplink, error_feedback)
    if downlink is not None:
        _check_codec("downlink", downlink, error_feedback)
        if algorithm.message_wire is not None:
            raise ValueError(
                "algorithm must not send its model by a codec already: its field `message_wire` is "
                "set"
            )
        algorithm = encoding_messages(algorithm, downlink, error_feedback)
    return algorithm


def is_compressed(algorithm: FederatedAlgorithm) -> bool:
    """Whether it is by `compressed`, in any direction."""
    return isinstance(algorithm.wire, Encoded) or isinstance(algorithm.message_wire, EncodedMessage)


def _check(algorithm: Any, error_feedback: Any) -> None:
    """Refuses what cannot be compressed.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    algorithm = as_algorithm(algorithm)
    if not isinstance(error_feedback, bool):
        raise ValueError(f"error_feedback must be True or False; got {error_feedback!r}")
    if algorithm.earlier:
        raise ValueError(
            "algorithm must have one exchange in a round to be compressed; got one of "
            f"{len(algorithm.exchanges)}"
        )


def _check_codec(name: str, codec: Any, error_feedback: bool) -> None:
    """Refuses what is no codec, or one whose errors are not to be fed back where they are.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(codec, Codec) or not all(map(callable, codec[:3])):
        codec_text = repr(codec)
        if inspect.isfunction(codec):
            codec_text = f"the function {codec.__name__} itself: call it"
        raise ValueError(
            f"{name} must be a codec, as fs.compression.top_k(0.1) makes; got {codec_text}"
        )
    if error_feedback and codec.init is no_memory:
        raise ValueError(
            f"error_feedback must be False with {name} random_k(unbiased=True), since what is held "
            "back would grow each time that it is sent; give random_k(..., unbiased=False)"
        )


def _check_uplink(algorithm: FederatedAlgorithm, error_feedback: bool) -> None:
    """Refuses an algorithm whose updates no codec can be given.

    Raises:
      ValueError: saying why.
    """
    if isinstance(algorithm.wire, Encoded):
        raise ValueError("algorithm must not be compressed already")
    if algorithm.aggregation is not None:
        raise ValueError(
            "algorithm must take the rule as it is to be compressed: it must not be private, whose "
            "clip a codec may undo (compress first), nor have a server that sees every model, as "
            "FedDF"
        )
    if algorithm.wire is not None:
        raise ValueError(
            "algorithm must send its update as it is, for a codec to encode; this one does not: "
            "FedDyn and MIFA send it as a total, too, and IFCA one model of several and its number"
        )
    if error_feedback and algorithm.client.probe is not None:
        raise ValueError(
            "error_feedback must be False for an algorithm whose clients probe, because the "
            "shapes of its update, and so of the residual, are not known without data"
        )
