"""What a user brings along: an algorithm, a model and data of their own files, run as ours are."""

import csv
import json
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.settings import build as problem
from fedjax_sim.settings import stores
from fedjax_sim.settings.options import VOCABULARY, vocabulary_of
from fedjax_sim.settings.setting import Setting

ALGORITHM = """
import optax
import fedjax_sim as fs
from fedjax_sim.core.registry import FROM_0_TO_1, Option, declare


@declare(
    "FedAvg whose server keeps a share of the old model",
    Option("keep", "the share", default=0.5, range=FROM_0_TO_1, traced=True),
)
def inert(loss_fn, client_optimizer, local, keep):
    return fs.fedavg(loss_fn, client_optimizer, local, optax.sgd(1.0 - keep))


def plain(loss_fn, client_lr, local, keep=0.5, alpha=2.0):
    return inert(loss_fn, optax.sgd(client_lr), local, keep)


def distils(loss_fn, client_optimizer, local, unlabelled):
    assert set(unlabelled) == {"x"}
    return fs.fedavg(loss_fn, client_optimizer, local)


def broken(loss_fn, local):
    raise KeyError("lost")


def nothing(loss_fn, local):
    return loss_fn


def unclear(loss_fn, temperature):
    return fs.fedsgd(loss_fn, optax.sgd(temperature))
"""
SMALL = ["--clients", "6", "--partition", "iid", "--fraction", "0.5", "--epochs", "1"]
SMALL += ["--rounds", "2", "--batch-size", "full"]


@pytest.fixture
def mine(tmp_path):
    """A file with algorithms."""
    file = tmp_path / "mine.py"
    file.write_text(ALGORITHM)
    return file


