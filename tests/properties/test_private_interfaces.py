"""Private interfaces of transformers are used in `zipmoe/model/stock` alone, read from the source of every program.

Private are names with an underscore, and everything that the package `transformers` itself does not hand out. Tests are
left out: they compare with stock's own parts.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
TREES = ("zipmoe", "services", "benchmarks", "demo", "scripts")
ROOM = ROOT / "zipmoe" / "model" / "stock"
TESTS_OF_THE_ROOM = ROOT / "tests" / "model" / "stock"

#: Private names of other libraries, and names of NamedTuple, whose underscore does not make them private.
OF_OTHERS = {
    *("_asdict", "_replace"),
    *("_exit", "_actions", "_NamedFuncPointer"),  # os, argparse, ctypes
    *("_C", "_len_torch_function_stack", "_len_torch_dispatch_stack", "_schema"),  # torch
}
#: The classes of transformers whose objects we hold.
HELD = (
    transformers.PreTrainedModel,
    transformers.GenerationMixin,
    transformers.PreTrainedConfig,
    transformers.GenerationConfig,
    transformers.DynamicCache,
    transformers.EncoderDecoderCache,
    transformers.PreTrainedTokenizerBase,
    transformers.WeightConverter,
    transformers.AutoModelForCausalLM,
    transformers.AutoTokenizer,
    transformers.AttentionInterface,
)
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller"}


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def is_handed_out(name: str) -> bool:
    """Whether `from transformers import name` gives a public name, and not a submodule."""
    found = getattr(transformers, name, None)
    is_submodule = inspect.ismodule(found) and found.__name__ == f"transformers.{name}"
    return name == "__version__" or (found is not None and not name.startswith("_") and not is_submodule)


class Source:
    """The names and the uses of other modules' names in the text of a module."""

    def __init__(self, text: str) -> None:
        self.nodes = list(ast.walk(ast.parse(text)))

    @cached_property
    def defined(self) -> set[str]:
        """Names that the module defines: functions, classes, variables, attributes of its own objects."""
        found = set()
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node, ast.Name):
                    found.add(node.id)
                elif is_own(node.value):
                    found.add(node.attr)
        return found

    @cached_property
    def attributes(self) -> Iterator[tuple[int, str, bool]]:
        """The private attributes that the module uses, by line: also by text, and whether of `self` or `cls`."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                found.append((node.lineno, node.attr, is_own(node.value)))
            elif isinstance(node, ast.Call) and called(node) in BY_NAME:
                names = [each.value for each in node.args if isinstance(each, ast.Constant)]
                found += [(node.lineno, name, False) for name in names if isinstance(name, str) and is_private(name)]
        return found

    def private_uses(self, of_transformers: set[str], of_ours: set[str]) -> list[str]:
        """Uses of private interfaces of transformers, as "line: use".

        Args:
            of_transformers: private names of the classes of transformers.
            of_ours: names that our own modules define.
        """
        found = [*self._imports(), *self._modules_by_name()]
        for line, name, own in self.attributes:
            of_this_class = name in (self.defined if name in of_transformers else of_ours)
            of_this_module = name in self.defined and name not in of_transformers
            if name not in OF_OTHERS and not (of_this_class if own else of_this_module):
                found.append((line, f"uses {name}"))
        for node in self.nodes:
            if isinstance(node, ast.keyword) and node.arg in of_transformers:
                found.append((node.value.lineno, f"passes {node.arg}"))
            elif isinstance(node, ast.Constant) and node.value in of_transformers - self.defined:
                found.append((node.lineno, f"names {node.value}"))
            elif isinstance(node, ast.ClassDef) and any(ast.unparse(base) in self._handed_out for base in node.bases):
                methods = {each.name: each.lineno for each in node.body if isinstance(each, ast.FunctionDef)}
                found += [(line, f"overrides {name}") for name, line in methods.items() if name in of_transformers]
        return [f"{line}: {use}" for line, use in sorted(set(found))]

    @cached_property
    def _handed_out(self) -> set[str]:
        """Names of this module that are from the top level of transformers."""
        return {
            alias.asname or alias.name
            for node in self.nodes
            if isinstance(node, ast.ImportFrom) and node.module == "transformers"
            for alias in node.names
        }

    def _imports(self) -> Iterator[tuple[int, str]]:
        packages = set()
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and not node.level and node.module == "transformers":
                yield from (
                    (node.lineno, f"imports {alias.name}") for alias in node.names if not is_handed_out(alias.name)
                )
            elif isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}".startswith("transformers."):
                yield node.lineno, f"imports {node.module}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("transformers."):
                        yield node.lineno, f"imports {alias.name}"
                    elif alias.name == "transformers":
                        packages.add(alias.asname or alias.name)
        for node in self.nodes:
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in packages and not is_handed_out(node.attr):
                yield node.lineno, f"uses transformers.{node.attr}"

    def _modules_by_name(self) -> Iterator[tuple[int, str]]:
        """Modules of transformers by their names, and modules of unknown names, which may be transformers'."""
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"transformers\.[\w.]*", node.value):
                    yield node.lineno, f"names {node.value}"
            elif isinstance(node, ast.Attribute) and node.attr in ("__globals__", "getmodule"):
                yield node.lineno, f"uses {node.attr}"
            elif isinstance(node, ast.Subscript) and is_module_of_unknown_name(node):
                yield node.lineno, "looks up a module"


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_module_of_unknown_name(node: ast.Subscript) -> bool:
    return not isinstance(node.slice, ast.Constant) and ast.unparse(node.value) in ("sys.modules", "modules")


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


