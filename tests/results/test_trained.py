"""Models in files: what is saved comes back, by name, with where it came from."""

import itertools
import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.results.trained import relabel, save_trained
from tests.conftest import zeros
from tests.helpers import killed

TYPES = ("float32", "bfloat16", "float16", "int8", "uint32", "bool", "float8_e4m3fn", "int4")


class Layer(NamedTuple):
    kernel: object
    bias: object


def leaves():
    def array(shape, dtype, seed):
        return np.random.default_rng(seed).integers(0, 2, shape).astype(jnp.dtype(dtype))

    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.builds(array, shapes, st.sampled_from(TYPES), st.integers(0, 9))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("model") / "model.npz"


# Keys that meet when they are joined, and what no file's name can hold.
KEYS = st.sampled_from(["a", "b", "a/b", "", "\0", "\\", "params", "about.json", "a#2"]) | st.text()


@given(
    tree=st.recursive(
        leaves(),
        lambda inner: (
            st.dictionaries(KEYS, inner, min_size=1, max_size=4)
            | st.dictionaries(st.integers(-2, 9), inner, min_size=1, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_dicts_come_back_as_they_were(file, tree):
    fs.save_params(file, tree)
    same(fs.load_params(file), tree)


@given(
    tree=st.recursive(
        leaves(),
        lambda inner: (
            st.dictionaries(KEYS, inner, max_size=3)
            | st.lists(inner, max_size=3)
            | st.tuples(inner, st.none())
            | st.builds(Layer, inner, inner)
        ),
        max_leaves=8,
    )
)
def test_any_structure_comes_back_by_like(file, tree):
    fs.save_params(file, jax.tree.map(jnp.asarray, tree))
    same(fs.load_params(file, like=tree), tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    same(fs.load_params(file, like=shapes), tree)


def test_leaves_have_readable_names_and_numpy_reads_them(file):
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    fs.save_params(file, {"Dense_0": {"kernel": w}, "rest": [Layer(w, 2.0)], "half": w[0, 0]})
    with np.load(file) as archive:
        assert archive.files == [
            "Dense_0/kernel",
            "half",
            "rest/0/kernel",
            "rest/0/bias",
            "about.json",
        ]
        np.testing.assert_array_equal(archive["Dense_0/kernel"], w)
    nested = fs.load_params(file)
    assert nested["rest"]["0"]["bias"].dtype == np.float32  # a number is what JAX takes it for
    assert nested["rest"]["0"]["bias"] == 2.0


def test_the_same_model_makes_the_same_bytes(file):
    fs.save_params(file, zeros())
    before = file.read_bytes()
    fs.save_params(file, zeros())
    assert file.read_bytes() == before


def test_not_one_damaged_byte_goes_unseen(file):
    params = {"w": np.arange(5, dtype=np.float32), "b": np.ones((), jnp.bfloat16)}
    fs.save_params(file, params)
    whole = file.read_bytes()
    refused = 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            same(fs.load_params(file), params)  # a byte that says nothing of the model
        except ValueError as error:
            # Either outcome is right, so pytest.raises does not fit.
            assert str(error).startswith(f"{file} is no model, or is damaged: ")  # noqa: PT017
            refused += 1
    assert refused > len(whole) / 3
    file.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="is no model, or is damaged"):
        fs.load_params(file)


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ({"w": np.zeros(4, np.float32)}, "b there and not in like"),
        ({**zeros(), "v": np.zeros(2)}, "v missing there"),
        ({"layer": zeros()}, "layer/b, layer/w missing there; b, w there and not in like"),
        (Layer(np.zeros(4), np.zeros(())), "kernel, bias missing there"),
        ({**zeros(), "w": np.zeros(3)}, r"w is float32\[4\] there and float.*\[3\] in like"),
        ({**zeros(), "w": np.zeros(4, jnp.bfloat16)}, r"w is float32\[4\] there and bfloat16\[4\]"),
        (0.0, "params missing there; b, w there"),
        ({str(i): 0.0 for i in range(9)}, "0, 1, 2, 3 and 5 more missing"),
    ],
)
def test_another_structure_is_refused_by_name(file, like, says):
    fs.save_params(file, zeros())
    with pytest.raises(ValueError, match=f"like must have the leaves of .*: .*{says}"):
        fs.load_params(file, like=like)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"a": {"b": "text"}}, "got 'a/b', which is str"),
        ([1.0, jax.random.key(0)], "got '1', which is a key: leave it out"),
        ({"a": np.array([None])}, "got 'a', which is ndarray of object"),
    ],
)
def test_what_is_no_number_is_refused_by_name(file, params, says):
    with pytest.raises(ValueError, match=f"params must be arrays of numbers; {says}"):
        fs.save_params(file, params)


