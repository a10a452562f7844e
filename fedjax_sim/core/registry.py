"""How a file declares what it offers: its factory, and the options that a user may set.

An algorithm, an aggregation rule, a sampler, a split, a data set, a model and an execution strategy
declare themselves where they are defined:

    @declare(
        "FedAvg whose clients are held near the global model",
        Option("mu", "weight of the proximal term", default=0.01, range=AT_LEAST_0, traced=True),
    )
    def fedprox(loss_fn, client_optimizer, local, mu, server_optimizer=optax.sgd(1.0)): ...

One line in the face of its room exports the factory (`fedjax_sim/algorithms/__init__.py`), and
that is all: `declared` reads the faces, and the settings, the command line, TOML files, grids, the
help and the tables of the documentation read what it finds. An option is set by its flat name,
`mu = 0.01`, `--mu 0.01` and `--grid mu=0,0.1`. No two rooms may have an option of one name; where
the parameter's own name is taken, `Option("wave_alpha", ..., parameter="alpha")` gives it another.

What a factory takes beside its own options is read from the names of its parameters:

    algorithm  loss_fn, client_optimizer, client_lr, local, server_optimizer, server_lr,
               unlabelled (examples that the server has)
    mode       a rule has cohort, client_weights and all_client_weights; what has not is its factory
    sampler    m (the cohort's slots) or q (a probability), both from the fraction; loss_fn
    partition  key, num_examples, labels, num_clients; or ids, the clients of the data themselves
    dataset    key, num_clients
    model      input_shape, num_classes (None for a regression), outputs, vocabulary, length

`client_lr` is a number, or a function of the round where the setting has a schedule. Any other
parameter needs a default in the signature, and keeps it. A declaration may have another default
for a setting that all share: `defaults={"server_lr": SameAs("client_lr")}`. One that the signature
seems to take and the factory does not is refused by `without=("schedule",)`. A paper's own symbol
for what all share is told by `symbols={"client_lr": "eta"}`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from fedjax_sim.core.checks import check_number, is_concrete

Factory = TypeVar("Factory", bound=Callable[..., Any])


class Range(NamedTuple):
    """Which values an option takes, in words and as a test."""

    says: str
    allows: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Refuses a number out of range; a traced one is taken as it is.

        Raises:
          ValueError: naming the argument, what was given and what is allowed.
        """
        check_number(name, value, self.allows, self.says)


AT_LEAST_0 = Range("at least 0", lambda x: x >= 0)
AT_LEAST_1 = Range("at least 1", lambda x: x >= 1)
AT_MOST_1 = Range("at most 1", lambda x: x <= 1)
POSITIVE = Range("positive", lambda x: x > 0)
BELOW_1 = Range("in [0, 1)", lambda x: 0 <= x < 1)
FROM_0_TO_1 = Range("in [0, 1]", lambda x: 0 <= x <= 1)
WITHIN_0_AND_1 = Range("in (0, 1)", lambda x: 0 < x < 1)
UP_TO_1 = Range("in (0, 1]", lambda x: 0 < x <= 1)
OF_32_BITS = Range("in [0, 2^32)", lambda x: 0 <= x < 2**32)
ANY_NUMBER = Range("any number", lambda x: True)


@dataclass(frozen=True)
class Option:
    """One value that a user may set.

    Attributes:
      name: as a file has it; the command line has `--name`, with dashes.
      help: one line, without its default and whose it is, which are added where they are known.
      default: None for none, in which case the factory's own stands.
      kind: float, int, str or bool.
      range: of a number.
      choices: of a text.
      traced: whether a sweep may trace it. Its configurations then share one compiled program.
      parameter: of the factory, where that is called otherwise.
      words: texts that it takes beside numbers.
      metavar, short: of the command line.
    """

    name: str
    help: str
    default: Any = None
    kind: type = float
    range: Range | None = None
    choices: tuple[str, ...] = ()
    traced: bool = False
    parameter: str | None = None
    words: tuple[str, ...] = ()
    metavar: str | None = None
    short: str | None = None

    @property
    def argument(self) -> str:
        """The parameter of the factory."""
        return self.parameter or self.name

    @property
    def allowed(self) -> str:
        """Which values it takes, in words; empty for any."""
        return " or ".join(self.choices) or ("" if self.range is None else self.range.says)

    def check(self, value: Any) -> None:
        """Refuses a value out of range; a traced one is taken as it is.

        Raises:
          ValueError: naming the option, what was given and what is allowed.
        """
        if not is_concrete(value) or (isinstance(value, str) and value in self.words):
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}; got {value!r}")
        if self.range is None:
            return
        says, allows = self.range
        if self.kind is float:
            self.range.check(self.name, value)
        elif not isinstance(value, int) or isinstance(value, bool) or not allows(value):
            words = f", or {' or '.join(self.words)}" if self.words else ""
            raise ValueError(f"{self.name} must be a whole number, {says}{words}; got {value!r}")


