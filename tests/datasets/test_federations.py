"""Federations in users' own files: their order and names, labels or targets, FedJAX's SQLite."""

import codecs
import importlib
import json
import re
import sqlite3
import sys
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.datasets import files
from fedjax_sim.datasets.formats import by_client
from tests.datasets.test_datasets import Columns, write_leaf

npz_module, leaf_module = (
    importlib.import_module(f"fedjax_sim.datasets.formats.{name}") for name in ("npz", "leaf")
)
PARTS = ("train", "test")


def write_npz(folder, clients, part="train"):
    (folder / part).mkdir(parents=True, exist_ok=True)
    for client, (x, y) in clients.items():
        np.savez(folder / part / f"{client}.npz", x=x, y=y)


def examples(y, x=None):
    y = np.asarray(y)
    return np.ones((len(y), 2), np.float32) if x is None else np.asarray(x), y


# --- labels or targets


def leaf_of(folder, train, test):
    for part, y in zip(PARTS, (train, test), strict=True):
        write_leaf(folder / part, {"a": {"x": [[0.5]] * len(y), "y": y}})
    return fs.datasets.leaf


def npz_of(folder, train, test):
    for part, y in zip(PARTS, (train, test), strict=True):
        write_npz(folder, {"a": examples(y)}, part)
    return fs.datasets.npz


def hdf5_of(folder, train, test):
    h5py = pytest.importorskip("h5py")
    for part, y in zip(PARTS, (train, test), strict=True):
        with h5py.File(folder / f"{part}.h5", "w") as file:
            file["examples/a/pixels"], file["examples/a/label"] = examples(y)
    return fs.datasets.hdf5


def sqlite_of(folder, train, test):
    for part, y in zip(PARTS, (train, test), strict=True):
        x, y = examples(y)
        write_sqlite(folder / f"{part}.sqlite", {b"a": {"pixels": x, "label": y}})
    return fs.datasets.sqlite


def hugging_face_of(folder, train, test):
    whole = [
        Columns({"who": ["a"] * len(y), "x": np.ones((len(y), 2)), "y": y}) for y in (train, test)
    ]

    def load(path, task=None):
        return fs.datasets.hugging_face(whole[0], "who", "x", "y", test=whole[1], task=task)

    return load


LOADERS = [leaf_of, npz_of, hdf5_of, sqlite_of, hugging_face_of]


@pytest.mark.parametrize("made_by", LOADERS)
def test_whole_numbers_written_as_floats_are_labels(tmp_path, made_by):
    """FedProx's generators write labels so: json.dump of numpy's 4.0."""
    load = made_by(tmp_path, [4.0, 3.0], [1])
    found = load(tmp_path)
    assert found.num_classes == 5
    assert (found.train["y"].tolist(), found.test["y"].tolist()) == ([4, 3], [1])
    assert found.train["y"].dtype == found.test["y"].dtype == np.int32
    found = load(tmp_path, task="regression")
    assert found.num_classes is None
    assert found.train["y"].dtype == found.test["y"].dtype == np.float32
    with pytest.raises(ValueError, match="task must be classification or regression, or None"):
        load(tmp_path, task="labels")


@pytest.mark.parametrize("made_by", LOADERS)
def test_broken_numbers_are_targets(tmp_path, made_by):
    load = made_by(tmp_path, [4, 3], [1.5])
    found = load(tmp_path)
    assert found.num_classes is None
    assert (found.train["y"].tolist(), found.test["y"].tolist()) == ([4, 3], [1.5])
    with pytest.raises(ValueError, match=r"must be whole numbers, as task is cl.*; got 1.5 of cl"):
        load(tmp_path, task="classification")


NUMBERS = st.lists(st.sampled_from([0, 1, 3, 7, 0.0, 2.0, 5.0, 0.5, 2.25]), min_size=1, max_size=6)


@given(st.lists(NUMBERS, min_size=1, max_size=3), NUMBERS)
def test_what_y_is_does_not_depend_on_how_its_numbers_are_written(train, test):
    """1 and 1.0 are the same number, in whichever client and part."""
    both = [*(number for some in train for number in some), *test]
    found = by_client.joined(
        {str(k): examples(some) for k, some in enumerate(train)}, {"0": examples(test)}
    )
    whole = all(float(number).is_integer() for number in both)
    assert found.num_classes == (1 + max(both) if whole else None)
    assert found.train["y"].dtype == (np.int32 if whole else np.float32)
    np.testing.assert_array_equal(found.train["y"], [number for some in train for number in some])
    np.testing.assert_array_equal(found.test["y"], test)


