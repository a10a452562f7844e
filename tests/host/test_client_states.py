"""Clients' states on disk: the bits of those in memory, whatever ends a run in between."""

import errno
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.files import SaveError
from fedjax_sim.data import client_states
from fedjax_sim.host import windows
from fedjax_sim.results.folder import RunFolder
from fedjax_sim.training import from_disk
from tests.conftest import MESH, linear_loss, zeros

ROUNDS, KEY, CAPACITY = 10, jax.random.key(5), 34
LOCAL = fs.LocalTraining(1, 4)
ALGORITHMS = {
    "scaffold": lambda: fs.scaffold(linear_loss, 0.05, LOCAL),
    "ditto": lambda: fs.ditto(linear_loss, optax.sgd(0.05), LOCAL, 0.1),
    "partial": lambda: fs.partial(fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL), "b"),
    "mime": lambda: fs.mime(linear_loss, 0.05, LOCAL),
}


def experiment(data, name="scaffold", **parts):
    return fs.Experiment(
        ALGORITHMS[name](),
        zeros(),
        data,
        fs.sampling.uniform(3),
        ROUNDS,
        execution=fs.execution.vmapped(),
    )._replace(**parts)


@pytest.fixture(autouse=True, scope="module")
def few_states():
    """Windows of five clients, so that most last for a round or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_STATES_BYTES", 5 * 4 * (4 + 1))
        yield


@pytest.fixture(scope="module")
def whole(data, few_states, tmp_path_factory):
    """A run that nothing ended."""
    return on_disk(experiment(data), tmp_path_factory.mktemp("whole"))


def on_disk(given, out, **options):
    return fs.simulate(given, KEY, out=out, client_states="disk", capacity=CAPACITY, **options)


def results(run):
    """Model, history, and the states of all clients."""
    clients = run.state.clients
    if isinstance(clients, fs.data.ClientStates):
        clients = clients.read(np.arange(len(clients)))
    return jax.tree.leaves((run.state.server, run.history, clients))


def same(run, other):
    for x, y in zip(results(run), results(other), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_client_that_never_took_part_has_no_row(data, whole):
    sampler = experiment(data).sampler
    taken = jax.jit(lambda i: sampler.sample(KEY, i, data).client_ids)
    seen = {int(k) for i in range(ROUNDS) for k in taken(jnp.int32(i))}
    states = whole.state.clients
    assert {*np.flatnonzero(states.is_written).tolist()} == seen
    assert f"{len(seen)} of {data.num_clients} clients written" in repr(states)


@pytest.mark.parametrize("source", [False, True])
def test_clients_on_disk_are_measured(data, whole, monkeypatch, source):
    """In groups of three, of which the last one has two."""
    monkeypatch.setattr(from_disk, "_CLIENTS", 3)
    held = whole.state.clients
    in_memory = fs.FederatedState(
        whole.state.server,
        jax.tree.map(jnp.asarray, held.read(np.arange(len(held)))),
        whole.state.round,
        whole.state.get_params,
    )

    def metric_fn(params, batch, key):
        return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2

    algorithm, clients = ALGORITHMS["scaffold"](), [0, 2, 3, 5, 7, 1, 6, 4]
    # Each client's own: what it has, added to the model.
    algorithm = algorithm._replace(
        personal=lambda server, own, probed: jax.tree.map(
            lambda w, c: w + c, algorithm.params(server), own
        )
    )
    options = {"test": fs.data.Source.of(data) if source else data, "clients": clients}
    read = fs.evaluate_clients(metric_fn, algorithm, whole.state, data, **options)
    wanted = fs.evaluate_clients(metric_fn, algorithm, in_memory, data, clients=clients)
    for x, y in zip(jax.tree.leaves(read), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    few = fs.FederatedData.from_clients([{"x": np.ones((2, 4)), "y": np.ones(2)}] * 3)
    with pytest.raises(ValueError, match=r"run on this federation of 3 clients; it holds .* of 8"):
        fs.evaluate_clients(metric_fn, algorithm, whole.state, few)


@pytest.mark.slow  # two programs, whose bits agree where XLA compiles as users have it
@pytest.mark.parametrize(
    ("name", "execution", "sampler", "source"),
    [
        ("scaffold", fs.execution.packed(2), fs.sampling.uniform(3), False),
        ("ditto", fs.execution.vmapped(), fs.sampling.bernoulli(0.3), True),
        ("partial", fs.execution.packed(1), fs.sampling.weighted(2), False),
        ("scaffold", fs.execution.sharded(MESH, fs.execution.packed(2)), fs.sampling.uniform(3), 1),
    ],
)
def test_it_has_the_bits_of_states_in_memory(data, tmp_path, name, execution, sampler, source):
    given = experiment(data, name, execution=execution, sampler=sampler)
    run = fs.simulate(
        given._replace(data=fs.data.Source.of(data) if source else data),
        KEY,
        out=tmp_path,
        client_states="disk",
        capacity=50,
        keep_model="best",
        metric="train_loss",
    )
    same(run, fs.simulate(given, KEY))


@pytest.mark.slow
def test_an_interrupted_run_goes_on(data, whole, tmp_path):
    def after(rounds):
        def on_progress(progress):
            if progress.round >= rounds:
                signal.raise_signal(signal.SIGTERM)

        return on_progress

    given = experiment(data)
    for rounds in (1, 4, 7):
        options = {"resume": rounds > 1, "checkpoint_every": 2}
        run = on_disk(given, tmp_path, on_progress=after(rounds), **options)
        assert run.status == "interrupted"
    same(on_disk(given, tmp_path, resume=True), whole)
    same(on_disk(given, tmp_path, resume=True), whole)  # once more, of a finished one


class _KilledError(BaseException):
    """What ends a process wherever it is."""


@pytest.mark.parametrize(
    "number", [9, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 14))]
)
def test_a_run_that_is_killed_while_it_writes_goes_on(data, whole, tmp_path, monkeypatch, number):
    written = client_states._all_written
    calls = []

    def killed(file, parts, place):
        calls.append(place)
        if len(calls) == number:
            os.pwrite(file.fileno(), b"\1\2", place)  # half of a row
            raise _KilledError
        written(file, parts, place)

    given = experiment(data)
    with monkeypatch.context() as patch:
        patch.setattr(client_states, "_all_written", killed)
        with pytest.raises(_KilledError):
            on_disk(given, tmp_path, checkpoint_every=2)
    same(on_disk(given, tmp_path, resume=True), whole)


def test_states_of_a_run_that_went_on_are_told_and_not_mistaken(data, tmp_path):
    """Its rows are written over once its checkpoints are gone."""
    given = experiment(data)
    part = on_disk(given._replace(num_rounds=3), tmp_path, checkpoint_every=1)
    ids = np.flatnonzero(part.state.clients.is_written)
    part.state.clients.read(ids)
    on_disk(given, tmp_path, checkpoint_every=1, resume=True)
    with pytest.raises(ValueError, match=r"client \d+.* went on in this folder may have replaced"):
        part.state.clients.read(ids)


def test_two_runs_at_once_in_one_folder_are_refused(data, whole, tmp_path):
    """Each would write rows that the other one's checkpoints list."""
    given, refusals = experiment(data), []

    def another_begins(progress):
        if progress.round == 4:
            with pytest.raises(ValueError, match="in which no other run is at work") as caught:
                on_disk(given, tmp_path, resume=True)
            refusals.append(caught.value)
            with pytest.raises(ValueError, match="in which no other run is at work") as caught:
                RunFolder(tmp_path).clear()
            refusals.append(caught.value)

    run = on_disk(given, tmp_path, checkpoint_every=2, on_progress=another_begins)
    assert len(refusals) == 2
    same(run, whole)
    assert fs.load(tmp_path).round == given.num_rounds
    RunFolder(tmp_path).clear()
    assert not (tmp_path / "client_states").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(data, whole, tmp_path):
    given = experiment(data)
    on_disk(given, tmp_path, checkpoint_every=3)
    last = max((tmp_path / "checkpoints").iterdir())
    for file in last.rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        same(on_disk(given, tmp_path, resume=True), whole)


