"""Each client's final values as a file, and the numbers that are made of them."""

import numpy as np
import pytest

from fedjax_sim.results import clients

TABLE = clients.Clients(
    names=("a, b", "ü", "2"),
    train_examples=np.array([3, 4, 5]),
    test_examples=np.array([2, 0, 1]),
    columns={
        "tuned_loss": np.array([0.1, np.nan, 0.3]),
        "personal_loss": np.array([1 / 3, np.nan, 0.5]),
    },
)


def test_a_file_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "clients.csv"
    TABLE.save(path)
    again = clients.read(path)
    assert again.names == TABLE.names
    np.testing.assert_array_equal(again.train_examples, TABLE.train_examples)
    np.testing.assert_array_equal(again.test_examples, TABLE.test_examples)
    assert again.columns.keys() == TABLE.columns.keys()
    for name, column in TABLE.columns.items():
        np.testing.assert_array_equal(again.columns[name], column)


def test_clients_without_a_test_example_do_not_count():
    assert TABLE.metric == "loss"
    by_model = TABLE.by_model("loss")
    assert {name: x.tolist() for name, x in by_model.items()} == {
        "personal": [1 / 3, 0.5],
        "tuned": [0.1, 0.3],
    }
    assert list(by_model) == ["personal", "tuned"]


def test_the_worst_tenth_is_of_the_low_or_of_the_high():
    values = np.arange(11.0)
    assert clients.worst_tenth(values, lowest_is_worst=True) == 0.5  # of two of eleven
    assert clients.worst_tenth(values, lowest_is_worst=False) == 9.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "client,train_examples,test_examples\n",
        "name,accuracy\na,1\n",
        "client,train_examples,test_examples,global_loss\na,1,1\n",
        "client,train_examples,test_examples,global_loss\na,1,x,0.5\n",
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "clients.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"clients\.csv is broken"):
        clients.read(path)
