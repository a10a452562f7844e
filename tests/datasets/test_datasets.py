"""Reading data sets: files of a few examples, made here."""

import csv
import gzip
import importlib
import io
import json
import pickle
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.datasets import cifar, series
from fedjax_sim.datasets.formats import by_client
from fedjax_sim.datasets.images import IDX, read_idx
from fedjax_sim.settings.rooms import declarations

# The packages' attributes of these names are the loaders.
shakespeare, wind_farm, activity, household, irish_wind = (
    importlib.import_module(f"fedjax_sim.datasets.{name}")
    for name in ("shakespeare", "wind_farm", "activity", "household", "irish_wind")
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


# --- images


@pytest.mark.parametrize("layout", range(4))
def test_mnist_in_each_of_its_layouts(tmp_path, layout):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (5, 28, 28), np.uint8),
        np.arange(5, dtype=np.uint8),
        rng.integers(0, 256, (3, 28, 28), np.uint8),
        np.array([9, 0, 9], np.uint8),
    ]
    for name, array in zip(IDX[layout], arrays, strict=True):
        content = idx(array)
        (tmp_path / name).write_bytes(gzip.compress(content) if name[-1] == "z" else content)
    for found in (fs.datasets.mnist(tmp_path), fs.datasets.fashion_mnist(str(tmp_path))):
        assert found.num_classes == 10
        assert found.train["x"].shape == (5, 28, 28, 1)
        assert found.train["x"].dtype == np.float32
        np.testing.assert_allclose(found.test["x"][2, :, :, 0], arrays[2][2] / 255, rtol=1e-6)
        assert found.train["y"].dtype == np.int32
        assert found.test["y"].tolist() == [9, 0, 9]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must be an IDX file of bytes; it starts with b''"),
        (b"\0\0\x0d\x01\0\0\0\1....", "must be an IDX file of bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"must hold \(2, 3\) bytes .* it holds 5"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "it holds 7"),
    ],
)
def test_what_is_not_idx(tmp_path, content, says):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_idx(tmp_path / "a")
    compressed = gzip.compress(bytes(range(99)))
    for broken in (compressed[:-9], compressed[:20] + b"\xff" * 40 + compressed[60:], b"no"):
        (tmp_path / "a.gz").write_bytes(broken)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            read_idx(tmp_path / "a.gz")


def test_where_files_are_looked_for(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"mnist is not in .*: fedjax-sim data fetch mnist"):
        fs.datasets.mnist()
    with pytest.raises(FileNotFoundError, match="path must be a folder with mnist's files"):
        fs.datasets.mnist(tmp_path)
    (cache / "mnist").mkdir(parents=True)
    for name in IDX[0]:
        shape = (1, 28, 28) if "images" in name else (1,)
        (cache / "mnist" / name).write_bytes(idx(np.ones(shape, np.uint8)))
    assert fs.datasets.mnist().train["y"].tolist() == [1]
    (cache / "mnist" / IDX[0][1]).write_bytes(idx(np.ones(2, np.uint8)))
    with pytest.raises(ValueError, match=r"got \[1, 28, 28\] and \[2\]"):
        fs.datasets.mnist()


