"""A resume takes no other experiment for the one that is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.host.fingerprint import traced
from fedjax_sim.host.identity import identity, program
from fedjax_sim.host.manifest import another
from fedjax_sim.host.stopping import check_stop
from tests.conftest import zeros
from tests.host import test_fingerprint

SMALL = (2, 3, 1)
ROUNDS = 2


def federation(shift=0.0):
    rng = np.random.default_rng(1)
    made = [rng.normal(size=(n, 5)).astype(np.float32) + np.float32(shift) for n in SMALL]
    return fs.FederatedData.from_clients([{"x": x[:, :4], "y": x[:, 4]} for x in made])


DATA = federation()
# What a run is made of, and for each part of it another choice.
CHOICES = {
    "rule": ("selected", "all_clients", "uniform"),
    "sampler": ("uniform", "weighted"),
    "algorithm": ("fedavg", "fedprox", "scaffold"),
    "rate": (0.1, 0.2),
    "momentum": (0.0, 0.9),
    "server_rate": (1.0, 0.5),
    "mu": (0.1, 0.01),
    "scale": (1.0, 2.0),
    "local": (fs.LocalTraining(1, 2), fs.LocalTraining(2, 2), fs.LocalTraining(1, 3)),
    "shift": (0.0, 0.5),
    "nonfinite": ("keep", "drop"),
    "measure": ("w", "b"),
    "test": (1.0, 2.0),
    "start": (0.0, 1.0),
    "cohort": (2, 1),
    "clock": (None, 1.0, 2.0),
    "deadline": (None, 30.0, 60.0),
    "seed": (0, 1),
}
USUAL = {name: values[0] for name, values in CHOICES.items()}


def experiment(**changes):
    of = USUAL | changes

    def loss(params, batch, key):
        return of["scale"] * (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2

    client, server = optax.sgd(of["rate"], of["momentum"]), optax.sgd(of["server_rate"])
    if of["algorithm"] == "scaffold":
        algorithm = fs.scaffold(loss, of["rate"], of["local"])
    elif of["algorithm"] == "fedprox":
        algorithm = fs.fedprox(loss, client, of["local"], of["mu"], server)
    else:
        algorithm = fs.fedavg(loss, client, of["local"], server)
    test = jnp.full(4, of["test"])
    sampler = getattr(fs.sampling, of["sampler"])(of["cohort"])
    if of["deadline"] is not None:
        sampler = fs.sampling.deadline(sampler, of["deadline"])
    return fs.Experiment(
        algorithm,
        {"w": zeros()["w"], "b": np.float32(of["start"])},
        DATA if of["shift"] == 0 else federation(of["shift"]),
        sampler,
        ROUNDS,
        aggregation=getattr(fs.aggregation, of["rule"]),
        nonfinite=of["nonfinite"],
        evaluate=lambda params: {"value": jnp.sum(params[of["measure"]] * test)},
        clock=None if of["clock"] is None else fs.clocks.equal(len(SMALL), of["clock"]),
    )


def described(**changes):
    made, key = experiment(**changes), jax.random.key((USUAL | changes)["seed"])
    # As it is read from its file.
    return json.loads(json.dumps(identity(made, key, made.start(key))))


def matters(name, base):
    """Whether this part is one of what the run is made of."""
    if base["algorithm"] == "scaffold" and name in ("momentum", "server_rate"):
        return False
    return name != "mu" or base["algorithm"] == "fedprox"


@settings(max_examples=12)
@given(st.data())
def test_one_thing_changed_is_another_experiment(draw):
    base = {name: draw.draw(st.sampled_from(values), name) for name, values in CHOICES.items()}
    name = draw.draw(st.sampled_from([name for name in CHOICES if matters(name, base)]), "changed")
    value = draw.draw(st.sampled_from([v for v in CHOICES[name] if v != base[name]]), "to")
    there = described(**base)
    assert another(there, described(**base)) == ""
    assert another(there, described(**{**base, name: value})) != ""


def test_a_refusal_names_what_differs():
    there = described()
    for change, words in (
        ({"rule": "all_clients"}, "aggregation is selected there and all_clients here"),
        ({"sampler": "weighted"}, "sampler is uniform there and weighted here"),
        (
            {"rate": 0.2},
            "the algorithm (its loss, optimizers, rates or another constant of it) differs",
        ),
        ({"test": 2.0}, "what is evaluated (the measures or the test set) differs"),
        ({"cohort": 1}, "cohort is 2 there and 1 here"),
        ({"clock": 1.0}, "the traced program differs: the clock differs"),
        ({"deadline": 3.0}, "sampler is uniform there and deadline here"),
    ):
        assert words in another(there, described(**change))


def test_what_may_change_does_not_matter():
    made, key = experiment(), jax.random.key(0)
    there = program(lambda key: made, key)
    for other in (
        made._replace(num_rounds=50, execution=fs.execution.packed(2)),
        made._replace(aggregation=lambda *given: fs.aggregation.selected(*given)),
    ):
        assert program(lambda key, other=other: other, jax.random.key(3))["parts"] == there["parts"]


def parts_of(algorithm, **changes):
    changed = experiment()._replace(algorithm=algorithm, **changes)
    return program(lambda key: changed, jax.random.key(0))["parts"]


def squares(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def test_what_a_rule_of_all_updates_makes_of_clients_is_looked_at():
    """Under it FedSGD's clients train, by functions that a mean never calls."""
    base = fs.fedsgd(squares, optax.sgd(0.1))

    def twice(carry, *rest):
        output = base.client.finish(carry, *rest)
        return output._replace(update=jax.tree.map(lambda d: 2 * d, output.update))

    other = base._replace(client=base.client._replace(finish=twice))
    assert parts_of(base) == parts_of(other)
    of_median = [parts_of(x, aggregation=fs.aggregation.median()) for x in (base, other)]
    assert of_median[0]["algorithm"] != of_median[1]["algorithm"]


