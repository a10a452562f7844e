"""How a client passes over its examples."""

from typing import NamedTuple


class LocalTraining(NamedTuple):
    """How a client passes over its examples: E local epochs in blocks of B.

    A client with n_k examples takes `E * ceil(n_k / B)` local steps. The last block of
    a pass may hold fewer than B examples; its loss is the mean over those it has.

    Attributes:
      epochs: E >= 1.
      batch_size: B >= 1, or None for the full batch (B = infinity, one step an epoch), which is
        padded to the first of at most four sizes that holds it (`data.padded_sizes`), of clients
        side by side to the largest one's; what a loss draws must have the examples' axis first,
        [B, ...], lest it depend on that. (FedSGD's one gradient of all examples is not padded.)
      shuffle: a new permutation of the client's examples each epoch.
      order: "epochs" passes over all blocks E times (McMahan et al. 2017, Algorithm 1);
        "blocks" takes E steps on each block in turn, over one permutation.
    """

    epochs: int = 1
    batch_size: int | None = 10
    shuffle: bool = True
    order: str = "epochs"
