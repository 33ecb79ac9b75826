"""Creates policies by name."""

from __future__ import annotations

from zipmoe.errors import InvalidRequest
from zipmoe.residency.policies.adaptive import AdaptivePolicy
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.policies.fifo import FifoPolicy
from zipmoe.residency.policies.lfu import LfuPolicy
from zipmoe.residency.policies.lru import LruPolicy
from zipmoe.residency.policies.marking import MarkingPolicy
from zipmoe.residency.policies.popularity_rank import RankPolicy
from zipmoe.residency.pools import Grid

DEFAULT_POLICY = AdaptivePolicy.name

_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (AdaptivePolicy, RankPolicy, LruPolicy, LfuPolicy, FifoPolicy, MarkingPolicy)
}


def policy_names() -> tuple[str, ...]:
    """Returns the names of all policies, the default policy first."""
    return tuple(_POLICIES)


def create_policy(name: str, grid: Grid, *, seed: int = 0) -> Policy:
    """Creates a policy.

    Args:
        name: one of `policy_names()`.
        grid: the experts of the model.
        seed: seed of random choices. Runs with the same seed and the same events are equal.

    Raises:
        InvalidRequest: there is no policy of that name.
    """
    if name not in _POLICIES:
        raise InvalidRequest(f"there is no policy {name!r}, only {', '.join(_POLICIES)}")
    return _POLICIES[name](grid, seed=seed)