def test_what_is_traced_is_refused(file):
    with pytest.raises(ValueError, match="got 'params', which is being traced"):
        jax.jit(lambda x: fs.save_params(file, x))(1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return fs.simulate(killed.experiment(0.03), 5, out=out, configuration={"lr": 0.03}), out


def test_a_run_leaves_its_model_and_where_it_came_from(run):
    simulation, out = run
    trained = fs.load(out)
    same(trained.params, jax.tree.map(np.asarray, simulation.state.params))
    assert trained[1:8] == ({"lr": 0.03}, 5, 60, 60, "finished", "final", None)
    assert trained.versions["jax"] == jax.__version__
    assert (
        repr(trained)
        == f"Trained(5 parameters in 2 arrays, round 60 of 60, seed 5, {trained.path})"
    )
    same(fs.load(out, like=zeros()).params, trained.params)
    same(fs.load(trained.path, {"lr": 0.03}, seed=5).params, trained.params)
    with pytest.raises(ValueError, match=r"holds no models of lr=0.1; .* of \(lr=0.03\)"):
        fs.load(out, {"lr": 0.1})
    with pytest.raises(ValueError, match="unknown hyper-parameter 'rate'; known are lr, seed"):
        fs.load(out, {"rate": 0.1})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"lr": 0.5}, "no models of lr=0.5; .* one of its 12: lr 0.1, 0.2; mode 'a', 'b'; seed 0,"),
        ({"lr": 0.1}, r"6 models of lr=0.1; .* one of \(mode='a', seed=0\), \(mode='a', seed=1\)"),
        ({"lr": 0.1, "mode": "b", "seed": 2}, r"4 models of .* one of \(epochs=1\), .*=4\)$"),
        ({}, "several models; .* one of its 12: lr 0.1, 0.2; mode 'a', 'b'; seed 0, 1, 2$"),
        ({"rate": 0.1}, "unknown hyper-parameter 'rate'; known are lr, mode, seed"),
        ({"momentum": 0.1}, "did you mean 'client_momentum'"),
    ],
)
def test_which_models_there_are_is_said(tmp_path, asked, says):
    (tmp_path / "models").mkdir()
    more = {"client_momentum": 0.9} if "momentum" in asked else {}
    epochs = [{"epochs": e} for e in (1, 2, 3, 4)] if "mode" in asked else [{}]
    axes = itertools.product((0.1, 0.2), "ab", (0, 1, 2), epochs)
    for i, (lr, mode, seed, epoch) in enumerate(axes):
        save_trained(
            tmp_path / "models" / f"{i:06d}-{seed}.npz",
            zeros(),
            seed=seed,
            round=1,
            num_rounds=1,
            configuration={"lr": lr, "mode": mode, **more, **epoch},
            status="finished",
        )
    if "mode" in asked:
        assert fs.load(tmp_path, asked | {"epochs": 3}).configuration["epochs"] == 3
    with pytest.raises(ValueError, match=says):
        fs.load(tmp_path, asked)