def test_a_rule_that_returns_its_five_parts_bare_is_looked_at():
    def bare(cohort, weights, all_weights):
        return (*fs.aggregation.median()(cohort, weights, all_weights),)

    base = fs.fedavg(squares, optax.sgd(0.1), fs.LocalTraining(1, 2))
    both = [parts_of(base, aggregation=rule) for rule in (bare, fs.aggregation.median())]
    assert both[0]["aggregation"] == both[1]["aggregation"]


def test_what_an_algorithm_makes_of_the_rule_is_looked_at():
    """Steps and rate of FedDF's server are in no coefficient, but in what it combines."""
    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": np.arange(n) % 2} for n in SMALL
    ]
    model = fs.models.logistic_regression((4,), 2)
    loss_fn = fs.models.cross_entropy(model.apply)

    def parts(steps, lr, scale=1.0):
        unlabelled = {"x": np.full((3, 4), scale, np.float32)}
        algorithm = fs.feddf(loss_fn, optax.sgd(0.1), fs.LocalTraining(1, 2), unlabelled, steps, lr)
        data = fs.FederatedData.from_clients(clients)
        changed = experiment()._replace(
            algorithm=algorithm, data=data, params=model.init, evaluate=None
        )
        return program(lambda key: changed, jax.random.key(0))["parts"]["algorithm"]

    assert parts(2, 0.1) == parts(2, 0.1)
    assert len({parts(2, 0.1), parts(3, 0.1), parts(2, 0.2), parts(2, 0.1, 2.0)}) == 4


def several():
    """The checksums of some programs, one with a constant whose order the process decides."""
    names = frozenset(("a", "b", "c", "d"))
    made = [experiment(algorithm=name) for name in CHOICES["algorithm"]]
    host = jax.pure_callback

    def called(x):
        return {
            "callback": host(lambda y: np.float32(len(names)) * y, x, x),
            "vjp": jax.nn.relu(jax.nn.softmax(x)),
        }

    programs = [program(lambda key, one=one: one, jax.random.key(0))["parts"] for one in made]
    return [*programs, traced(called, jnp.ones(3)), test_fingerprint.checksums()]


def test_checksums_are_the_same_in_another_process():
    code = "import json; from tests.host import test_identity as t; print(json.dumps(t.several()))"
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
    ).stdout
    here = several()
    assert json.loads(there) == here
    # And nothing is the same only because it is not looked at.
    assert len({parts["algorithm"] for parts in here[:3]}) == 3