PATHS = [
    path
    for tree in TREES
    for path in sorted((ROOT / tree).rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
]
SOURCES = {path: Source(path.read_text(encoding="utf-8")) for path in PATHS}
OF_OURS = {name for source in SOURCES.values() for name in source.defined}


def private_names_of_transformers() -> set[str]:
    """The private names of the classes whose objects we hold, and those that the room uses."""
    classes = {kind for held in HELD for kind in held.__mro__ if kind.__module__.startswith("transformers.")}
    names = {name for kind in classes for name in vars(kind)} | set(vars(transformers.PreTrainedConfig()))
    for path, source in SOURCES.items():
        if ROOM in path.parents:
            names |= {name for _, name, own in source.attributes if not own} - source.defined
    return {name for name in names if is_private(name)} - OF_OTHERS


OF_TRANSFORMERS = private_names_of_transformers()


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("from transformers.cache_utils import DynamicCache", "imports transformers.cache_utils"),
        ("def f():\n    import transformers.models.auto as auto", "imports transformers.models.auto"),
        ("from transformers import cache_utils", "imports cache_utils"),
        ("import transformers as t\nt.cache_utils.DynamicCache", "uses transformers.cache_utils"),
        ("from importlib import import_module\nimport_module('transformers.masking_utils')", "names transformers."),
        ("name = f'transformers.models.{family}'", "names transformers.models."),
        ("import sys\nsys.modules[type(module).__module__].eager_attention_forward", "looks up a module"),
        ("model.forward.__globals__['eager_attention_forward']", "uses __globals__"),
        ("model._init_weights(module)", "uses _init_weights"),
        ("model._something_of_next_year()", "uses _something_of_next_year"),
        ("self.model._moe_of_next_year", "uses _moe_of_next_year"),
        ("config._attn_implementation = 'eager'", "uses _attn_implementation"),
        ("getattr(experts, '_apply_gate')", "uses _apply_gate"),
        ("hasattr(model, '_something_of_next_year')", "uses _something_of_next_year"),
        ("config.update({'_attn_implementation': 'eager'})", "names _attn_implementation"),
        ("AutoConfig.from_pretrained(path, _attn_implementation='eager')", "passes _attn_implementation"),
        ("def _init_weights(): ...\nmodel._init_weights(module)", "uses _init_weights"),
        ("from transformers import Cache\nclass Ours(Cache):\n    def _pad(self): ...", "overrides _pad"),
        ("class Ours(Theirs):\n    def f(self): return self._something_of_next_year", "uses _something_of_next_year"),
        ("class Ours(Theirs):\n    def f(self): return self._supports_sdpa", "uses _supports_sdpa"),
    ],
)
def test_a_private_use_is_found(text: str, use: str) -> None:
    found = Source(text).private_uses(OF_TRANSFORMERS, OF_OURS)
    assert any(use in each for each in found), found


@pytest.mark.parametrize(
    "text",
    [
        "from transformers import AutoConfig, DynamicCache, WeightConverter, __version__, logging",
        "import transformers\ntransformers.AutoConfig.from_pretrained(path)",
        "class Ours:\n    def __init__(self): self._pad = 0\n    def f(self): return self._pad",
        "class Ours:\n    def __init__(self): self._rows = 0\n    def f(self, other): return other._rows",
        "NamedTuple('Row', [])()._replace(token=1)",
        "sys.modules['torch']",
        "'transformers 5.23 does not know this model type'",
    ],
)
def test_a_public_use_and_a_private_name_of_ours_are_let_through(text: str) -> None:
    assert Source(text).private_uses(OF_TRANSFORMERS, OF_OURS) == []


def test_the_walk_sees_the_room_and_its_uses() -> None:
    """Guards the next test: an empty walk would hold the rule."""
    found = {path.stem: SOURCES[path].private_uses(OF_TRANSFORMERS, OF_OURS) for path in PATHS if ROOM in path.parents}
    assert {"model_class", "conversion_tables", "attention_switch", "caches", "generation_settings"} <= {
        name for name, uses in found.items() if uses
    }
    assert {"_attn_implementation", "_init_weights", "_get_logits_processor", "_apply_gate"} <= OF_TRANSFORMERS
    assert len(PATHS) > 400


def test_nothing_outside_the_room_uses_a_private_interface_of_transformers() -> None:
    found = {
        str(path.relative_to(ROOT)): uses
        for path, source in SOURCES.items()
        if ROOM not in path.parents and (uses := source.private_uses(OF_TRANSFORMERS, OF_OURS))
    }
    assert found == {}, (
        "put these behind a function of zipmoe/model/stock, or a private name of ours behind a public one"
    )


def test_every_module_of_the_room_has_a_test_of_its_own() -> None:
    modules = {path.stem for path in ROOM.glob("*.py")} - {"__init__"}
    assert modules == {path.stem.removeprefix("test_") for path in TESTS_OF_THE_ROOM.glob("test_*.py")}
