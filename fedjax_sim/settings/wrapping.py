"""What a setting wraps around its algorithm, from the inside out."""

from fedjax_sim.core.types import FederatedAlgorithm
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.transforms.compression import compressed


def wrapped(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """The algorithm under all that the setting's optional rooms make of it.

    Raises:
      ValueError: for an algorithm that one of them refuses.
    """
    return _compressed(algorithm, setting)


def _compressed(algorithm: FederatedAlgorithm, setting: ResolvedSetting) -> FederatedAlgorithm:
    """In two calls, since each direction says by itself whether errors are fed back."""
    uplink, downlink = setting.choices.compress, setting.choices.downlink
    if uplink is not None:
        codec = uplink.call(setting.options)
        algorithm = compressed(algorithm, codec, error_feedback=setting.extras["error_feedback"])
    if downlink is not None:
        codec = downlink.call(setting.options)
        algorithm = compressed(
            algorithm, downlink=codec, error_feedback=setting.extras["downlink_error_feedback"]
        )
    return algorithm
