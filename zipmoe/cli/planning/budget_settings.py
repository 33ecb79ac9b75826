"""Parses the settings that determine the split of a memory budget, with the services' own parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zipmoe.cli.flags import Settings, flags
from zipmoe.errors import InvalidRequest

if TYPE_CHECKING:
    from zipmoe.process.budgeted import BudgetedConfig


def parse_budgeted(settings: Settings, verb: str) -> BudgetedConfig:
    """Parses the settings that all three services share.

    A setting of None comes from its ZIPMOE_... variable, else from its default.

    Args:
        settings: values by field name of `BudgetedConfig`; other names are ignored.
        verb: name of the verb; the next step of an error points to its help.

    Raises:
        InvalidRequest: a setting is invalid; the message has one line for each problem.
    """
    from zipmoe.process.budgeted import BudgetedConfig
    from zipmoe.process.config import parse_config

    budgeted = {name: value for name, value in settings.items() if name in BudgetedConfig.model_fields}
    try:
        return parse_config(BudgetedConfig, flags(budgeted))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, next_step=f"see `zipmoe {verb} --help`") from error
