"""The contract as public functions: a certificate for an algorithm, a rule, a strategy, a sampler
of one's own.

Each prints a line for what it has checked, and raises `ContractError` with the smallest case that
fails.
"""

from fedjax_sim.testing.algorithms import check_algorithm as check_algorithm
from fedjax_sim.testing.certificate import Certificate as Certificate
from fedjax_sim.testing.certificate import ContractError as ContractError
from fedjax_sim.testing.problem import Problem as Problem
from fedjax_sim.testing.problem import linear_regression as linear_regression
from fedjax_sim.testing.rules import check_rule as check_rule
from fedjax_sim.testing.samplers import check_sampler as check_sampler
from fedjax_sim.testing.strategies import check_strategy as check_strategy
