"""What is in a hub checkpoint: every expert as byte ranges of its shards, every dense tensor, every model file."""

from zipmoe.model.catalogue.families import FAMILIES
from zipmoe.model.catalogue.source import Catalogue, catalogue

__all__ = ["FAMILIES", "Catalogue", "catalogue"]
