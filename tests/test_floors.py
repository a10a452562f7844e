"""The house as it is drawn: ARCHITECTURE's table, the import contract and the tree are one."""

import ast
import configparser
import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedjax_sim"


def floors_of_architecture():
    """Floor by floor, the highest first: the names of the rooms in the table."""
    rows = re.findall(r"^\| (\d) \| (.+?) \| .+? \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == [*range(len(rows), 0, -1)]
    return [re.findall(r"`(\w+)(?:/|\.py)`", rooms) for _, rooms in rows]


def floors_of_contract():
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:floors"]["layers"].split("\n")
    return [re.split(r"\s*\|\s*", layer.strip()) for layer in layers if layer.strip()]


def papers_of_contract():
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    return contract["importlinter:contract:papers"]["modules"].split()


def test_the_table_is_the_contract():
    of_table = [sorted(rooms) for rooms in floors_of_architecture()]
    assert of_table == [sorted(rooms) for rooms in floors_of_contract()]


def test_every_room_has_its_floor():
    names = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    rooms = [room for floor in floors_of_architecture() for room in floor]
    assert sorted(rooms) == sorted(names - {"__init__"})


def test_no_paper_is_left_out_of_the_contract():
    folders = sorted(path.parent.name for path in (PACKAGE / "algorithms").glob("*/__init__.py"))
    assert papers_of_contract() == [f"fedjax_sim.algorithms.{folder}.*" for folder in folders]


def test_tests_mirror_the_rooms():
    rooms = {room for floor in floors_of_architecture() for room in floor}
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert folders - rooms == {"helpers"}


def test_architecture_is_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 200


def test_a_file_does_one_thing():
    """No file of the package has more than 330 lines."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lengths) > 150
    assert {name: length for name, length in lengths.items() if length > 330} == {}


def test_an_algorithm_is_its_papers_equations_and_little_else():
    """None of a global model has more than 130 lines."""
    folder = PACKAGE / "algorithms" / "global_model"
    lengths = {path.stem: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert max(lengths.values()) <= 130
    assert sorted(lengths.values())[len(lengths) // 2] <= 105


# Names that say how a value was come by, where its name should say what it holds.
EMPTY_NAMES = {"found", "said", "made", "one", "what", "got"}


def is_public(function):
    return not getattr(function, "name", "_").startswith("_")


def names_of_values(tree):
    """(line, name) of all that a file names: variables, fields, functions, imports, parameters.

    Parameters of public functions are left out, because callers give them by name.
    """
    public = set()
    for owner in ast.walk(tree):
        if isinstance(owner, (ast.Module, ast.ClassDef)):
            functions = [x for x in owner.body if isinstance(x, ast.FunctionDef) and is_public(x)]
            public |= {id(x) for function in functions for x in ast.walk(function.args)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg) and id(node) not in public:
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def names_in(text):
    """`names_of_values` of a file and of the doctests in it, whose lines are those of their own."""
    tree = ast.parse(text)
    yield from names_of_values(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            yield from names_of_values(ast.parse("".join(x.source for x in examples)))


def test_names_of_values_are_all_seen():
    text = (
        "import numpy as a\nb = c = 1\nfor d in e: pass\nwith f as g: h: int = 0\n"
        "def i(public): return lambda j: [k for k in j if (l := k)]\ndef _m(n): pass\n"
    )
    assert {name for _, name in names_in(text)} == {*"abcdghijkln", "_m"}
    assert {name for _, name in names_in('def f():\n    """A.\n\n    >>> x = 1\n    """')} == {
        "f",
        "x",
    }


def test_a_variable_is_named_by_what_it_holds():
    for path in PACKAGE.rglob("*.py"):
        for line, name in names_in(path.read_text()):
            assert name not in EMPTY_NAMES, f"{path.relative_to(ROOT)}:{line} {name}"


def test_the_formatter_is_not_told_to_look_away():
    for folder in ("fedjax_sim", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "fmt: " + "skip" not in path.read_text(), path
