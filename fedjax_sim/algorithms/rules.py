"""Which aggregation rules an algorithm can follow: `check_rule` of `FederatedAlgorithm`."""

from collections.abc import Callable

from fedjax_sim.core.types import Coefficients


def means_alone(why: str) -> Callable[[Coefficients], None]:
    """Refuses a rule that is no mean over the clients that report."""

    def check_rule(coefficients: Coefficients) -> None:
        if coefficients.denominator is not None or coefficients.combine is not None:
            raise ValueError(
                "aggregation must be a mean over the clients that report, as "
                f"fs.aggregation.selected or .uniform, for this algorithm, because {why}"
            )

    return check_rule


def averages_alone(why: str) -> Callable[[Coefficients], None]:
    """Refuses a rule that combines all updates."""

    def check_rule(coefficients: Coefficients) -> None:
        if coefficients.combine is not None:
            raise ValueError(
                "aggregation must be an average, as fs.aggregation.selected, for this algorithm, "
                f"because {why}; it combines all updates"
            )

    return check_rule
