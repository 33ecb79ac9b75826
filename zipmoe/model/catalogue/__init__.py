"""What is in a hub checkpoint: every expert as byte ranges of its shards, every dense tensor, every model file."""

from zipmoe.model.checkpoint.catalogue import Catalogue, catalogue
from zipmoe.model.checkpoint.families import FAMILIES

__all__ = ["FAMILIES", "Catalogue", "catalogue"]