def test_inputs_of_whole_numbers_in_one_part_are_inputs():
    """JSON of 1.0 may be 1, so that a test set happens to have no broken number."""
    train, test = {"a": examples([0], [[0.5]])}, {"a": examples([1], [[1]])}
    for one, other in ((train, test), (test, train)):
        found = by_client.joined(one, other)
        assert found.train["x"].dtype == found.test["x"].dtype == np.float32
    assert by_client.joined(test, test).train["x"].dtype == np.int32


@pytest.mark.parametrize(
    ("y", "task", "says"),
    [
        ([-1.0, 1.0], None, 'labels from 0 up; got a negative one, -1 .*task="regression"'),
        ([8e9, 1.0], None, 'of 32 bits; got 8000000000.0 .targets of .* need task="regression"'),
        ([120000.0, 95000.0], None, "whole numbers up to 120000, .*may be labels or targets: say"),
        ([1.0, np.inf], "classification", "must be whole numbers.*; got inf of client a of train"),
        ([1.0, np.nan], "classification", "must be whole numbers.*; got nan of client a of train"),
    ],
)
def test_what_could_be_either_is_asked_for(y, task, says):
    clients = {"a": examples(y)}
    with pytest.raises(ValueError, match=says):
        by_client.joined(clients, clients, task=task)


def test_many_classes_when_they_are_asked_for():
    clients = {"a": examples([120000.0, 95000.0])}
    assert by_client.joined(clients, clients, task="classification").num_classes == 120001
    targets = by_client.joined(clients, clients, task="regression")
    assert targets.train["y"].tolist() == [120000, 95000]
    few = {"a": examples([5000])}  # integers are labels as they are
    assert by_client.joined(few, few).num_classes == 5001


# --- order and names


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1), st.sampled_from(["", "f", "f_0"]))
def test_numbers_in_names_are_in_order(numbers, before):
    names = [f"{before}{number}.npz" for number in numbers]
    found = sorted(names, key=files.natural_order)
    assert found == [f"{before}{number}.npz" for number in sorted(numbers)]


@given(st.lists(st.text("01a9b.é²", max_size=9), unique=True))
def test_any_names_have_one_order(names):
    assert sorted(sorted(names, key=files.natural_order)) == sorted(names)
    assert len({files.natural_order(name) for name in names}) == len(names)  # no ties


def test_natural_order_by_hand():
    names = ["b2", "b10", "b02", "a", "b", "b1c10", "b1c9", "9" * 5000, "10"]
    assert sorted(names, key=files.natural_order) == [
        "10",
        "9" * 5000,
        "a",
        "b",
        "b1c9",
        "b1c10",
        "b02",
        "b2",
        "b10",
    ]


def test_client_2_is_not_file_10(tmp_path):
    for part in PARTS:
        write_npz(tmp_path, {str(k): examples([k, k]) for k in range(12)}, part)
        (tmp_path / part / "._0.npz").write_bytes(b"left by a system")
    found = fs.datasets.npz(tmp_path)
    assert found.client_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(found.client_ids, found.train["y"])


def test_leafs_users_over_several_files(tmp_path):
    for part in PARTS:
        for number in (10, 2, 1):
            write_leaf(
                tmp_path, {f"u{number}{name}": {"x": [[0.5]], "y": [number]} for name in "ba"}
            )
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / "all_data.json").rename(tmp_path / part / f"all_data_{number}_niid.json")
    found = fs.datasets.leaf(tmp_path)
    assert found.client_names == ("u1b", "u1a", "u2b", "u2a", "u10b", "u10a")
    assert found.train["y"].tolist() == [1, 1, 2, 2, 10, 10]


