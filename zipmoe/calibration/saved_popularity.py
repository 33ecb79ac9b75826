"""Keeps the popularity of a store's experts between runs, and learns popularity from a recorded trace."""

from __future__ import annotations

import json
from pathlib import Path

from zipmoe.calibration.calibration_file import cache_folder, write_atomically
from zipmoe.errors import InvalidRequest
from zipmoe.planning.popularity import Popularity
from zipmoe.simulation.trace import load_trace
from zipmoe.store.format.manifest import Manifest


def popularity_path(digest: str) -> Path:
    """Returns the path of the file with the popularity of a store's experts."""
    return cache_folder() / "popularity" / f"{digest}.json"


def load_popularity(manifest: Manifest) -> Popularity | None:
    """Reads the popularity that earlier runs saved; None if missing, damaged or of another shape than the store."""
    try:
        popularity = Popularity.from_plain(json.loads(popularity_path(manifest.digest).read_bytes()))
    except (OSError, ValueError, TypeError, InvalidRequest):
        return None
    matches = popularity.expert_counts == tuple(layer.expert_count for layer in manifest.layers)
    return popularity if matches else None


def save_popularity(manifest: Manifest, popularity: Popularity) -> Path:
    """Saves the popularity of a store's experts; returns the file, raises OSError."""
    path = popularity_path(manifest.digest)
    write_atomically(path, json.dumps(popularity.to_plain()).encode())
    return path


def popularity_of_trace(trace: Path, manifest: Manifest) -> Popularity:
    """Learns popularity from a recorded trace.

    Raises:
        NotFound: the file cannot be read.
        InvalidRequest: the file is no trace, or names a layer or expert that the store does not have.
    """
    popularity = Popularity([layer.expert_count for layer in manifest.layers])
    popularity.seed(load_trace(trace))
    return popularity
