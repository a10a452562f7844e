"""Federations on disk: what is written is what is read, and what is off is told by its file."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.files import SaveError
from fedjax_sim.data import store_files


def clients(sizes=(3, 0, 2), seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": [rng.integers(0, 9, n)]}
        for n in sizes
    ]


@pytest.fixture
def store(tmp_path):
    return fs.data.FederatedStore.write(
        tmp_path / "store", iter(clients()), [1.0, 2.0, 0.5], client_names=["a", "b", "ü\n"]
    )


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), block=st.integers(1, 300))
def test_what_is_written_is_read(tmp_path_factory, sizes, block):
    folder = tmp_path_factory.mktemp("written") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_files, "_BLOCK", block)
        if not any(sizes):
            with pytest.raises(ValueError, match="at least one example"):
                fs.data.FederatedStore.write(folder, clients(sizes))
            assert not list(folder.parent.iterdir())
            return
        store = fs.data.FederatedStore.write(folder, clients(sizes)).verify()
    assert store.num_examples.tolist() == sizes
    ids = np.flatnonzero(np.arange(len(sizes)) % 2 == 0)
    for k, examples in zip(ids, store.read(ids), strict=True):
        given_examples = clients(sizes)[k]
        np.testing.assert_array_equal(examples["x"], given_examples["x"])
        np.testing.assert_array_equal(examples["y"][0], given_examples["y"][0])
    whole, loaded = fs.FederatedData.from_clients(clients(sizes)), store.in_memory
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), jax.device_get(whole))


def test_weights_names_and_identity(store, tmp_path):
    assert store.client_weights.tolist() == [1.0, 2.0, 0.5]
    assert store.client_names == ("a", "b", "ü\n")
    again = fs.data.FederatedStore.open(tmp_path / "store")
    assert again.identity == store.identity
    copied = fs.data.FederatedStore.write(tmp_path / "copy", store)
    assert copied.identity == store.identity  # of the same examples, weights and names
    other = fs.data.FederatedStore.write(tmp_path / "other", clients(seed=1))
    assert other.identity != store.identity
    assert "3 clients, 5 examples, ['x']: float32[4]" in repr(store)


def test_a_federation_in_memory_is_written(tmp_path, data):
    store = fs.data.FederatedStore.write(tmp_path / "store", data)
    loaded, whole = jax.device_get((store.in_memory, data))
    jax.tree.map(np.testing.assert_array_equal, loaded, whole)
    assert store.nbytes == sum(x.nbytes for x in jax.tree.leaves(data.examples))


def test_types_that_numpy_lacks_keep_their_bits(tmp_path):
    x = jnp.array([1.5, -2.25, 3.0], jnp.bfloat16)
    store = fs.data.FederatedStore.write(tmp_path / "store", [(x, np.array([True, False, True]))])
    (read, flags) = store.verify().read(np.array([0]))[0]
    assert read.dtype == jnp.bfloat16
    assert read.tolist() == [1.5, -2.25, 3.0]
    assert flags.tolist() == [True, False, True]


def test_numbers_of_the_other_byte_order(tmp_path):
    x, y = np.array([[1.5, -2.25]], ">f4"), np.array([3], ">i4")
    store = fs.data.FederatedStore.write(tmp_path / "store", [{"x": x, "y": y}]).verify()
    (read,) = store.read(np.array([0]))
    assert (read["x"].tolist(), read["y"].tolist()) == ([[1.5, -2.25]], [3])
    assert read["x"].dtype.isnative
    mixed = [{"x": x, "y": y}, {"x": x.astype(np.float32), "y": y.astype(np.int32)}]
    assert fs.FederatedData.from_clients(mixed).num_clients == 2


def damage(path, at, byte):
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(byte)


def edited(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: edited(f, version=2), "manifest.json must be of .* version 1, .* version 2"),
        (lambda f: (f / "leaf-1.npy").unlink(), "leaf-1.npy is missing"),
        (lambda f: os.truncate(f / "leaf-0.npy", 150), "leaf-0.npy must have 208 bytes.* has 150"),
        (lambda f: damage(f / "leaf-0.npy", 0, b"?"), "leaf-0.npy cannot be read as an array"),
        (
            lambda f: damage(f / "leaf-0.npy", 10, b"{'descr':'<f8','fortran_order':False,'sh"),
            "leaf-0.npy",
        ),
        (lambda f: edited(f, files=3), "manifest.json is damaged"),
        (lambda f: edited(f, leaves=[{}]), "manifest.json is damaged: KeyError"),
        (lambda f: edited(f, structure=[0]), "manifest.json is damaged"),
        (lambda f: edited(f, examples=6), "sizes.npy must be of 3 clients with 6 examples"),
        (lambda f: damage(f / "sizes.npy", -1, b"\1"), "sizes.npy is damaged: bytes 0 to"),
        (lambda f: damage(f / "weights.npy", -2, b"\1"), "weights.npy is damaged"),
    ],
)
def test_what_is_off_is_told_by_its_file(store, break_it, named):
    break_it(store.folder)
    with pytest.raises(ValueError, match=named):
        fs.data.FederatedStore.open(store.folder)


def test_other_examples_are_told_by_verify(store):
    damage(store.folder / "leaf-0.npy", -1, b"\1")
    opened = fs.data.FederatedStore.open(store.folder)
    with pytest.raises(ValueError, match=r"leaf-0.npy is damaged: bytes 128 to 208"):
        opened.verify()
    edited(store.folder, clients=3)
    with pytest.raises(ValueError, match=r"manifest.json was replaced"):
        opened.verify()


def test_a_file_that_is_cut_while_it_is_read_is_told(store):
    os.truncate(store.folder / "leaf-0.npy", 150)
    with pytest.raises(ValueError, match=r"leaf-0.npy cannot be read"):
        store.read(np.array([0]))


@pytest.mark.parametrize(
    ("given_clients", "message"),
    [
        ([{"x": np.ones((2, 3))}, {"x": np.ones((2, 4))}], r"got float64\[4\] for client 1"),
        ([{"x": np.ones(2)}, [np.ones(2)]], "structure of client 0"),
        ([{"x": np.ones(2), "y": np.ones(3)}], "same length"),
        ([{"x": np.ones(2)}, {"x": np.array([1.0, np.nan])}], "example 1 of client 1"),
        ([{1: np.ones(2)}], "texts as keys"),
        ([], "at least one example"),
        ({"x": np.ones(2)}, "must be an iterable"),
        (3, "must be an iterable"),
    ],
)
def test_bad_clients_are_refused_and_nothing_is_left(tmp_path, given_clients, message):
    with pytest.raises(ValueError, match=message):
        fs.data.FederatedStore.write(tmp_path / "store", given_clients)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused(store):
    with pytest.raises(ValueError, match="exists already"):
        fs.data.FederatedStore.write(store.folder, clients())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_files.ArrayFile, "add", full)
    with pytest.raises(SaveError, match=r"store was not written.*No space left on device"):
        fs.data.FederatedStore.write(tmp_path / "store", clients())
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / "store.part").mkdir()
    (tmp_path / "store.part" / "leaf-0.npy").write_bytes(b"half")
    store = fs.data.FederatedStore.write(tmp_path / "store", clients()).verify()
    assert [x.name for x in tmp_path.iterdir()] == ["store"] == [store.folder.name]