def test_hdf5s_groups(tmp_path):
    h5py = pytest.importorskip("h5py")
    for part in PARTS:
        with h5py.File(tmp_path / f"{part}.h5", "w") as file:
            for k in (10, 9, 1):
                file[f"examples/f{k}/pixels"], file[f"examples/f{k}/label"] = examples([k])
    found = fs.datasets.hdf5(tmp_path)
    assert found.client_names == ("f1", "f9", "f10")
    assert found.train["y"].tolist() == [1, 9, 10]
    again = fs.datasets.hdf5((tmp_path / "train.h5", str(tmp_path / "test.h5")))
    assert again.train["y"].tolist() == [1, 9, 10]
    with pytest.raises(FileNotFoundError, match=r"two files .*; got .*no.h5, which is none"):
        fs.datasets.hdf5((tmp_path / "train.h5", tmp_path / "no.h5"))
    with pytest.raises(ValueError, match=r"a folder, or two files .train, test.; got 1"):
        fs.datasets.hdf5((tmp_path / "train.h5",))


@pytest.mark.parametrize(
    ("who", "names", "ids", "targets"),
    [
        (["f10", "f9", "f10"], ("f9", "f10"), [0, 1, 1], [1.5, 0.5, 2.5]),
        ([b"f10", b"f9", b"f10"], ("f9", "f10"), [0, 1, 1], [1.5, 0.5, 2.5]),
        ([10, 9, -1], ("-1", "9", "10"), [0, 1, 2], [2.5, 1.5, 0.5]),
        (["b3", "b20", "b1"], ("b1", "b3", "b20"), [0, 1, 2], [2.5, 0.5, 1.5]),
    ],
)
def test_hugging_faces_values(who, names, ids, targets):
    whole = Columns({"who": who, "x": np.ones((3, 2)), "y": [0.5, 1.5, 2.5]})
    found = fs.datasets.hugging_face(whole, "who", "x", "y", test=whole)
    assert found.client_names == names
    assert found.client_ids.tolist() == ids
    assert found.train["y"].tolist() == targets


class Declared:
    """What is asked of a `ClassLabel`."""

    def __init__(self, *names):
        self.names, self.num_classes = list(names), len(names)


def with_features(features, **columns):
    made = Columns(columns)
    made.features = features
    return made


def test_classes_that_are_declared_count():
    classes = {"y": Declared(*map(str, range(62)))}
    train, test = (
        with_features(classes, who=["a", "b"], x=np.ones((2, 2)), y=y) for y in ([3, 4], [5, 0])
    )
    assert fs.datasets.hugging_face(train, "who", "x", "y", test=test).num_classes == 62
    targets = fs.datasets.hugging_face(train, "who", "x", "y", test=test, task="regression")
    assert targets.num_classes is None
    other = with_features({"y": Declared("0", "1")}, x=np.ones((1, 2)), y=[1])
    with pytest.raises(ValueError, match="y must have the same classes in train and test; got"):
        fs.datasets.hugging_face(train, "who", "x", "y", test=other)
    wrong = with_features(classes, x=np.ones((1, 2)), y=[62])
    with pytest.raises(ValueError, match="labels below the 62 classes declared; got 62"):
        fs.datasets.hugging_face(train, "who", "x", "y", test=wrong)


def test_class_labels_of_the_library():
    library = pytest.importorskip("datasets")
    features = library.Features(
        x=library.Sequence(library.Value("float32")),
        who=library.Value("string"),
        y=library.ClassLabel(num_classes=62),
    )
    whole = library.Dataset.from_dict(
        {"x": [[0.5], [1.5]], "who": ["f10", "f9"], "y": [3, 4]}, features=features
    )
    found = fs.datasets.hugging_face(whole, "who", "x", "y", test=whole)
    assert (found.num_classes, found.client_names) == (62, ("f9", "f10"))
    assert found.train["y"].tolist() == [4, 3]


# --- FedJAX's SQLite


def packed(value):
    """As FedJAX's serialization writes it: extension 1 is an array, 4 an array of bytes."""
    if value.dtype.hasobject:
        return msgpack.ExtType(4, msgpack.packb((value.shape, value.tolist())))
    return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))


def record(arrays):
    return zlib.compress(msgpack.packb({name: packed(x) for name, x in arrays.items()}))


def write_sqlite(path, clients, count=None):
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE federated_data (client_id BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL, "
            "num_examples INTEGER NOT NULL)"
        )
        for client, arrays in clients.items():
            data = arrays if isinstance(arrays, bytes) else record(arrays)
            size = 1 if isinstance(arrays, bytes) else len(next(iter(arrays.values())))
            connection.execute(
                "INSERT INTO federated_data VALUES (?, ?, ?)", (client, data, count or size)
            )
    connection.close()


