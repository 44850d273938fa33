"""The names of the released packages, for code that changes an import and nothing else.

from sgd_sai import SGD_sai            ->  from optimizers.compat import SGD_sai
from adam_mini import Adam_mini        ->  from optimizers.compat import Adam_mini
from adamw_sn import AdamwSN           ->  from optimizers.compat import AdamwSN
from adamw_sng import AdamwSN          ->  from optimizers.compat import AdamwSNG as AdamwSN
from galore_torch import GaLoreAdamW   ->  from optimizers.compat import GaLoreAdamW
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .adam_mini import AdamMini
from .galore_methods import GaLoreAdafactor, GaLoreAdamW8bit
from .galore_methods import GaLoreAdamW as _GaLoreAdamW
from .ldadam import LDAdamW
from .sgd_boost import SGDBoost as SGD_sai
from .subset_norm import AdamWSN as AdamwSN
from .subset_norm import AdamWSNG as AdamwSNG


def Adam_mini(
    named_parameters: Iterable[Any], *values: Any, model_sharding: Any = None, verbose: Any = True, **keywords: Any
) -> AdamMini:
    """`AdamMini` with the released signature. What no name tells is one block per tensor, as there.

    model_sharding and verbose are accepted and change nothing.
    """
    return AdamMini(named_parameters, *values, otherwise="tensor", **keywords)


def GaLoreAdamW(params: Iterable[Any], *values: Any, no_deprecation_warning: bool = True, **keywords: Any) -> Any:
    """`GaLoreAdamW` with the released signature; no_deprecation_warning is accepted and changes nothing."""
    return _GaLoreAdamW(params, *values, **keywords)


__all__ = [
    "Adam_mini",
    "AdamwSN",
    "AdamwSNG",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "LDAdamW",
    "SGD_sai",
]