def cifar_batches(folder):
    """Two images a batch, and the pixels and labels of the first."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 12)
    for i, name in enumerate(cifar.CIFAR10[1]):
        planes = images[2 * i : 2 * i + 2].transpose(0, 3, 1, 2).reshape(2, -1)
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": planes, b"labels": labels[2 * i : 2 * i + 2].tolist()}, file)
    return images, labels


def test_cifar10_from_python_batches_and_from_pngs(tmp_path):
    image = pytest.importorskip("PIL.Image")
    python, raw, made = (tmp_path / name for name in ("python", "raw", "made"))
    for folder in (python, raw, made):
        folder.mkdir()
    images, labels = cifar_batches(python)
    for i, name in enumerate(cifar.CIFAR10[1]):
        pixels = images[2 * i : 2 * i + 2].reshape(2, 1024, 3)
        image.fromarray(pixels).save(raw / f"{name}.png")
    (raw / "train_lables.json").write_text(json.dumps(labels[:10].tolist()))
    (raw / "test_lables.json").write_text(json.dumps(labels[10:].tolist()))
    cifar.convert(raw, made)
    for folder in (python, made):
        found = fs.datasets.cifar10(folder)
        assert found.train["x"].dtype == np.float32
        np.testing.assert_allclose(found.train["x"], images[:10] / 255, rtol=1e-6)
        np.testing.assert_allclose(found.test["x"], images[10:] / 255, rtol=1e-6)
        assert found.train["y"].tolist() == labels[:10].tolist()
        assert found.test["y"].tolist() == labels[10:].tolist()

    (raw / "test_lables.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"test_batch.png has .* and 1 labels"):
        cifar.convert(raw, made)
    (made / "data_batch_3.bin").write_bytes(b"x" * 3072)
    with pytest.raises(ValueError, match=r"rows of 3073 bytes.* it holds 3072"):
        fs.datasets.cifar10(made)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_cifar10_does_not_run_what_a_pickle_names(tmp_path, capsys):
    cifar_batches(tmp_path)
    for content, says in (
        (pickle.dumps(Evil()), "must hold arrays alone, and names builtins.print"),
        (b"c\xff\n\xfe\n.", "is not a batch of CIFAR-10"),
        (pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": 3}), r"and labels \[N\]; got"),
        (pickle.dumps({b"data": np.zeros((0, 3072)), b"labels": []}), r"and labels \[N\]; got"),
        (b"\x80\x04no", "is not a batch of CIFAR-10"),
        (pickle.dumps([1]), "must be a dictionary with data and labels"),
        (pickle.dumps({b"data": np.zeros((1, 5)), b"labels": [1]}), r"data \[N, 3072\] and"),
    ):
        (tmp_path / "data_batch_2").write_bytes(content)
        with pytest.raises(ValueError, match=says):
            fs.datasets.cifar10(tmp_path)
    assert capsys.readouterr().out == ""


# --- Shakespeare

PLAY = """# Hamlet

## ACT I

_Enter GHOST
and others_

**HAMLET**
Alas, poor ghost! _Aside_ Pity
me not, \\[Draws] but lend
[He
sits]thy serious hearing

**Ghost**
_\\[Beneath]
Mark me.

*Exit
Ghost*

**HAMLET**
I will.

### SCENE II