def emnist(client, n):
    rng = np.random.default_rng(client)
    return {
        "pixels": rng.random((n, 28, 28), np.float32),
        "label": rng.integers(0, 62, n).astype(np.int32),
    }


def test_fedjaxs_emnist(tmp_path):
    names = [b"ba56:f0010_14", b"01af:f0002_03", b"ffff:f3999_00"]
    parts = [{name: emnist(k, 2 + k) for k, name in enumerate(names)}, {names[1]: emnist(9, 4)}]
    for part, clients in zip(PARTS, parts, strict=True):
        write_sqlite(tmp_path / f"federated_emnist_{part}.sqlite", clients)
    found = fs.datasets.sqlite(tmp_path)
    assert found.client_names == ("ba56:f0010_14", "01af:f0002_03", "ffff:f3999_00")
    assert found.client_ids.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    for columns, clients in ((found.train, parts[0]), (found.test, parts[1])):
        expected = np.concatenate([client["pixels"] for client in clients.values()])[..., None]
        np.testing.assert_array_equal(columns["x"], expected)
        labels = np.concatenate([client["label"] for client in clients.values()])
        np.testing.assert_array_equal(columns["y"], labels)
    data = fs.FederatedData.from_arrays(found.train, found.client_ids)
    assert data.num_examples.tolist() == [2, 3, 4]


def test_which_of_fedjaxs_files_is_asked_for(tmp_path):
    """FedJAX keeps them all in one folder."""
    one = {b"a": emnist(0, 2)}
    for name in ("federated_emnist", "federated_emnist_digitsonly"):
        for part in PARTS:
            write_sqlite(tmp_path / f"{name}_{part}.sqlite", one)
    with pytest.raises(ValueError, match=r"with 2: .*_digitsonly_train.sqlite and .*_emnist_train"):
        fs.datasets.sqlite(tmp_path)
    found = fs.datasets.sqlite([tmp_path / f"federated_emnist_{part}.sqlite" for part in PARTS])
    assert found.train["x"].shape == (2, 28, 28, 1)
    with pytest.raises(FileNotFoundError, match=r"one \*train\*.sqlite; got .*, with none"):
        fs.datasets.sqlite(tmp_path / "nowhere")


def test_fedjaxs_cifar100(tmp_path):
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8)
    client = {"image": images, "coarse_label": np.array([1, 2]), "label": np.array([99, 3])}
    for part in PARTS:
        write_sqlite(tmp_path / f"federated_cifar100_{part}.sqlite", {7: client})
    found = fs.datasets.sqlite(tmp_path, x="image")
    np.testing.assert_allclose(found.train["x"], images / 255, rtol=1e-6)
    assert (found.train["y"].tolist(), found.num_classes) == ([99, 3], 100)
    assert found.client_names == ("7",)
    with pytest.raises(ValueError, match="client 7, must have an array pixels; got image, coarse"):
        fs.datasets.sqlite(tmp_path)


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        (
            {b"a": {"pixels": np.array([b"To be"], object), "label": np.ones(1, int)}},
            "client a, must have numbers in pixels; got text.*fs.datasets.npz",
        ),
        ({b"a": b"no zlib"}, "client a, must be a dictionary of arrays in msgpack, compressed by"),
        ({b"a": zlib.compress(b"\xc1")}, "client a, must be a dictionary of arrays in msgpack"),
        ({b"a": zlib.compress(record({"label": np.ones(3)})[:9])}, "client a, must be a dict"),
        ({b"a": zlib.compress(msgpack.packb([1]))}, "must be a dictionary of arrays; got list"),
        (
            {
                b"a": zlib.compress(
                    msgpack.packb(
                        {"pixels": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}
                    )
                )
            },
            "client a, must be a dictionary of arrays in",
        ),
        ({b"a": emnist(0, 1), "a": emnist(0, 1)}, "holds client a twice"),
        ({b"a": {"pixels": np.ones((1, 2)), "label": np.ones((2, 1))}}, "have 1 examples; got 2"),
    ],
)
def test_what_is_not_fedjaxs(tmp_path, clients, says):
    for part in PARTS:
        write_sqlite(tmp_path / f"{part}.sqlite", clients)
    with pytest.raises(ValueError, match=f"train.sqlite.*{says}"):
        fs.datasets.sqlite(tmp_path)