def refusal(capsys, *options):
    """The one line in which a command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main([*map(str, options)])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_algorithm_of_a_file_is_run_swept_and_reported(mine, tmp_path, capsys):
    """An option of its own, on the command line, in an axis, in a file and on the page."""
    name = f"{mine}:inert"
    run, swept, page = tmp_path / "run", tmp_path / "sweep", tmp_path / "page.html"
    chosen = ["--algorithm", name, *SMALL]
    assert main(["run", *chosen, "--keep", "1", "--out", str(run)]) == 0
    configuration = (run / "configuration.toml").read_text()
    assert "keep = 1.0" in configuration
    assert f"algorithm = {json.dumps(name)}" in configuration

    grid = ["--grid", "keep=0,0.5,1", "--seeds", "1"]
    assert main(["sweep", *chosen, *grid, "--out", str(swept)]) == 0
    said = capsys.readouterr().out
    assert "in 1 group, each compiled once; traced: keep; static: none" in said
    with (swept / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracy = {float(row["keep"]): float(row["test_accuracy"]) for row in rows}
    assert [*accuracy] == [0.0, 0.5, 1.0]
    assert accuracy[0.0] > accuracy[1.0]
    assert main(["report", str(run), str(swept), "--out", str(page)]) == 0
    assert "keep" in page.read_text()


def test_one_whose_server_distils_is_given_examples(mine):
    """Which its clients then have not."""
    setting = Setting(algorithm=f"{mine}:distils", clients=6, unlabelled=0.3).resolved()
    assert problem.problem(setting).data.num_examples.sum() == 1437 - round(0.3 * 1437)
    assert problem.experiment(setting).algorithm.client is not None


@pytest.mark.slow
def test_it_is_resumed_by_the_name_that_is_there_unless_it_changed(mine, tmp_path, capsys):
    """It keeps all of the old model, which is the same after more rounds."""
    out = tmp_path / "run"
    assert (
        main(["run", "--algorithm", f"{mine}:inert", *SMALL, "--keep", "1", "--out", str(out)]) == 0
    )
    trained = fs.load(out).params
    assert main(["run", "--resume", "--rounds", "3", "--out", str(out)]) == 0
    resumed = fs.load(out)
    assert resumed.round == 3
    jax.tree.map(np.testing.assert_array_equal, trained, resumed.params)
    mine.write_text(ALGORITHM.replace("1.0 - keep", "1.0 - keep / 2"))
    line = refusal(capsys, "run", "--resume", "--rounds", "4", "--out", out)
    assert "the traced program differs: the algorithm" in line


def test_an_undeclared_one_has_the_options_of_its_signature(mine):
    name = f"{mine}:plain"
    vocabulary = vocabulary_of({"algorithm": name})
    own = [option for option in vocabulary.names if option not in VOCABULARY.names]
    # Its alpha is not that of the split.
    assert own == ["keep", "plain_alpha"]
    resolved = Setting.of({"algorithm": name, "alpha": 0.1, "plain_alpha": 3.0}).resolved()
    assert resolved.options == {"alpha": 0.1, "keep": 0.5, "plain_alpha": 3.0}
    assert resolved.client.lr == 0.1
    assert resolved.server is None
    assert "server_lr" not in resolved.values()


@pytest.mark.parametrize(
    ("algorithm", "more", "message"),
    [
        ("none.py:inert", [], "--algorithm none.py:inert: there is no file none.py"),
        ("mine.py", [], "must name a function of the file, as mine.py:FUNCTION"),
        ("mine.py:innert", [], "mine.py has no function innert; did you mean inert?"),
        ("mine.py:broken", [], "mine.py:broken failed: KeyError: 'lost'"),
        ("mine.py:nothing", [], "must return an fs.FederatedAlgorithm; got CrossEntropy"),
        ("mine.py:unclear", [], "its parameter temperature has no default, and is none of loss_fn"),
        ("bad.py:inert", [], "bad.py:inert cannot be imported: ZeroDivisionError: division by"),
        ("mine.py:inert", ["--keep", "2"], "--keep must be finite and in [0, 1]; got 2.0"),
        ("mine.py:inert", ["--kep", "1"], "unrecognized arguments: --kep; did you mean --keep?"),
        ("mine.py:inert", ["--mu", "1"], "--mu belongs to --algorithm"),
        ("taken.py:taken", [], 'declare it as Option("taken_alpha", ..., parameter="alpha")'),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    mine, tmp_path, monkeypatch, capsys, algorithm, more, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    taken = ALGORITHM.replace("inert", "taken").replace('"keep"', '"alpha"')
    (tmp_path / "taken.py").write_text(taken)
    line = refusal(capsys, "run", "--algorithm", algorithm, *SMALL, *more, "--out", "out")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_option_is_known_by_the_nearest_and_whose_it_is(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text("shard_per_client = 3\n")
    line = refusal(capsys, "run", config, "--out", tmp_path / "out")
    assert "did you mean 'shards_per_client' (of partition shards)?" in line


def test_a_model_of_a_file(tmp_path, capsys):
    file = tmp_path / "models.py"
    file.write_text(
        "import fedjax_sim as fs\n"
        "def narrow(input_shape, outputs, width=3):\n"
        "    return fs.models.mlp(input_shape, (width,), outputs)\n"
        "def wrong(input_shape):\n"
        "    return input_shape\n"
    )
    chosen = Setting.of({"model": f"{file}:narrow", "width": 5}).resolved()
    assert chosen.values()["width"] == 5
    params = jax.eval_shape(problem.problem(chosen).init, jax.random.key(0))
    assert {x.shape for x in jax.tree.leaves(params)} == {(64, 5), (5,), (5, 10), (10,)}
    line = refusal(capsys, "run", "--model", f"{file}:wrong", *SMALL, "--out", tmp_path / "other")
    assert "must return an fs.models.Model; got tuple" in line


def clients(seed=0):
    """Two clients, of four and six examples, who have three classes of two features."""
    rng = np.random.default_rng(seed)
    sizes = {"a": 4, "b": 6}
    return {name: (rng.normal(size=(n, 2)).round(2), np.arange(n) % 3) for name, n in sizes.items()}


def write_csv(folder):
    for name, (x, y) in clients().items():
        rows = ["u,y,v", *(f"{u},{label},{v}" for (u, v), label in zip(x, y, strict=True))]
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")


def write_npz(folder):
    for name, (x, y) in clients().items():
        np.savez(folder / f"{name}.npz", x=x, y=y)


def write_leaf(folder):
    users = {name: {"x": x.tolist(), "y": y.tolist()} for name, (x, y) in clients().items()}
    counts = [len(data["y"]) for data in users.values()]
    content = {"users": [*users], "num_samples": counts, "user_data": users}
    (folder / "all.json").write_text(json.dumps(content))


@pytest.mark.parametrize("write", [write_csv, write_npz, write_leaf])
def test_a_folder_of_data_is_trained_on(tmp_path, capsys, write):
    data, out = tmp_path / "data", tmp_path / "run"
    for part in ("train", "test"):
        (data / part).mkdir(parents=True)
        write(data / part)
    assert main(["data", "describe", "--data", str(data)]) == 0
    assert "2 clients, 10 training examples" in capsys.readouterr().out
    short = ["--rounds", "2", "--epochs", "1", "--fraction", "1", "--batch-size", "full"]
    assert main(["run", "--data", str(data), *short, "--out", str(out)]) == 0
    configuration = (out / "configuration.toml").read_text()
    assert 'partition = "natural"' in configuration
    assert "clients = 2" in configuration
    shapes = {x.shape for layer in fs.load(out).params.values() for x in layer.values()}
    assert shapes == {(2, 3), (3,)}


def test_clients_keep_their_names_where_a_part_is_held_out(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        write_npz(tmp_path / "data" / part)
    setting = Setting(dataset=str(tmp_path / "data"), validation=0.3).resolved()
    store = stores.write(setting.data, tmp_path / "store")
    assert store.client_names == ("a", "b")
    assert store.num_examples.sum() == 7


def write_hdf5(folder, part):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / f"fed_{part}.h5", "w") as file:
        for name, (x, y) in clients().items():
            file[f"examples/{name}/pixels"] = np.tile(x[:, :, None], (1, 1, 2)).astype(np.float32)
            file[f"examples/{name}/label"] = y


def write_sqlite(folder, part):
    with closing(sqlite3.connect(folder / f"fed_{part}.sqlite")) as connection:
        connection.execute("CREATE TABLE federated_data(client_id, data, num_examples)")
        for name, (x, y) in clients().items():
            arrays = {"pixels": np.tile(x[:, :, None], (1, 1, 2)).astype(np.float32), "label": y}
            record = (name, zlib.compress(msgpack_serialize(arrays)), len(y))
            connection.execute("INSERT INTO federated_data VALUES (?, ?, ?)", record)
        connection.commit()


@pytest.mark.parametrize("write", [write_hdf5, write_sqlite])
def test_two_files_of_a_federation(tmp_path, capsys, write):
    for part in ("train", "test"):
        write(tmp_path, part)
    assert main(["data", "describe", "--data", str(tmp_path), "--validation", "0.2"]) == 0
    assert "2 clients, 8 training examples" in capsys.readouterr().out
    resolved = Setting(dataset=str(tmp_path)).resolved()
    assert (resolved.facts.kind, resolved.clients, resolved.partition) == ("images", 2, "natural")
    other = Setting.of({"dataset": str(tmp_path), "task": "regression"}).resolved()
    assert (other.model, other.score) == ("mlp", "test_r2")


def test_data_of_a_function(tmp_path, capsys):
    file = tmp_path / "data.py"
    file.write_text(
        "import numpy as np, jax\n"
        "import fedjax_sim as fs\n"
        "def line(key, num_clients, slope=2.0):\n"
        "    x = np.linspace(0, 1, 8 * num_clients, dtype=np.float32)[:, None]\n"
        "    part = {'x': x, 'y': slope * x[:, 0]}\n"
        "    return fs.datasets.Dataset(part, part, None, np.arange(len(x)) % num_clients)\n"
        "def half(key):\n"
        "    return fs.datasets.Dataset({'x': np.ones(3)}, {}, None)\n"
    )
    setting = Setting.of({"dataset": f"{file}:line", "clients": 4, "slope": 3.0}).resolved()
    assert (setting.score, setting.model, setting.partition) == ("test_r2", "mlp", "natural")
    assert setting.values()["slope"] == 3.0
    line = refusal(capsys, "run", "--data", f"{file}:half", "--out", tmp_path / "out")
    assert "must have x and y of equally many examples in train" in line


def test_a_folder_of_no_form_says_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    line = refusal(capsys, "run", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert (
        "must hold one of train/manifest.json, train/*.json, train/*.npz, train/*.csv, *train*.h5"
        in line
    )
    for command in ("run", "sweep", "compare"):
        line = refusal(capsys, command, "--data", tmp_path / "no", "--out", tmp_path / "out")
        assert line.endswith("no: there is no such folder")


def test_help_is_there_without_jax():
    code = (
        "import sys\nfrom fedjax_sim.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as exit: assert exit.code == 0\n"
        "assert not {'jax', 'optax', 'numpy'} & {*sys.modules}, {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train many configurations" in done.stdout