Nobody says this.
"""


def test_roles_by_hand(tmp_path):
    roles = shakespeare.roles_of("hamlet", PLAY)
    assert roles == {
        "HAMLET in hamlet": [
            "Alas, poor ghost! Pity",
            "me not, but lend",
            "thy serious hearing",
            "I will.",
        ],
        "Ghost in hamlet": ["Mark me."],
    }
    (tmp_path / "hamlet.md").write_text(PLAY)
    (tmp_path / "made").mkdir()
    shakespeare.convert(tmp_path, tmp_path / "made")
    found = fs.datasets.shakespeare(tmp_path / "made", length=4)  # one role of two lines or more
    assert found.num_classes == len(fs.datasets.SHAKESPEARE_VOCABULARY)
    text = "Alas, poor ghost! Pity\nme not, but lend\nthy serious hearing\n"

    def read(codes):
        return "".join(fs.datasets.SHAKESPEARE_VOCABULARY[i] for i in codes)

    x, y = found.train["x"], found.train["y"]
    assert x.dtype == y.dtype == np.int32
    assert x.shape == y.shape == (15, 4)  # 59 targets: 14 windows and the last, moved back by one
    assert [read(row) for row in x[:2]] == ["Alas", ", po"]
    assert (x[:, 1:] == y[:, :-1]).all()
    assert read(y[:14].ravel()) == text[1:57]
    assert read(y[14]) == text[-4:]
    assert [read(row) for row in found.test["y"]] == [" wil"]  # "I will.\n": 7 targets, one window
    assert found.client_ids.tolist() == [0] * 15


def test_short_roles_train_and_are_not_tested(tmp_path):
    roles = {"A": ["Ay.", "No."], "B": ["so"], "C": ["abcd"] * 4 + ["efghijk"]}
    (tmp_path / "roles.json").write_text(json.dumps(roles))
    found = fs.datasets.shakespeare(tmp_path, length=6)
    text = [[fs.datasets.SHAKESPEARE_VOCABULARY[i] for i in row] for row in found.train["x"]]
    assert "".join(text[0]) == "Ay.\nAy"  # repeated
    assert found.client_ids.tolist() == [0, 1, 1, 1, 1]  # B, of one line, is no client
    assert found.test["x"].shape == (1, 6)
    with pytest.raises(ValueError, match="length must be a whole number, at least 1; got 0"):
        fs.datasets.shakespeare(tmp_path, length=0)
    with pytest.raises(ValueError, match="length must leave examples to test on; got 9"):
        fs.datasets.shakespeare(tmp_path, length=9)
    (tmp_path / "roles.json").write_text(json.dumps({"A": ["Ay.", "Nö."]}))
    with pytest.raises(ValueError, match=r"text must be of the .* characters; got 'ö'"):
        fs.datasets.shakespeare(tmp_path)
    for broken in ("{", "[]", "3", '{"A": 3}', '{"A": ["a", 3]}'):
        (tmp_path / "roles.json").write_text(broken)
        with pytest.raises(ValueError, match=r"roles.json must be JSON"):
            fs.datasets.shakespeare(tmp_path)


# --- series


def test_forecasting_by_hand():
    a = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    b = 10 * a
    b[3] = np.nan
    found = series.forecasting([np.stack([v, a], 1) for v in (a, b)], [a, b], 2, scaled=1)
    known = np.concatenate([a[:8], b[:8]])
    known = known[~np.isnan(known)]
    mean, std = known.mean(), known.std()
    # Of 8 training steps a has 6 examples, b those that the gap at 3 does not touch: 2, 6 and 7.
    assert found.client_ids.tolist() == [0] * 6 + [1] * 3
    assert found.train["x"].shape == (9, 2, 2)
    np.testing.assert_allclose(
        found.train["x"][0], [[(1 - mean) / std, 1], [(2 - mean) / std, 2]], rtol=1e-6
    )
    np.testing.assert_allclose(found.train["y"][-1], (80 - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(found.test["y"] * std + mean, [9, 10, 90, 100], rtol=1e-5)
    # The first test example looks back at training steps.
    np.testing.assert_allclose(found.test["x"][0, :, 1], [7, 8])
    assert found.num_classes is None


@pytest.mark.parametrize(
    ("steps", "length", "says"),
    [
        (10, 10, "length must be below a client's 10 steps; got 10"),
        (10, 9, "length must leave examples to train on; got 9"),
    ],
)
def test_windows_too_long_to_forecast_from(steps, length, says):
    values = np.arange(float(steps))
    with pytest.raises(ValueError, match=says):
        series.forecasting([values[:, None]], [values], length)


def test_a_gap_at_the_end_leaves_nothing_to_test_on():
    values = np.arange(10.0)
    values[8:] = np.nan
    with pytest.raises(ValueError, match="length must leave examples to test on; got 2"):
        series.forecasting([values[:, None]], [values], 2)


def test_irish_wind_from_r(tmp_path):
    pyreadr = pytest.importorskip("pyreadr")
    pd = pytest.importorskip("pandas")

    days = pd.date_range("1961-01-01", periods=400)
    frame = pd.DataFrame({"year": days.year - 1900, "month": days.month, "day": days.day})
    for i, name in enumerate(irish_wind.STATIONS):
        frame[name] = np.arange(400) + 100.0 * i
    pyreadr.write_rdata(str(tmp_path / "wind.rda"), frame, df_name="wind")
    (tmp_path / "made").mkdir()
    irish_wind.convert(tmp_path, tmp_path / "made")
    found = fs.datasets.irish_wind(tmp_path / "made", length=3)
    assert found.train["x"].shape == (12 * (320 - 3), 3, 3)
    assert found.test["x"].shape == (12 * 80, 3, 3)
    assert np.unique(found.client_ids).tolist() == list(range(12))
    first = found.train["x"][0, :, 1]
    np.testing.assert_allclose(first, np.sin(2 * np.pi * np.arange(1, 4) / 365.25), rtol=1e-5)
    step = found.train["y"][1] - found.train["y"][0]  # speed rises by 1 a day
    known = np.concatenate([np.arange(320) + 100.0 * i for i in range(12)])
    assert step == pytest.approx(1 / known.std(), rel=1e-3)


def test_wind_farm_from_its_csv(tmp_path):
    out = io.StringIO()
    names = ["Wind_turbine_name", "Date_time", "P_avg", "Ws_avg", "Wa_avg", "Ot_avg"]
    writer = csv.writer(out)
    writer.writerow(names)
    for k, turbine in enumerate(wind_farm.TURBINES):
        writer.writerow([turbine, "2014-01-01T01:00:00+01:00", 100 + k, 5, 90, 10])
        writer.writerow([turbine, "2014-01-01T01:10:00+01:00", "", "", "", ""])
        writer.writerow([turbine, "2014-07-01T02:00:00+02:00", 200, 6, 180, 20])
        writer.writerow([turbine, "2014-07-01T02:00:00+02:00", 999, 6, 180, 20])  # twice
        writer.writerow([turbine, "2014-08-01T02:00:00+02:00", 200, 6, 180, -273.2])  # broken
        writer.writerow([turbine, "2016-01-01T01:00:00+01:00", 300, 7, 0, 30])  # too late
    with zipfile.ZipFile(tmp_path / "la_haute_borne.zip", "w") as archive:
        archive.writestr("la-haute-borne-data-2014-2015.csv", out.getvalue())
    wind_farm.convert(tmp_path, tmp_path)
    with np.load(tmp_path / "wind_farm.npz") as found:
        measured = found["measured"]
    assert measured.shape == (4, 105_120, 4)
    assert measured[2, 0].tolist() == [102, 5, 90, 10]
    assert np.isnan(measured[:, 1]).all()
    assert measured[0, 181 * 144].tolist() == [200, 6, 180, 20]  # 1 July, midnight UTC
    assert np.isfinite(measured[..., 0]).sum() == 8


def test_wind_farm_hours(tmp_path):
    hours = np.arange(60.0)
    measured = np.zeros((4, 360, 4), np.float32)
    measured[..., 0] = np.repeat(hours, 6) + np.tile([-1, 1], 180)  # the hour's mean is its number
    measured[..., 1] = np.random.default_rng(0).normal(size=360)
    measured[..., 2] = 90.0
    measured[..., 3] = np.arange(360)
    measured[0, 6 * 20 + 3] = np.nan
    np.savez(tmp_path / "wind_farm.npz", measured=measured)
    found = fs.datasets.wind_farm(tmp_path, length=4)
    assert np.bincount(found.client_ids).tolist() == [44 - 5, 44, 44, 44]
    assert found.test["y"].shape == (4 * 12,)
    known = hours[:48]
    mean, std = np.delete(np.tile(known, 4), 20).mean(), np.delete(np.tile(known, 4), 20).std()
    np.testing.assert_allclose(found.test["y"][:12] * std + mean, hours[48:], rtol=1e-4)
    np.testing.assert_allclose(found.train["x"][..., 3], 1, atol=1e-6)  # from the east
    np.testing.assert_allclose(found.train["x"][..., 4], 0, atol=1e-6)


def test_households_from_their_csv(tmp_path):
    for home in range(1, household.HOMES + 1):
        with (tmp_path / f"Building_{home}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["Hour", "Equipment Electric Power [kWh]", "Solar Generation [W/kW]", "Month"]
            )
            writer.writerows([float(i % 24 + 1), home + i / 100, i % 5, 7] for i in range(50))
    household.convert(tmp_path, tmp_path)
    found = fs.datasets.household(tmp_path, length=6)
    assert np.bincount(found.client_ids).tolist() == [40 - 6] * 17
    assert found.test["x"].shape == (17 * 10, 6, 4)
    known = np.concatenate([home + np.arange(40) / 100 for home in range(1, 18)])
    expected = (1 + 6 / 100 - known.mean()) / known.std()
    assert found.train["y"][0] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.train["x"][0, 5, 2:], [1, 0], atol=1e-6)  # six o'clock


def test_activity_from_its_pickle(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [25, 12, 4]
    recordings = [rng.normal(i, 2, (n, 6)) for i, n in enumerate(lengths)]
    content = {
        "X": recordings,
        "y": np.array([3, 0, 6]),
        "subject": np.array([2, 1, 2]),
        "y_labels": list(activity.EXERCISES),
    }
    np.save(tmp_path / "watch_dataset.npy", content, allow_pickle=True)
    activity.convert(tmp_path, tmp_path)
    found = fs.datasets.activity(tmp_path, length=5)
    # Windows: 5, 2 and none; of them 4 and 1 train.
    assert found.train["y"].tolist() == [3] * 4 + [0]
    assert found.client_ids.tolist() == [1] * 4 + [0]
    assert found.test["y"].tolist() == [3, 0]
    assert found.num_classes == 7
    known = np.concatenate([recordings[0][:20], recordings[1][:5]])
    expected = (recordings[0][20:25] - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(found.test["x"][0], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="must leave a recording two windows; got 20"):
        fs.datasets.activity(tmp_path, length=20)


# --- users' own


def write_leaf(folder, users):
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(data["y"]) for data in users.values()],
        "user_data": users,
    }
    (folder / "all_data.json").write_text(json.dumps(content))


def test_leaf(tmp_path):
    write_leaf(
        tmp_path / "train",
        {"b": {"x": [[0.5, 1.0]], "y": [2]}, "a": {"x": [[0.0, 0.25], [1, 1]], "y": [0, 1]}},
    )
    with pytest.raises(FileNotFoundError, match="without any in test/"):
        fs.datasets.leaf(tmp_path)
    write_leaf(tmp_path / "test", {"a": {"x": [[9.0, 9.0]], "y": [3]}})
    found = fs.datasets.leaf(tmp_path)
    assert found.train["x"].tolist() == [[0.5, 1], [0, 0.25], [1, 1]]
    assert found.train["y"].tolist() == [2, 0, 1]
    assert found.client_ids.tolist() == [0, 1, 1]
    assert (found.num_classes, found.test["y"].tolist()) == (4, [3])
    (tmp_path / "test" / "all_data.json").write_text('{"users": []}')
    with pytest.raises(ValueError, match=r"all_data.json must be LEAF's JSON"):
        fs.datasets.leaf(tmp_path)


@pytest.mark.parametrize(
    ("users", "counts", "says"),
    [
        (["a", "a"], [1, 1], "2 users, 1 of them different, and 2 num_samples"),
        (["a"], [1, 1], "1 users, 1 of them different, and 2 num_samples"),
    ],
)
def test_leafs_lists_that_do_not_fit(tmp_path, users, counts, says):
    data = {"a": {"x": [[1.0]], "y": [0]}}
    write_leaf(tmp_path / "train", data)
    write_leaf(tmp_path / "test", data)
    content = {"users": users, "num_samples": counts, "user_data": data}
    (tmp_path / "train" / "all_data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"all_data.json must be LEAF's JSON.*{says}"):
        fs.datasets.leaf(tmp_path)


def test_a_user_in_two_of_leafs_files_is_refused(tmp_path):
    data = {"a": {"x": [[1.0]], "y": [0]}}
    for part in ("train", "test"):
        write_leaf(tmp_path / part, data)
    shutil.copy(tmp_path / "train" / "all_data.json", tmp_path / "train" / "more.json")
    with pytest.raises(ValueError, match=r"more.json holds user a, as another file does"):
        fs.datasets.leaf(tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (["ab", "cd"], ["e"], "says 2 samples of user a; its x and y have 2 and 1"),
        (5, [1], "says 1 samples of user a; its x and y have no list and 1"),
        (["ab", 5], ["c", "d"], "must have an x of texts alone, or of numbers alone"),
    ],
)
def test_leafs_samples_that_do_not_fit(tmp_path, x, y, says):
    for part in ("train", "test"):
        write_leaf(tmp_path / part, {"a": {"x": [[0.0]], "y": [0]}})
    count = 1 if x == 5 else 2
    content = {"users": ["a"], "num_samples": [count], "user_data": {"a": {"x": x, "y": y}}}
    (tmp_path / "train" / "all_data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"all_data.json.*{says}"):
        fs.datasets.leaf(tmp_path)


def test_leafs_targets_of_several_numbers_are_no_text(tmp_path):
    for part in ("train", "test"):
        write_leaf(tmp_path / part, {"a": {"x": [[0.5]], "y": [[1, 2]]}})
    assert fs.datasets.leaf(tmp_path).num_classes == 3


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (["1.jpg"], [0], "images by name .'1.jpg'., as CelebA has, which are not read"),
        (["1.jpg"], ["0"], "images by name .'1.jpg'., as CelebA has, which are not read"),
        (["some text"], [3], "texts with labels .'some text', 3., which are not read"),
    ],
)
def test_leafs_images_by_name_are_refused(tmp_path, x, y, says):
    for part in ("train", "test"):
        write_leaf(tmp_path / part, {"a": {"x": x, "y": y}})
    with pytest.raises(ValueError, match=says):
        fs.datasets.leaf(tmp_path)


def test_leafs_text(tmp_path):
    users = {"HAMLET": {"x": ["to be", "o be "], "y": [" ", "o"]}}
    for part in ("train", "test"):
        write_leaf(tmp_path / part, users)
    found = fs.datasets.leaf(tmp_path)
    letters = importlib.import_module("fedjax_sim.datasets.formats.leaf").LETTERS
    assert found.num_classes == len(letters) == 80
    assert "".join(letters[i] for i in found.train["x"][0]) == "to be"
    assert "".join(letters[i] for i in found.train["y"][0]) == "o be "
    write_leaf(tmp_path / "test", {"HAMLET": {"x": ["to ~e"], "y": [" "]}})
    with pytest.raises(ValueError, match="LEAF's 80 letters; got '~'"):
        fs.datasets.leaf(tmp_path)


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    for part, sizes in (("train", {"f1": 3, "f0": 2}), ("test", {"f0": 1})):
        with h5py.File(tmp_path / f"fed_emnist_{part}.h5", "w") as file:
            for i, (client, n) in enumerate(sizes.items()):
                group = file.create_group(f"examples/{client}")
                group["pixels"] = np.full((n, 28, 28), 0.25, np.float32)
                group["label"] = np.full(n, 10 * i + 1, np.int32)
    found = fs.datasets.hdf5(tmp_path)
    assert found.train["x"].shape == (5, 28, 28, 1)
    assert found.train["y"].tolist() == [11, 11, 1, 1, 1]  # HDF5 lists its groups by name
    assert found.client_ids.tolist() == [0, 0, 1, 1, 1]
    assert found.num_classes == 12
    with pytest.raises(ValueError, match=r"must be HDF5 with /examples/<client>/.image,label."):
        fs.datasets.hdf5(tmp_path, x="image")
    with h5py.File(tmp_path / "fed_emnist_test.h5", "a") as file:
        file["examples/f9"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"must be HDF5 with /examples/<client>/.pixels,label."):
        fs.datasets.hdf5(tmp_path)
    (tmp_path / "a_test.h5").touch()
    with pytest.raises(ValueError, match=r"with 2: a_test.h5 and fed_emnist_test.h5; give the two"):
        fs.datasets.hdf5(tmp_path)


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"hdf5 needs h5py; .*fedjax-sim\[data\]"):
        fs.datasets.hdf5(tmp_path)


def test_npz(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    np.savez(tmp_path / "train" / "b.npz", x=np.ones((2, 3)), y=np.array([0.5, 1.5]))
    np.savez(tmp_path / "train" / "a.npz", x=np.zeros((1, 3)), y=np.array([2.5]))
    np.savez(tmp_path / "test" / "a.npz", x=np.zeros((1, 3)), y=np.array([3.5]))
    found = fs.datasets.npz(tmp_path)
    assert found.num_classes is None
    assert found.train["y"].tolist() == [2.5, 0.5, 1.5]
    assert found.client_ids.tolist() == [0, 1, 1]
    data = fs.FederatedData.from_arrays(found.train, found.client_ids)
    assert data.num_examples.tolist() == [1, 2]
    np.savez(tmp_path / "train" / "c.npz", x=np.ones(1))
    with pytest.raises(ValueError, match=r"c.npz must hold arrays x and y"):
        fs.datasets.npz(tmp_path)
    np.savez(tmp_path / "c.npz", x=np.ones((2, 3)), y=np.ones(2))
    whole = (tmp_path / "c.npz").read_bytes()
    with (tmp_path / "c.npy").open("wb") as file:
        np.save(file, np.ones(3))
    for broken in (b"PK not one", b"", b"junk", whole[:-40], (tmp_path / "c.npy").read_bytes()):
        (tmp_path / "train" / "c.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"c.npz must hold arrays x and y: .*[^.]$"):
            fs.datasets.npz(tmp_path)
    np.savez(tmp_path / "train" / "c.npz", x=np.ones((1, 3)), y=0.5)
    with pytest.raises(ValueError, match="client c of train must have arrays; got a number"):
        fs.datasets.npz(tmp_path)


@pytest.mark.parametrize("name", ["household", "activity", "wind_farm", "irish_wind"])
def test_arrays_that_are_not_what_they_should_be(tmp_path, name):
    load = getattr(fs.datasets, name)
    file = tmp_path / f"{name}.npz"
    for broken in (b"", b"junk"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{file} must hold arrays"):
            load(tmp_path)
    np.savez(file, other=np.ones(3))
    with pytest.raises(ValueError, match=f"{file} must hold arrays"):
        load(tmp_path)


def test_images_of_bytes_are_scaled_and_have_channels(tmp_path):
    grey = np.arange(2 * 6, dtype=np.uint8).reshape(2, 2, 3)
    colour = np.arange(2 * 18, dtype=np.uint8).reshape(2, 2, 3, 3)
    for images, expected in ((grey, grey[..., None] / 255), (colour, colour / 255)):
        for part in ("train", "test"):
            (tmp_path / part).mkdir(exist_ok=True)
            np.savez(tmp_path / part / "a.npz", x=images, y=np.arange(2, dtype=np.uint8))
        found = fs.datasets.npz(tmp_path)
        assert found.train["x"].dtype == np.float32
        np.testing.assert_allclose(found.train["x"], expected, rtol=1e-6)
        assert found.test["y"].tolist() == [0, 1]
    codes = {"a": (np.array([[3, 200]], np.uint8), np.array([1]))}  # tables of bytes are kept
    assert by_client.joined(codes, codes).train["x"].tolist() == [[3, 200]]


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ({}, {"a": ([1.0], [1])}, "train must hold at least one example"),
        ({"a": ([1.0], [1, 2])}, {"a": ([1.0], [1])}, "client a of train must have an x for each"),
        (
            {"a": ([[1.0]], [1]), "b": ([[1.0, 2]], [1])},
            {"a": ([1.0], [1])},
            r"of one shape; got \[2\] of client b, and \[1\]",
        ),
        ({"a": ([1.0], [1])}, {"a": ([1.0], [[1]])}, r"y must be alike in train and test"),
        (
            {"a": (np.ones((1, 2, 2), np.uint8), [1]), "b": (np.ones((1, 2, 2)), [1])},
            {"a": ([1.0], [1])},
            "must be of bytes everywhere, or nowhere; got float64 and uint8",
        ),
        (
            {"a": (np.ones((1, 2, 2), np.uint8), [1])},
            {"a": (np.ones((1, 2, 2), np.float32), [1])},
            "images must be of bytes everywhere, or nowhere; got float32 and uint8",
        ),
        ({"a": (["t"], [1])}, {"a": ([1.0], [1])}, "client a of train must have numbers; got <U1"),
        ({"a": ([1.0], [-1])}, {"a": ([1.0], [1])}, "labels from 0 up"),
        ({"a": ([1.0], [2**40])}, {"a": ([1.0], [1])}, "whole numbers of 32 bits"),
    ],
)
def test_clients_that_do_not_fit_together(train, test, says):
    made = [
        {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in part.items()}
        for part in (train, test)
    ]
    with pytest.raises(ValueError, match=says):
        by_client.joined(*made)


def test_hugging_face():
    library, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)

    def made(rows, **more):
        pictures = [image.fromarray(images[i]) for i in rows]
        return library.Dataset.from_dict(
            {"image": pictures, "label": [i % 3 for i in rows], **more}
        )

    train, test = made([0, 1, 2, 3], writer=["z", "a", "z", "b"]), made([4, 5])
    whole = library.DatasetDict(train=train, test=test)
    for found in (
        fs.datasets.hugging_face(train, "writer", test=test),
        fs.datasets.hugging_face(whole, "writer"),
    ):
        assert found.train["x"].shape == (4, 2, 2, 1)
        np.testing.assert_allclose(found.train["x"][..., 0], images[[1, 3, 0, 2]] / 255, rtol=1e-6)
        assert found.train["y"].tolist() == [1, 0, 0, 2]
        assert found.client_ids.tolist() == [0, 1, 2, 2]
        assert found.test["y"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"client_column must be one of image, label.*'author'"):
        fs.datasets.hugging_face(whole, "author")
    with pytest.raises(ValueError, match="must have the splits train and test"):
        fs.datasets.hugging_face(train, "writer")


class Columns:
    """What `hugging_face` asks of a data set."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def select_columns(self, names):
        return Columns({name: self.columns[name] for name in names})

    def with_format(self, kind):
        assert kind == "numpy"
        return self

    def __getitem__(self, rows):
        return {name: np.asarray(values)[rows] for name, values in self.columns.items()}