@dataclass(frozen=True)
class SameAs:
    """A default that is the default of another setting."""

    name: str


@dataclass(frozen=True, eq=False)
class Declaration:
    """A factory and what is said of it.

    Attributes:
      name: as a setting has it.
      help: one line.
      factory: what makes it.
      options: its own.
      defaults: of settings that all share, where they are others here.
      without: settings that all share, and this does not take for all its signature says.
      symbols: settings that all share -> the factory's parameter, where that is called otherwise.
      check: (values of its options by name) -> None; refuses what does not go together.
      facts: what the room wants to know of its kind beside.
      is_default: whether its room's setting is this one unless another is given.
    """

    name: str
    help: str
    factory: Callable[..., Any]
    options: tuple[Option, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    symbols: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] | None = None
    facts: Any = None
    is_default: bool = False

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of the factory, by name."""
        return inspect.signature(self.factory).parameters

    def takes(self, *names: str) -> bool:
        """Whether the factory has one of these parameters, by this name or its own symbol."""
        return any(self.symbols.get(name, name) in self.parameters for name in names)

    def call(self, values: Mapping[str, Any], **common: Any) -> Any:
        """Calls the factory.

        Args:
          values: of options by name; those that are not there keep the factory's default.
          common: by parameter; those that the factory does not take are left out.

        Raises:
          ValueError: from the factory, by an option's name where it begins with its parameter's.
        """
        symbols = {self.symbols.get(name, name): value for name, value in common.items()}
        arguments = {name: value for name, value in symbols.items() if name in self.parameters}
        own_values = {o.argument: values[o.name] for o in self.options if o.name in values}
        try:
            return self.factory(**arguments, **own_values)
        except ValueError as error:
            # A refusal begins with the parameter that it is of; a user knows it as an option.
            first, space, rest = str(error).partition(" ")
            named = {parameter: name for name, parameter in self.symbols.items()}
            named |= {o.argument: o.name for o in self.options}
            if named.get(first, first) == first:
                raise
            raise ValueError(f"{named[first]}{space}{rest}") from error


def declare(
    help: str,
    *options: Option,
    name: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    symbols: Mapping[str, str] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    facts: Any = None,
    is_default: bool = False,
) -> Callable[[Factory], Factory]:
    """Declares a factory, which stays as it is; `declaration_of` reads what was said.

    Args:
      help, options, defaults, without, symbols, check, facts, is_default: as in `Declaration`.
      name: as a setting has it; None for the factory's own.

    >>> @declare("weighs by age", Option("half_life", "in rounds", default=2.0, range=POSITIVE))
    ... def aged(half_life):
    ...     return half_life
    >>> declaration_of(aged).options[0].default
    2.0
    """

    def attach(factory: Factory) -> Factory:
        vars(factory)["declaration"] = Declaration(
            name=name or factory.__name__,
            help=help,
            factory=factory,
            options=options,
            defaults=defaults or {},
            without=without,
            symbols=symbols or {},
            check=check,
            facts=facts,
            is_default=is_default,
        )
        return factory

    return attach


def declaration_of(value: Any) -> Declaration | None:
    """What was declared of a factory; None if nothing was."""
    declaration = getattr(value, "declaration", None)
    return declaration if isinstance(declaration, Declaration) else None


def declared(face: ModuleType) -> dict[str, Declaration]:
    """What the face of a room exports that is declared, by name, in the face's order."""
    several = (declaration_of(value) for value in vars(face).values())
    return {declaration.name: declaration for declaration in several if declaration is not None}


def undeclared(name: str, factory: Callable[..., Any], common: tuple[str, ...]) -> Declaration:
    """A declaration of a factory without one: its parameters with a number's default are options.

    A whole number's option takes whole numbers; all others take any number. None is traced,
    because nothing says that the factory could do with a traced value.

    Args:
      name: as a setting has it.
      common: parameters that are no options, for they are of the settings that all share.
    """
    options = []
    for parameter in inspect.signature(factory).parameters.values():
        default = parameter.default
        if parameter.name in common or isinstance(default, bool):
            continue
        if isinstance(default, (int, float)):
            options.append(
                Option(
                    parameter.name,
                    "a parameter of its own",
                    default=default,
                    kind=type(default),
                    range=ANY_NUMBER,
                )
            )
    return Declaration(name, f"of {name}", factory, tuple(options))


def renamed(declaration: Declaration, prefix: str, taken: frozenset[str]) -> Declaration:
    """The same with `prefix_` before the names of options that are taken."""
    options = tuple(
        replace(option, name=f"{prefix}_{option.name}", parameter=option.argument)
        if option.name in taken
        else option
        for option in declaration.options
    )
    return replace(declaration, options=options)