def test_a_full_disk_says_what_is_saved_and_resumes(data, whole, tmp_path, monkeypatch):
    written = client_states._all_written
    calls = []

    def full(file, parts, place):
        calls.append(place)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(file, parts, place)

    given = experiment(data)
    with monkeypatch.context() as patch:
        patch.setattr(client_states, "_all_written", full)
        with pytest.raises(SaveError, match=r"rows.bin.*No space left.*a resume goes on") as caught:
            on_disk(given, tmp_path, checkpoint_every=2)
    partial = caught.value.partial
    assert 0 < len(partial.history.evaluated) < ROUNDS
    same(on_disk(given, tmp_path, resume=True), whole)


@pytest.mark.slow
def test_rows_that_are_damaged_or_missing_are_told_by_their_file(data, tmp_path):
    given = experiment(data)
    rows = tmp_path / "client_states" / "rows.bin"
    on_disk(given._replace(num_rounds=4), tmp_path)
    content = bytearray(rows.read_bytes())
    rows.write_bytes(bytes(x ^ 1 for x in content))
    with pytest.raises(fs.InterruptedRun) as caught:
        on_disk(given, tmp_path, resume=True)
    assert "rows.bin is damaged: the state of client" in str(caught.value.__cause__)
    rows.write_bytes(content[:10])
    with pytest.raises(ValueError, match=r"rows.bin, the clients' states, must have at least"):
        on_disk(given, tmp_path, resume=True)
    rows.unlink()
    with pytest.raises(ValueError, match=r"rows.bin.* is missing"):
        on_disk(given, tmp_path, resume=True)


def test_what_cannot_be_is_refused(data, tmp_path):
    given = experiment(data)
    with pytest.raises(ValueError, match=r'client_states must be "memory" or "disk"; got \'x\''):
        fs.simulate(given, KEY, client_states="x")
    with pytest.raises(ValueError, match="needs out"):
        fs.simulate(given, KEY, client_states="disk")
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    with pytest.raises(ValueError, match="clients keep nothing"):
        on_disk(given._replace(algorithm=algorithm), tmp_path)
    of_state = fs.of_state(lambda state: {"number": state.round})
    with pytest.raises(ValueError, match="evaluate is of the state"):
        on_disk(given._replace(evaluate=of_state), tmp_path)
    mesh = fs.execution.sharded(MESH, fs.execution.vmapped())
    looks = fs.sampling.custom(2, lambda key, data: fs.Cohort(data.offsets[:2]))
    with pytest.raises(ValueError, match="sampler must draw from the key"):
        on_disk(given._replace(sampler=looks, execution=mesh), tmp_path)