def test_hugging_face_by_what_it_asks():
    train = Columns({"who": [5, 2, 5], "power": [0.5, 1.5, 2.5], "speed": np.ones((3, 2))})
    found = fs.datasets.hugging_face(train, "who", "speed", "power", test=train)
    assert found.train["y"].tolist() == [1.5, 0.5, 2.5]
    assert found.client_ids.tolist() == [0, 1, 1]
    assert found.num_classes is None
    assert found.validation is None
    held = Columns({"power": [4.5], "speed": np.full((1, 2), 7.0)})
    parts = {"train": train, "test": train, "validation": held}
    for found in (
        fs.datasets.hugging_face(parts, "who", "speed", "power"),
        fs.datasets.hugging_face(train, "who", "speed", "power", test=train, validation=held),
    ):
        assert found.validation["y"].tolist() == [4.5]
        assert found.validation["x"].tolist() == [[7.0, 7.0]]
    wrong = {**parts, "validation": Columns({"power": [4.5], "speed": np.ones((1, 3))})}
    with pytest.raises(ValueError, match="x must be alike in train and validation"):
        fs.datasets.hugging_face(wrong, "who", "speed", "power")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"who": ["a", None, "b"]}, "client_column must have a value in every.*; 1 of 3 in 'who'"),
        ({"who": [1.0, np.nan, np.nan]}, "client_column must have a value in every.*; 2 of 3"),
        ({"power": [np.nan, 1.0, 2.0]}, "y must have a value in every example; 1 of 3 in 'power'"),
    ],
)
def test_hugging_face_with_values_missing(changed, says):
    whole = {"who": ["a", "b", "b"], "power": [0.5, 1.5, 2.5], "speed": np.ones((3, 2))}
    with pytest.raises(ValueError, match=says):
        fs.datasets.hugging_face(
            Columns(whole | changed), "who", "speed", "power", test=Columns(whole)
        )


def test_hugging_face_of_what_is_no_data_set():
    train = Columns({"who": [5, 2], "y": [0.5, 1.5], "x": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"test must be a datasets.Dataset; got dict"):
        fs.datasets.hugging_face(train, "who", "x", "y", test={"x": [1]})


# --- as a setting's data


def test_each_fetched_set_has_a_loader_and_defaults():
    from fedjax_sim.datasets.fetching.recipes import RECIPES

    assert set(RECIPES) <= set(declarations("dataset"))
    for name, recipe in RECIPES.items():
        assert callable(getattr(fs.datasets, name))
        assert recipe.sha256 or all(recipe.members.values())  # one or the other is pinned
        assert len(recipe.sha256 or "0" * 64) == 64
