"""What a container leaves a process, and whose devices a strategy asks about."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.execution import cgroup, machine
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.strategy import as_strategy
from tests.conftest import MESH


def groups(folder, own, files):
    """Control groups as files below `folder`: (the process's own, the root of all)."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "own", folder / "all"


VERSION_2 = {
    "cpu.max": "max 100000\n",
    "pods/cpu.max": "250000 100000\n",
    "pods/one/cpu.max": "max 100000\n",
    "pods/memory.max": "max\n",
    "pods/memory.current": "5000\n",
    "pods/one/memory.max": "9000\n",
    "pods/one/memory.current": "8000\n",
    "pods/one/memory.stat": "anon 100\ninactive_file 3000\ntotal 1\n",
}
VERSION_1 = {
    "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "memory/one/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/one/memory.usage_in_bytes": "7000\n",
    "memory/memory.limit_in_bytes": "20000\n",
    "memory/memory.usage_in_bytes": "19000\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
}


@pytest.mark.parametrize(
    ("own", "files", "cores", "left"),
    [
        ("0::/pods/one\n", VERSION_2, 2.5, 4000),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5, math.inf),
        ("7:memory:/one\n3:cpu,cpuacct:/one\n0::/\n", VERSION_1, 1.5, 1500),
        ("3:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, math.inf, math.inf),
    ],
)
def test_the_strictest_group_counts(tmp_path, own, files, cores, left):
    where = groups(tmp_path, own, files)
    assert cgroup.allowed_cores(*where) == cores
    assert cgroup.free_bytes(*where) == left


def test_a_system_without_groups_limits_nothing(tmp_path):
    nowhere = tmp_path / "own", tmp_path / "all"
    assert cgroup.allowed_cores(*nowhere) == cgroup.free_bytes(*nowhere) == math.inf


def test_cores_and_memory_are_the_containers(monkeypatch):
    affinity = machine.num_cores()
    monkeypatch.setattr(machine, "allowed_cores", lambda: 0.5)
    monkeypatch.setattr(machine, "free_bytes", lambda: 1000.0)
    assert affinity >= machine.num_cores() == 1
    assert machine.free_memory(jax.devices("cpu")) == 1000


def test_the_platform_is_that_of_mesh_or_data(data):
    engine = Engine(None, data, jax.random.key(0), ())
    assert machine.platform_of(engine) == jax.tree.leaves(data)[0].devices().pop().platform
    assert machine.platform_of(engine._replace(platform="tpu")) == "tpu"
    asked = []
    jax.make_jaxpr(lambda d: asked.append(machine.platform_of(engine._replace(data=d))))(data)
    assert asked == [jax.default_backend()]


def test_every_strategy_answers(data):
    def mine(engine, client_states, tasks, options):
        raise NotImplementedError

    def answers(strategy):
        strategy = as_strategy(strategy)
        return strategy.mesh, strategy.lanes, strategy.queues

    assert answers(mine) == answers(fs.execution.vmapped()) == (None, None, False)
    assert answers(fs.execution.packed(3)) == (None, 3, True)
    assert answers(fs.execution.automatic()) == (None, None, False)
    assert answers(fs.execution.sharded(MESH, mine)) == (MESH, None, False)
    algorithm = fs.fedsgd(lambda *_: jnp.zeros(1), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"must take \(engine, client_states, tasks, options\)"):
        fs.make_round(algorithm, execution=lambda engine, tasks: None)
    with pytest.raises(ValueError, match=r"inner must take \(engine, client_states, tasks"):
        fs.execution.sharded(MESH, lambda engine, tasks: None)


def test_a_function_of_ones_own_runs_everywhere(data):
    """Given the engine, it can do as another; dealt over devices, it gets their shares alone."""
    slots = []

    def mine(engine, client_states, tasks, options):
        slots.append(tasks.client_ids.shape[0])
        return fs.execution.vmapped()(engine, client_states, tasks, options)

    algorithm = fs.fedsgd(
        lambda w, batch, key: (batch["y"] - w) ** 2, fs.server_optimizers.adagrad(0.1)
    )
    state = fs.init(algorithm, 0.0, data)
    cohort = fs.Cohort(jnp.array([1, 4, 5]))
    moved = []
    for execution in (mine, fs.execution.sharded(MESH, mine), fs.execution.packed(1)):
        round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
        moved.append(float(round_fn(jax.random.key(0), state, data, cohort)[0].params))
    assert slots == [3, 2]
    np.testing.assert_allclose(moved[:2], moved[2], rtol=1e-6)
