"""Runs the command line: `python -m zipmoe VERB`."""

from zipmoe.cli.__main__ import app

if __name__ == "__main__":
    app(prog_name="zipmoe")
