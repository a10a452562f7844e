"""Writes docs/which.md: `python -m tests.helpers.which > docs/which.md`."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.core.registry import declared
from fedjax_sim.core.trees import num_bytes

# The families, by the folder in which an algorithm's file lies.
FAMILIES = {
    "global_model": "One model for all",
    "personal": "A model of each client's own",
}
BEGINNING = """\
# Which algorithm

What [a setting may name](declared.md), by paper. In the papers' symbols w is the global model,
d_k = w_k - w what client k's local steps make of it, u the mean of the d_k, p_k and a_k the
aggregation rule's coefficients over their sum and as they are, and g_k, h, c what the line says of
them. In the second table v_k is what stays with client k, and u what is shared; an algorithm whose
clients keep something takes no sampler with replacement. Bytes are in models: one is
{size} bytes for the model that `fs.init` and `fs.communication` were asked about ({numbers}
numbers, of which the head has {head} and the norm {norm}). The last column has what popular
implementations were seen to do, and these do not. The page is written from what the files declare
(`python -m tests.helpers.which > docs/which.md`), and a test compares the two.
"""
HEADS = (
    "algorithm",
    "paper",
    "in one line",
    "special case",
    "a client keeps",
    "down, up a round",
    "what popular code gets wrong",
)


def first_params():
    """The model that bytes are computed of: a body, a norm and a head."""
    return {
        "body": {"kernel": np.zeros((64, 30), np.float32), "bias": np.zeros(30, np.float32)},
        "norm": {"scale": np.ones(30, np.float32), "bias": np.zeros(30, np.float32)},
        "head": {"kernel": np.zeros((30, 10), np.float32), "bias": np.zeros(10, np.float32)},
    }


def apply(params, x):
    """Logits of the model."""
    body, norm, head = (params[name] for name in ("body", "norm", "head"))
    hidden = jnp.tanh(x @ body["kernel"] + body["bias"][None])
    hidden = hidden * norm["scale"][None] + norm["bias"][None]
    return hidden @ head["kernel"] + head["bias"][None]


def algorithm_of(declaration):
    """The algorithm with the defaults of its options."""
    options = {option.name: option.default for option in declaration.options}
    given = {name: value for name, value in options.items() if value is not None}
    return declaration.call(
        given | dict(declaration.facts.options),
        loss_fn=fs.models.cross_entropy(apply),
        local=fs.LocalTraining(2, 2),
        unlabelled={"x": np.zeros((4, 64), np.float32)},
        client_lr=0.1,
        client_optimizer=optax.sgd(0.1),
        server_lr=1.0,
        server_optimizer=optax.sgd(1.0),
    )


def in_models(number):
    """Bytes as models and what is left."""
    model = num_bytes(first_params())
    whole, rest = divmod(number, model)
    if rest > 16:
        return f"{number / model:.2f} models"
    words = [f"{whole} model{'s' if whole > 1 else ''}"] if whole else []
    words += [f"{rest} B"] if rest else []
    return " + ".join(words) or "nothing"


def costs(declaration):
    """(kept by a client, down, up) in bytes, from shapes alone."""
    params = first_params()
    option = declaration.facts.several_models
    if option is not None:
        (number,) = (o.default for o in declaration.options if o.name == option)
        params = jax.tree.map(lambda x: np.stack([x] * number), params)
    algorithm = algorithm_of(declaration)
    data = fs.FederatedData.from_clients(
        [{"x": np.zeros((4, 64), np.float32), "y": np.zeros(4, np.int32)}]
    )
    kept = num_bytes(jax.eval_shape(algorithm.init_client, params))
    return kept, *fs.communication(algorithm, params, data)


def paper(declaration):
    """The paper as the first words of the file have it: authors, year, and a link."""
    words = " ".join(inspect.getmodule(declaration.factory).__doc__.split())
    authors, arxiv = re.match(r"[^:]+: (.*?\d{4})\b.*?\(arXiv (\d{4}\.\d{5})\)", words).groups()
    return f"[{authors}](https://arxiv.org/abs/{arxiv})"


def row(declaration):
    """A line of the table."""
    facts = declaration.facts
    kept, down, up = map(in_models, costs(declaration))
    equation = "`" + facts.equation.replace("|", r"\|") + "`"
    traffic = f"{down} each" if down == up else f"{down}, {up}"
    fault = facts.fault.replace("|", r"\|")
    special_case = facts.special_case.replace("|", r"\|")
    cells = (
        f"`{declaration.name}`",
        paper(declaration),
        equation,
        special_case,
        kept,
        traffic,
        fault,
    )
    return f"| {' | '.join(cells)} |"


def page():
    """The whole page."""
    params = first_params()
    sizes = {name: sum(x.size for x in part.values()) for name, part in params.items()}
    words = {"size": f"{num_bytes(params):,}", "numbers": f"{sum(sizes.values()):,}"}
    parts = [BEGINNING.format(**words, head=sizes["head"], norm=sizes["norm"])]
    for folder, title in FAMILIES.items():
        rows = [
            row(declaration)
            for declaration in declared(algorithms).values()
            if inspect.getmodule(declaration.factory).__name__.split(".")[-2] == folder
        ]
        head = [f"## {title}", "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