@pytest.mark.parametrize("params", [np.ones(3), {"a": {"b": np.ones((2, 2))}, "c": np.zeros(())}])
def test_a_model_is_given_another_configuration_and_stays_as_it_was(tmp_path, params):
    path = tmp_path / "model.npz"
    about = {"seed": 1, "round": 3, "num_rounds": 4, "status": "stopped"}
    save_trained(path, params, configuration={"lr": 0.1}, **about)
    before = fs.load(path)
    relabel(path, {"lr": 0.1, "patience": 2, "names": ("a", "b")})
    after = fs.load(path, like=params)
    same(after.params, params)
    assert after.configuration == {"lr": 0.1, "patience": 2, "names": ["a", "b"]}
    assert after[2:] == before[2:]
    written = path.read_bytes()
    save_trained(tmp_path / "at once.npz", params, configuration=after.configuration, **about)
    assert (tmp_path / "at once.npz").read_bytes() == written


def test_a_seed_is_its_key(run):
    simulation, out = run
    back = fs.simulate(
        killed.experiment(0.03),
        jax.random.key(5),
        out=out,
        resume=True,
        configuration={"lr": 0.03},
    )
    same(back.state.params, simulation.state.params)
    assert fs.load(out).seed is None  # only the key is known
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"a seed in \[0, 2\^32\); got {wrong}"):
            fs.simulate(killed.experiment(0.03), wrong)
    for wrong in (True, 0.5, "0"):
        with pytest.raises(ValueError, match="key must be a typed key, as"):
            fs.simulate(killed.experiment(0.03), wrong)


def test_a_folder_without_a_model_says_what_to_do(run, tmp_path):
    _, out = run
    shutil.copytree(out, tmp_path / "old")
    (tmp_path / "old" / "model.npz").unlink()
    with pytest.raises(ValueError, match=r"holds no model.npz .*was killed before its end; resume"):
        fs.load(tmp_path / "old")
    fs.simulate(
        killed.experiment(0.03), 5, out=tmp_path / "old", resume=True, configuration={"lr": 0.03}
    )
    assert fs.load(tmp_path / "old").round == 60
    with pytest.raises(ValueError, match="is not there"):
        fs.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no model.npz .*it is no folder of fs.simulate"):
        fs.load(tmp_path)
    fs.save_params(tmp_path / "model.npz", zeros())
    with pytest.raises(ValueError, match=r"is a model of no run .*read it by fs.load_params"):
        fs.load(tmp_path)


def test_a_model_that_cannot_be_written_costs_no_run(run, tmp_path):
    simulation, out = run
    shutil.copytree(out, tmp_path / "run")
    (tmp_path / "run" / "model.npz").unlink()
    (tmp_path / "run" / "model.npz").mkdir()
    with pytest.raises(fs.SaveError, match=r"model.npz was not written") as error:
        fs.simulate(
            killed.experiment(0.03),
            5,
            out=tmp_path / "run",
            resume=True,
            configuration={"lr": 0.03},
        )
    same(error.value.partial.state.params, simulation.state.params)


def test_clients_alone_leave_their_own_models(tmp_path):
    experiment = fs.baselines.local_only(killed.experiment(0.03)._replace(num_rounds=2))
    simulation = fs.simulate(experiment, 0, out=tmp_path)
    own = fs.baselines.local_models(simulation.state)
    same(fs.load(tmp_path).params, jax.tree.map(np.asarray, own))


def test_about_is_json_whatever_the_configuration(run, tmp_path):
    experiment = killed.experiment(0.03)._replace(num_rounds=1)
    odd = {"lr": np.float32(0.5), "none": None, "bad": float("nan"), "names": ("a", "b")}
    fs.simulate(experiment, 0, out=tmp_path, configuration=odd)
    trained = fs.load(tmp_path, {"lr": np.float32(0.5), "names": ("a", "b")})
    assert trained.configuration == {"lr": 0.5, "none": None, "bad": None, "names": ["a", "b"]}
    assert json.dumps(trained.configuration)
