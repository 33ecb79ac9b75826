"""Runs the clients and prints the table; the exit status is 1 if a check has failed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import scripts.try_clients
from scripts.try_clients.call_demander import demanding_calls
from scripts.try_clients.client_run import try_client
from scripts.try_clients.client_table import Installed, clients
from scripts.try_clients.isolated_network import isolate
from scripts.try_clients.outcome_table import as_table
from scripts.try_clients.served_model import Served, pack_calling_model, served


@contextmanager
def gateway(url: str | None, metrics_url: str) -> Iterator[Served]:
    """Yields the gateway of a URL, or one that runs during the block."""
    if url is not None:
        yield Served(url.rstrip("/"), metrics_url)
        return
    with tempfile.TemporaryDirectory(prefix="tc") as name:
        store = pack_calling_model(Path(name))
        with served(store, Path(name) / "r") as running:
            yield running


def main(words: Sequence[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.try_clients",
        description=scripts.try_clients.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", type=Path, help="interpreter of an environment with the Python clients")
    parser.add_argument("--node", type=Path, help="folder with node_modules/openai")
    parser.add_argument("--opencode", type=Path, help="the program opencode")
    parser.add_argument("--base-url", help="a gateway that runs already, with /v1; its network is not shut off")
    parser.add_argument("--metrics-url", default="", help="with --base-url: metrics of its router, to observe cancels")
    parser.add_argument("--only", action="append", default=[], metavar="CLIENT", help="try this client; repeatable")
    arguments = parser.parse_args(words)
    rows = clients(Installed(arguments.clients, arguments.node, arguments.opencode), sys.executable)
    unknown = set(arguments.only) - {row.name for row in rows}
    if unknown:
        parser.error(f"no client is named {sorted(unknown)[0]}; there are {', '.join(row.name for row in rows)}")
    if arguments.base_url is not None:
        print("network: not shut off, since --base-url names a gateway outside")
    elif isolate("scripts.try_clients", words):
        print("network: a namespace with loopback only")
    else:
        print("network: not shut off, since this machine allows no network namespace")
    tried = []
    with gateway(arguments.base_url, arguments.metrics_url) as running, demanding_calls(running.url) as demanding_url:
        places = {"TRIED_URL": running.url, "TRIED_DEMANDING_URL": demanding_url, "TRIED_MODEL": running.model()}
        places["TRIED_METRICS_URL"] = running.metrics_url
        for row in rows:
            if not arguments.only or row.name in arguments.only:
                print(f"{row.name} ...", file=sys.stderr, flush=True)
                tried.append(try_client(row, places))
    print(as_table(tried))
    return int(any(each.has_failed for each in tried))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