def test_checksums_see_nested_programs_and_what_they_close_over():
    table = jnp.arange(4.0)

    def of(factor, step, rows, host):
        def body(x, y):
            return jax.lax.cond(x > step, lambda v: v * factor, lambda v: v + y, x), rows[0]

        return traced(
            lambda x: {
                "all": (jax.lax.scan(jax.jit(body), x, rows), jax.pure_callback(host, x, x))
            },
            1.0,
        )["all"]

    def sine(x):
        return np.sin(x) * 1

    def cosine(x):
        return np.cos(x) * 1

    base = (2.0, 3.0, table, sine)
    assert of(*base) == of(*base)
    others = [
        (5.0, 3.0, table, sine),
        (2.0, 4.0, table, sine),
        (2.0, 3.0, table + 1, sine),
        (2.0, 3.0, table, cosine),
    ]
    assert len({of(*base), *(of(*other) for other in others)}) == 5


def test_checksums_tell_what_has_one_shape_apart():
    """Features from targets, examples from steps, one number that is remembered from another."""
    pairs = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 2)

    def checksum(loss, finish=None):
        algorithm = fs.fedavg(loss, optax.sgd(0.1), fs.LocalTraining())
        if finish is not None:
            algorithm = algorithm._replace(client=algorithm.client._replace(finish=finish))
        made = fs.Experiment(algorithm, {"w": 1.0}, pairs, fs.sampling.uniform(1), 2)
        return program(lambda key: made, jax.random.key(0))["parts"]["algorithm"]

    def forward(params, batch, key):
        return (batch["x"] * params["w"] - batch["y"]) ** 2

    def backward(params, batch, key):
        return (batch["y"] * params["w"] - batch["x"]) ** 2

    def divided(by):
        def finish(carry, message, client_state, num_examples, num_steps, key):
            number = {"examples": num_examples, "steps": num_steps}[by].astype(jnp.float32)
            return fs.ClientOutput(
                jax.tree.map(lambda w, w_t: (w - w_t) / number, carry.params, message.params)
            )

        return finish

    checksums = [
        checksum(forward),
        checksum(backward),
        checksum(forward, divided("examples")),
        checksum(forward, divided("steps")),
    ]
    assert len({*checksums}) == 4
    assert checksum(forward) == checksums[0]

    row = jax.eval_shape(lambda: {"loss": jnp.float32(0)})

    def counting(place, first=0):
        return fs.Stop(
            (jnp.int32(first), jnp.int32(0)),
            lambda counts, row: ((counts[0] + 1, counts[1] + 2), counts[place] >= 5),
        )

    memories = [check_stop(stop, row) for stop in (counting(0), counting(1), counting(0, first=1))]
    assert len({*memories}) == 3
    assert check_stop(counting(0), row) == memories[0]


def test_simulate_refuses_another_program(tmp_path):
    key = jax.random.key(0)
    whole = fs.simulate(experiment(), key, out=tmp_path)
    for changes in ({"rule": "all_clients"}, {"rate": 0.2}, {"scale": 2.0}):
        with pytest.raises(ValueError, match=r"holds another experiment .*traced program differs"):
            fs.simulate(experiment(**changes), key, out=tmp_path, resume=True)
    # What was saved before programs were compared is taken, and it is said.
    path = tmp_path / "experiment.json"
    there = json.loads(path.read_text())
    del there["program"]
    path.write_text(json.dumps(there))
    with pytest.warns(UserWarning, match="kept no checksum of the program"):
        again = fs.simulate(experiment(), key, out=tmp_path, resume=True)
    for a, b in zip(jax.tree.leaves(whole.history), jax.tree.leaves(again.history), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sweep_refuses_another_program(tmp_path):
    def sweep(**changes):
        return fs.sweep(
            lambda rate, momentum=0.0: experiment(rate=rate, momentum=0.5, **changes),
            {"rate": [0.1, 0.05]},
            [0],
            out=tmp_path,
            resume=True,
        )

    table = sweep().table()
    assert sweep().table() == table
    for changes, words in (
        ({"rule": "all_clients"}, "aggregation is selected there and all_clients here"),
        ({"scale": 3.0}, "the algorithm .* differs"),
        ({"nonfinite": "drop"}, "nonfinite is keep there and drop here"),
        ({"start": 1.0}, "how the first model is made differs"),
        ({"test": 2.0}, "what is evaluated .* differs"),
    ):
        with pytest.raises(ValueError, match=f"holds another sweep .*{words}"):
            sweep(**changes)
    path = tmp_path / "sweep.json"
    there = json.loads(path.read_text())
    for group in there["groups"]:
        del group["program"]
    path.write_text(json.dumps(there))
    with pytest.warns(UserWarning, match="kept no checksum of the program"):
        assert sweep().table() == table
