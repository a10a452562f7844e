"""Whose the examples of test and validation are: one number is one client in all parts."""

import json

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.datasets.formats.by_client import joined


def of(**sizes):
    """Clients by name, whose x is their name's length and a counter."""
    return {
        name: (np.array([[len(name), i] for i in range(n)], float).reshape(n, 2), np.zeros(n, int))
        for name, n in sizes.items()
    }


def test_parts_share_their_clients():
    data = joined(of(a=2, bb=1, ccc=3), of(ccc=1, dddd=2, a=1), of(bb=2))
    assert data.client_names == ("a", "bb", "ccc", "dddd")
    for part, ids in (
        (data.train, data.client_ids),
        (data.test, data.test_client_ids),
        (data.validation, data.validation_client_ids),
    ):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids + 1, part["x"][:, 0])
    names = data.client_names
    train = fs.FederatedData.from_arrays(data.train, data.client_ids, client_names=names)
    test = fs.FederatedData.from_arrays(data.test, data.test_client_ids, client_names=names)
    assert train.num_examples.tolist() == [2, 1, 3, 0]
    assert test.num_examples.tolist() == [1, 0, 1, 2]


def test_leaf_users_that_are_in_test_alone(tmp_path):
    for part, users in (("train", ("u2", "u10")), ("test", ("u10", "u1"))):
        (tmp_path / part).mkdir()
        data = {user: {"x": [[int(user[1:])]], "y": [0]} for user in users}
        content = {"users": list(users), "num_samples": [1, 1], "user_data": data}
        (tmp_path / part / "data.json").write_text(json.dumps(content))
    data = fs.datasets.leaf(tmp_path)
    assert data.client_names == ("u2", "u10", "u1")
    assert (data.client_ids.tolist(), data.test_client_ids.tolist()) == ([0, 1], [1, 2])
    assert data.test["x"].tolist() == [[10.0], [1.0]]


class Columns:
    """As much of a `datasets.Dataset` as is read."""

    def __init__(self, **columns):
        self.columns = columns

    @property
    def column_names(self):
        return list(self.columns)

    def select_columns(self, names):
        return Columns(**{name: self.columns[name] for name in names})

    def with_format(self, _):
        return self

    def __getitem__(self, _):
        return {name: np.asarray(values) for name, values in self.columns.items()}


def test_hugging_faces_test_set_may_have_the_client_column():
    train = Columns(who=["f10", "f2", "f2"], image=[[10.0], [2.0], [2.0]], label=[0, 1, 1])
    test = Columns(who=["f3", "f10"], image=[[3.0], [10.0]], label=[0, 1])
    pooled = Columns(image=[[3.0], [10.0]], label=[0, 1])
    data = fs.datasets.hugging_face({"train": train, "test": test}, "who")
    assert data.client_names == ("f2", "f10", "f3")
    # Examples by client, in the order of their values.
    assert data.test["x"].tolist() == [[3.0], [10.0]]
    assert data.test_client_ids.tolist() == [2, 1]
    data = fs.datasets.hugging_face({"train": train, "test": test}, "who", validation=pooled)
    assert data.validation_client_ids is None
    data = fs.datasets.hugging_face(train, "who", test=pooled)
    assert data.client_names == ("f2", "f10")
    assert data.test_client_ids is None


@pytest.mark.parametrize(
    "load",
    [
        lambda: fs.datasets.wind(jax.random.key(0)),
        lambda: fs.datasets.synthetic(jax.random.key(0), 1, 1),
    ],
)
def test_drawn_data_know_their_clients(load):
    """Both draw a client's examples in one go and hold back a share of each client's."""
    data = load()
    assert len(data.test_client_ids) == len(data.test["y"])
    train, test = np.bincount(data.client_ids), np.bincount(data.test_client_ids)
    assert len(train) == len(test)
    share = test / (train + test)
    assert ((share > 0.08) & (share < 0.25)).all()
