"""The settings behind the split of a memory budget, read as the services read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zipmoe.cli.flags import Settings, flags
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.process.budgeted import BudgetedConfig


def parse_budgeted(settings: Settings, verb: str) -> BudgetedConfig:
    """Reads the settings that all three services share; those that are None come from ZIPMOE_... or their defaults.

    Args:
        settings: by field name of `BudgetedConfig`; others are left out.
        verb: whose help to point at.

    Raises:
        InvalidRequest: with one line for each problem.
    """
    from zipmoe.process.budgeted import BudgetedConfig
    from zipmoe.process.config import parse_config

    budgeted = {name: value for name, value in settings.items() if name in BudgetedConfig.model_fields}
    try:
        return parse_config(BudgetedConfig, flags(budgeted))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, next_step=f"see `zipmoe {verb} --help`") from error
