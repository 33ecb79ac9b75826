"""Renames classes and functions by symbols.toml, in their modules and wherever they are imported; idempotent."""

from __future__ import annotations

import ast
import subprocess
import tomllib

from move_rooms import ROOT, path_of, rename_tokens, tracked


def main() -> None:
    """Applies the table."""
    tables = tomllib.loads((ROOT / "scripts/moves/symbols.toml").read_text())
    tables = {(f"zipmoe.{name}" if name.startswith("services.") else name): table for name, table in tables.items()}
    for path in tracked():
        if path.suffix != ".py":
            continue
        text = path.read_text()
        table: dict[str, str] = {}
        for module, names in tables.items():
            own = module.removeprefix("zipmoe.") if module.startswith("zipmoe.services.") else module
            if path == path_of(own):
                defined = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
                table |= {old: new for old, new in names.items() if old in defined}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module in tables:
                names = tables[node.module]
                for alias in node.names:
                    if alias.name in names:
                        table[alias.name] = names[alias.name]
                        if alias.asname:
                            print("aliased", path, alias.name, alias.asname)
        if table:
            new = rename_tokens(text, table, mentions=True)
            path.write_text(new)
    ruff = ROOT / ".venv/bin/ruff"
    subprocess.call([ruff, "check", "-q", "--select", "I", "--fix", "."], cwd=ROOT)
    subprocess.call([ruff, "format", "-q", "."], cwd=ROOT)


if __name__ == "__main__":
    main()
