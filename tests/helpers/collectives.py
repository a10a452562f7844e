"""The collectives of compiled rounds over so many devices: `python -m tests.helpers.collectives`.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.collectives 2 5 8

Prints, as JSON, [devices, parameters, slots, algorithm, [[operation, bytes], ...]] of each.
"""

import json
import re
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import fedjax_sim as fs

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8, "bf16": 2}
_OPERATION = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([0-9,]*)\]")


def collectives(text):
    """(operation, bytes of its result) of each in the text of a compiled program."""
    operations = []
    for shapes, operation in _OPERATION.findall(text):
        sizes = (
            _BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
            for dtype, dims in _SHAPE.findall(shapes)
        )
        operations.append([operation, sum(sizes)])
    return operations


def compiled(devices, features, m, name):
    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(n, features)).astype(np.float32), "y": np.ones(n, np.float32)}
        for n in (3, 5, 2, 4, 1, 6, 3, 2, 5, 4)
    ]
    data = fs.FederatedData.from_clients(clients)

    def loss_fn(w, batch, key):
        return (batch["x"] @ w - batch["y"]) ** 2

    local = fs.LocalTraining(1, 2)
    algorithm = {
        "fedavg": lambda: fs.fedavg(loss_fn, optax.sgd(0.1), local),
        "scaffold": lambda: fs.scaffold(loss_fn, 0.1, local),
    }[name]()
    mesh = Mesh(np.array(jax.devices()[:devices]), ("clients",))
    execution = fs.execution.sharded(mesh, fs.execution.packed(1))
    round_fn = fs.make_round(algorithm, execution=execution)
    sampler = fs.sampling.uniform(m)
    state = fs.init(algorithm, np.zeros(features, np.float32), data)
    data, state = (fs.execution.replicate(tree, mesh) for tree in (data, state))

    def one_round(key, state, data):
        return round_fn(key, state, data, sampler.sample(key, state.round, data))

    return jax.jit(one_round).lower(jax.random.key(0), state, data).compile().as_text()


def main(*devices):
    cases = [(int(devices[-1]), *case) for case in ((20, 4), (7, 6))]
    cases = [(int(d), 7, 4) for d in devices] + cases
    answers = [
        [*case, name, collectives(compiled(*case, name))]
        for case in cases
        for name in ("fedavg", "scaffold")
    ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
