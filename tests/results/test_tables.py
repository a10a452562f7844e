"""Results as a pandas DataFrame and in Parquet: values, gaps and types."""

import math
import sys

import numpy as np
import pytest

from fedjax_sim.results import Results, Run


def results():
    """Two runs: one evaluated every second round, one that diverged and has no accuracy."""

    def rounds(loss, accuracy, evaluated):
        return {
            "train_loss": np.array(loss, np.float32),
            "client_steps": np.array([4, 5], np.int32),
            "empty": np.array([False, True]),
            "accuracy": np.array(accuracy, np.float32),
            "evaluated": np.array(evaluated),
        }

    return Results(
        (
            Run(
                {"lr": 0.1, "name": "slow", "nesterov": False},
                0,
                rounds([1.5, 0.75], [math.nan, 0.5], [False, True]),
                {"score": 1.25},
                2,
            ),
            Run(
                {"lr": 0.5, "name": "fast", "nesterov": True},
                1,
                rounds([2.5, math.inf], [math.nan, math.nan], [False, False]),
                {"score": None},
                2,
            ),
        )
    )


def same(found, expected):
    assert type(found) is type(expected)
    nan = isinstance(found, float) and math.isnan(found)
    assert (nan and math.isnan(expected)) or found == expected


@pytest.mark.parametrize("long", [False, True])
def test_parquet_gives_back_what_the_table_holds(tmp_path, long):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    results().to_parquet(path, long=long)
    found = parquet.read_table(path)
    rows = results().long() if long else results().table()
    assert found.column_names == list(rows[0])
    for got, expected in zip(found.to_pylist(), rows, strict=True):
        for name, value in expected.items():
            same(got[name], value)
    types = {name: str(found.schema.field(name).type) for name in found.column_names}
    assert types["nesterov"] == "bool"
    assert types["seed"] == types["client_steps"] == "int64"
    assert types["lr"] == types["train_loss"] == types["accuracy"] == "double"
    assert types["name"] == "string"
    if long:
        assert found["accuracy"].to_pylist() == [None, 0.5, None, None]
        assert types["empty"] == "bool"
    else:
        assert found["accuracy"].to_pylist() == [0.5, None]
        assert found["score"].to_pylist() == [1.25, None]
        assert found["diverged"].to_pylist() == [False, True]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("long", [False, True])
def test_pandas(long):
    pytest.importorskip("pandas")
    frame = results().to_pandas(long=long)
    rows = results().long() if long else results().table()
    assert list(frame.columns) == list(rows[0])
    assert len(frame) == len(rows)
    assert frame["nesterov"].dtype == bool
    assert frame["client_steps"].dtype == np.int64
    assert frame["accuracy"].isna().tolist() == [row["accuracy"] is None for row in rows]
    for i, row in enumerate(rows):
        for name, value in row.items():
            if value is not None:
                assert frame[name][i] == value
    assert frame.groupby("lr")["client_steps"].sum().tolist() == [9, 9]


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("pyarrow", lambda path: results().to_parquet(path)),
        ("pandas", lambda path: results().to_pandas()),
    ],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install fedjax-sim\[tables\]"):
        call(tmp_path / "table")
    assert not list(tmp_path.iterdir())
