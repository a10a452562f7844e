"""The skeletons of CONTRIBUTING.md run as they stand, and say what a declared file must say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.core.registry import declaration_of
from fedjax_sim.core.types import Coefficients
from tests.conftest import linear_loss
from tests.helpers import snippets

TEXT = (snippets.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def skeletons():
    """The declared factories, by name."""
    namespace = {}
    for block in snippets.blocks(TEXT):
        exec(block, namespace)  # under the strict settings of tests, as a file of the package is
    return {name: value for name, value in namespace.items() if declaration_of(value)}


def test_there_is_one_of_each(skeletons):
    assert [*skeletons] == ["feddecay", "capped", "neighbours", "slopes"]
    for factory in skeletons.values():
        declaration = declaration_of(factory)
        assert declaration.help
        for option in declaration.options:
            assert option.help
            option.check(option.default)
            assert option.argument in declaration.parameters


def test_a_round_of_all_four(skeletons):
    """Two clients in a row of three take one step each; NumPy computes the same."""
    dataset = skeletons["slopes"](KEY, num_clients=3)
    assert np.bincount(dataset.test_client_ids).tolist() == [2, 2, 2]
    data = fs.FederatedData.from_arrays(dataset.train, dataset.client_ids)
    rate, decay, start = 0.1, 0.5, {"w": np.ones(1, np.float32), "b": np.ones((), np.float32)}
    local = fs.LocalTraining(epochs=1, batch_size=None)
    algorithm = skeletons["feddecay"](linear_loss, optax.sgd(rate), local, decay)
    rule = skeletons["capped"](4.0)
    cohort = skeletons["neighbours"](2).sample(KEY, 0, data)
    round_fn = jax.jit(fs.make_round(algorithm, rule, fs.execution.vmapped()))
    state, _ = round_fn(KEY, fs.init(algorithm, start, data), data, cohort)

    first, second = np.asarray(cohort.client_ids)
    assert second == (first + 1) % 3
    gradients = []
    for client in (first, second):
        x, y = (dataset.train[name][dataset.client_ids == client] for name in ("x", "y"))
        error = x[:, 0] + 1 - y
        gradients.append(np.array([2 * np.mean(error * x[:, 0]), 2 * np.mean(error)]) + decay)
    expected = 1 - rate * np.mean(gradients, axis=0)
    np.testing.assert_allclose([*state.params["w"], state.params["b"]], expected, rtol=1e-5)


def test_the_rule_caps_weights(skeletons):
    coefficients = skeletons["capped"](4.0)(None, jnp.array([3.0, 8.0]), None)
    assert isinstance(coefficients, Coefficients)
    assert coefficients.weights.tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="decay must be finite and at least 0; got -1"):
        skeletons["feddecay"](linear_loss, optax.sgd(0.1), fs.LocalTraining(), -1.0)


@pytest.mark.slow
def test_the_command_line_takes_them_from_a_file(tmp_path, monkeypatch):
    """The commands of docs/command-line.md, of two rounds each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("\n".join(snippets.blocks(TEXT)), encoding="utf-8")
    page = (snippets.ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    fedjax-sim (.* mine\.py:.*)$", page, re.M)
    assert [command.split()[0] for command in commands] == ["run", "sweep", "run"]
    for command in commands:
        assert main([*command.split(), "--rounds", "2"]) == 0
    runs = (tmp_path / "results" / "decay" / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(runs) == 1 + 3
    assert "decay" in runs[0].split(",")
    configuration = (tmp_path / "results" / "mine" / "configuration.toml").read_text()
    assert 'algorithm = "mine.py:feddecay"' in configuration
    assert "decay = 0.1" in configuration


def test_the_paths_that_it_names_are_there():
    paths = {path for path in re.findall(r"`([\w./-]+)`", TEXT) if "/" in path}
    assert len(paths) > 15
    for path in paths:
        known = path.replace("NAME.py", "").replace("ROOM/", "")
        folders = [snippets.ROOT, snippets.ROOT / "fedjax_sim", snippets.ROOT / "tests"]
        assert any((folder / known).exists() for folder in folders), path
