"""The cores of a CPU as devices, in processes of their own: JAX starts with them."""

import os
import subprocess
import sys

import pytest

from fedjax_sim.execution.machine import num_cores

LOOP = """
import os
import jax, numpy as np, optax
import fedjax_sim as fs

mesh = fs.execution.cores()
assert "NPROC" not in os.environ
rng = np.random.default_rng(0)
clients = [{"x": rng.normal(size=(60, 32)), "y": rng.integers(0, 10, 60)} for _ in range(20)]
data = fs.FederatedData.from_clients(clients)
model = fs.models.mlp((32,), (64,), 10)
algorithm = fs.fedavg(
    fs.models.cross_entropy(model.apply), optax.sgd(0.1), fs.LocalTraining(1, 10)
)
round_fn = fs.make_round(algorithm, execution=fs.execution.sharded(mesh))
key, sampler = jax.random.key(0), fs.sampling.uniform(10)
step = jax.jit(lambda data, state: fs.run(round_fn, key, state, data, sampler, 1)[0])
state = fs.init(algorithm, model.init(key), data)
data, state = fs.execution.replicate((data, state), mesh)
for _ in range(2000):
    state = step(data, state)  # none is awaited
assert int(jax.block_until_ready(state).round) == 2000
"""


@pytest.mark.slow
def test_rounds_in_a_loop_need_not_be_awaited():
    """With a thread for each core JAX hung, and ended the process after a minute."""
    command = [sys.executable, "-c", LOOP]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr[-2000:]


@pytest.mark.slow
# Of a machine with one core the mesh of one device is whole, so that nothing is refused there.
@pytest.mark.skipif(num_cores() < 2, reason="one device is all of one core")
def test_cores_asked_for_too_late_are_refused():
    """And not silently one, over which nothing is dealt."""
    script = "import jax; jax.devices(); import fedjax_sim as fs; fs.execution.cores()"
    unsaid = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    run = subprocess.run(
        [sys.executable, "-c", script], env=unsaid, capture_output=True, text=True, timeout=300
    )
    assert f"all {num_cores()} cores must be asked for before JAX is first used" in run.stderr
    assert "JAX already runs with 1" in run.stderr
