"""Moves modules to their rooms and rewrites every reference to them; running it again changes nothing.

    python scripts/moves/move_rooms.py ROOM...      the tables of rooms.toml, `package` (services becomes
                                                    zipmoe.services in imports), or `all`

A branch that was begun before the moves is brought over by running `all` on it, then ruff.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = tomllib.loads((ROOT / "scripts/moves/rooms.toml").read_text())
TEXT = {".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".yml", ".yaml", ".cpp", ".h", ".c", ".proto", ".cfg", ""}
SKIP = ("scripts/moves/", "demo/model/", "tests/fuzz/corpus/", "CHANGELOG.md")
TOPS = {"zipmoe", "services", "tests", "benchmarks", "demo"}


def tracked() -> list[Path]:
    """Lists the text files of the project, generated ones left out."""
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    kept = [name for name in names if name and not name.startswith(SKIP) and "_pb2" not in name]
    return [
        ROOT / name
        for name in kept
        if Path(name).suffix in TEXT and not (ROOT / name).is_symlink() and (ROOT / name).is_file()
    ]


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


class Names:
    """Old dotted names and their new ones."""

    def __init__(self, moves: dict[str, str], *, files: bool) -> None:
        self.moves = moves
        self.children: dict[str, set[str]] = {}
        for new in moves.values() if files else ():
            package, _, name = new.rpartition(".")
            self.children.setdefault(package, set()).add(name)
        for old in moves if files else ():
            folder = ROOT / old.replace(".", "/")
            if folder.is_dir():
                self.children.setdefault(old, set()).update(p.stem for p in folder.glob("*.py"))
                self.children[old].update(p.name for p in folder.iterdir() if p.is_dir())
        longest = sorted(moves, key=len, reverse=True)
        self.pattern = (
            re.compile(r"(?<![\w./])(" + "|".join(map(re.escape, longest)) + r")(?!\w)((?:\.\w+)?)") if moves else None
        )
        paths = sorted((old.replace(".", "/") for old in moves), key=len, reverse=True)
        self.path_pattern = (
            re.compile(r"(?<!\w)(" + "|".join(map(re.escape, paths)) + r")\.py(?!\w)") if files else None
        )

    def text(self, text: str) -> str:
        """Rewrites dotted names and paths in free text."""
        if self.pattern is None:
            return text

        def dotted(match: re.Match[str]) -> str:
            old, rest = match[1], match[2]
            if rest and rest[1:] in self.children.get(old, ()):
                return match[0]
            return self.moves[old] + rest

        text = self.pattern.sub(dotted, text)
        if self.path_pattern is None:
            return text
        return self.path_pattern.sub(lambda m: self.moves[m[1].replace("/", ".")].replace(".", "/") + ".py", text)


def rewrite_imports(source: str, names: Names, exports: dict[tuple[str, str], str]) -> str:
    """Rewrites the import statements of a module, and the uses of modules whose last name has changed."""
    lines = source.split("\n")
    renamed: dict[str, str] = {}
    edits: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in TOPS:
            groups: dict[str, list[str]] = {}
            changed = False
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                as_ = f" as {alias.asname}" if alias.asname else ""
                if whole in names.moves and alias.name not in names.children.get(node.module, ()):
                    package, _, name = names.moves[whole].rpartition(".")
                    if not alias.asname and name != alias.name:
                        renamed[alias.name] = name
                    groups.setdefault(package, []).append(name + as_)
                    changed = True
                elif (node.module, alias.name) in exports:
                    groups.setdefault(exports[node.module, alias.name], []).append(alias.name + as_)
                    changed = True
                elif node.module in names.moves and alias.name not in names.children.get(node.module, ()):
                    groups.setdefault(names.moves[node.module], []).append(alias.name + as_)
                    changed = True
                else:
                    groups.setdefault(node.module, []).append(alias.name + as_)
            if changed:
                indent = " " * node.col_offset
                text = "\n".join(f"{indent}from {module} import {', '.join(each)}" for module, each in groups.items())
                edits.append((node.lineno, node.end_lineno or node.lineno, text))
        elif isinstance(node, ast.Import):
            if any(alias.name in names.moves for alias in node.names):
                indent = " " * node.col_offset
                parts = [names.moves.get(a.name, a.name) + (f" as {a.asname}" if a.asname else "") for a in node.names]
                edits.append((node.lineno, node.end_lineno or node.lineno, f"{indent}import {', '.join(parts)}"))
    for first, last, text in sorted(edits, reverse=True):
        comment = re.search(r"\s+#.*$", lines[last - 1])
        lines[first - 1 : last] = (text + (comment[0] if comment else "")).split("\n")
    source = "\n".join(lines)
    return rename_tokens(source, {old: new for old, new in renamed.items()}, before_dot=True) if renamed else source


def rename_tokens(source: str, table: dict[str, str], *, before_dot: bool = False, mentions: bool = False) -> str:
    """Renames NAME tokens that no dot stands before; `before_dot` only where one follows, `mentions` in text too."""
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    edits = []
    word = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, table)) + r")(?!\w)")
    for index, token in enumerate(tokens):
        if token.type == tokenize.NAME and token.string in table:
            before = tokens[index - 1].string if index else ""
            after = tokens[index + 1].string if index + 1 < len(tokens) else ""
            if before == "." or (before_dot and after != "."):
                continue
            edits.append((token.start, token.end, table[token.string]))
        elif mentions and token.type in (tokenize.STRING, tokenize.COMMENT):
            text = word.sub(lambda m: table[m[1]], token.string)
            if text != token.string:
                edits.append((token.start, token.end, text))
    for (row, column), (end_row, end_column), text in sorted(edits, reverse=True):
        head, tail = lines[row - 1][:column], lines[end_row - 1][end_column:]
        lines[row - 1 : end_row] = (head + text + tail).split("\n")
    return "\n".join(lines)


def rewrite_text_tokens(source: str, names: Names) -> str:
    """Rewrites dotted names in the strings and comments of a module."""
    lines = source.split("\n")
    edits = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            text = names.text(token.string)
            if text != token.string:
                edits.append((token.start, token.end, text))
    for (row, column), (end_row, end_column), text in sorted(edits, reverse=True):
        head, tail = lines[row - 1][:column], lines[end_row - 1][end_column:]
        lines[row - 1 : end_row] = (head + text + tail).split("\n")
    return "\n".join(lines)


def move_files(moves: dict[str, str]) -> None:
    for old, new in moves.items():
        source, target = path_of(old), path_of(new)
        if not source.exists():
            continue
        if target.exists():
            raise SystemExit(f"both {source} and {target} exist")
        folder = target.parent
        folder.mkdir(parents=True, exist_ok=True)
        while folder != ROOT and folder.name not in TOPS | {""}:
            init = folder / "__init__.py"
            if not init.exists():
                init.write_text("" if folder.relative_to(ROOT).parts[0] == "tests" else f'"""{folder.name}."""\n')
                subprocess.check_call(["git", "add", init], cwd=ROOT)
            folder = folder.parent
        deeper = new.count(".") - old.count(".")
        subprocess.check_call(["git", "mv", source, target], cwd=ROOT)
        if deeper:
            text = target.read_text()
            fixed = re.sub(
                r"(__file__\)(?:\.resolve\(\))?\.parents\[)(\d+)\]", lambda m: f"{m[1]}{int(m[2]) + deeper}]", text
            )
            if fixed != text:
                target.write_text(fixed)


def apply(moves: dict[str, str], exports: dict[tuple[str, str], str], *, files: bool) -> None:
    names = Names(moves, files=files)
    if files:
        move_files(moves)
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if path.suffix == ".py":
            new = rewrite_text_tokens(rewrite_imports(text, names, exports), names)
        else:
            new = names.text(text)
        if new != text:
            path.write_text(new)


def exports_of(room: str) -> dict[tuple[str, str], str]:
    """Names that a package's `__init__` handed on, and the modules that have them."""
    return {tuple(key.split(":")): value for key, value in TABLES.get(f"{room}_exports", {}).items()}  # type: ignore[misc]


def package_moves() -> dict[str, str]:
    modules = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "services").rglob("*.py")]
    names = [".".join(p.parts[:-1] if p.name == "__init__" else p.parts) for p in modules]
    return {name: f"zipmoe.{name}" for name in names if "." in name}


def main(rooms: list[str]) -> None:
    order = [name for name in TABLES if not name.endswith("_exports")] + ["package"]
    for room in order if rooms == ["all"] else rooms:
        if room == "package":
            apply(package_moves(), {}, files=False)
        else:
            apply(TABLES[room], exports_of(room), files=True)
    ruff = ROOT / ".venv/bin/ruff"
    subprocess.call([ruff, "check", "-q", "--select", "I", "--fix", "."], cwd=ROOT)
    subprocess.call([ruff, "format", "-q", "."], cwd=ROOT)


if __name__ == "__main__":
    main(sys.argv[1:])