def test_another_database(tmp_path):
    for part in PARTS:
        with sqlite3.connect(tmp_path / f"{part}.sqlite") as connection:
            connection.execute("CREATE TABLE examples (a)")
        connection.close()
    with pytest.raises(ValueError, match="no such table: federated_data; its tables are examples"):
        fs.datasets.sqlite(tmp_path)
    (tmp_path / "train.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(ValueError, match="must be FedJAX's SQLite, with a table federated_data"):
        fs.datasets.sqlite(tmp_path)


def test_python_without_sqlite(tmp_path, monkeypatch):
    sqlite_of(tmp_path, [1], [1])
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(ImportError, match="sqlite needs sqlite3"):
        fs.datasets.sqlite(tmp_path)


# --- what is refused, with the way round


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_pfllibs_pickles_are_refused_with_what_converts_them(tmp_path, capsys):
    """As PFLlib's dataset_utils.py saves them: one entry, a pickled dictionary."""
    for part in PARTS:
        (tmp_path / part).mkdir()
        for k in (0, 2, 10):
            with (tmp_path / part / f"{k}.npz").open("wb") as file:
                client = {"x": np.full((2, 1, 4, 4), k, np.float32), "y": np.array([k, 0])}
                np.savez_compressed(file, data=client)
    with pytest.raises(
        ValueError, match=r"train/0.npz holds pickled objects .data., as PFLlib's"
    ) as caught:
        fs.datasets.npz(tmp_path)
    code = str(caught.value).split("all of them once: ")[1]
    assert code == npz_module.CONVERT
    exec(code, {"directory": tmp_path, "numpy": np, "pathlib": __import__("pathlib")})
    found = fs.datasets.npz(tmp_path)
    assert found.client_names == ("0", "2", "10")
    assert found.train["x"].shape == (6, 1, 4, 4)
    assert found.train["y"].tolist() == [0, 0, 2, 0, 10, 0]
    np.savez(tmp_path / "train" / "0.npz", x=np.array([Evil()], object), y=np.ones(1))
    with pytest.raises(ValueError, match=r"holds pickled objects \(x\)"):
        fs.datasets.npz(tmp_path)
    assert capsys.readouterr().out == ""


TWEETS = [["1", "Mon", "NO_QUERY", "ann", "So glad it is SUNNY"], ["2", "Tue", "NO", "ann", ""]]
REDDIT = [[["<BOS>", "a", "word"]], [["<BOS>", "b", "<EOS>"], ["c", "d", "<PAD>"]]]


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (TWEETS, [1, 0], "words .'1'., as Sent140 has"),
        (REDDIT, [{"target_tokens": [], "score": 1}] * 2, "words .'<BOS>'., as Reddit has"),
    ],
)
def test_leafs_words_are_refused_with_the_way_round(tmp_path, x, y, says):
    for part in PARTS:
        write_leaf(tmp_path / part, {"ann": {"x": x, "y": y}})
    with pytest.raises(ValueError, match=rf"user ann must have .*got {says}.*datasets.npz"):
        fs.datasets.leaf(tmp_path)


def test_leafs_documented_conversion_of_sent140(tmp_path):
    for part in PARTS:
        write_leaf(tmp_path / part, {"ann": {"x": TWEETS, "y": [1, 0]}})
    (code,) = re.findall(r"hash:\n\n((?: {8}.*\n|\n)+)", fs.datasets.leaf.__doc__)
    code = re.sub(r"^ {8}", "", code, flags=re.M)
    exec(code, {"folder": tmp_path, "converted": tmp_path / "converted"})
    found = fs.datasets.npz(tmp_path / "converted")
    assert found.train["x"].dtype == np.int32
    assert found.train["x"].shape == (2, 25)
    assert (found.train["x"] > 0).sum(axis=1).tolist() == [5, 0]
    assert (found.num_classes, found.client_names) == (2, ("ann",))


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16", b""),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-32", b""),
        ("utf-8", b""),
    ],
)
def test_leafs_json_in_any_unicode(tmp_path, encoding, mark):
    for part in PARTS:
        write_leaf(tmp_path / part, {"é": {"x": [[0.5]], "y": [1]}})
        path = tmp_path / part / "all_data.json"
        text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
        path.write_bytes(mark + text.encode(encoding))
    assert fs.datasets.leaf(tmp_path).client_names == ("é",)
