"""Who may import whom (DESIGN, section 8), read from the source of every module and checked once in a live process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("zipmoe", "services")

PURE_PACKAGES = ("codec", "store", "arena", "residency", "planning", "simulation", "serving", "kernels")
NOT_IN_PURE_PACKAGES = {"grpc", "grpc_health", "grpc_status", "grpc_reflection", "asyncio", "prometheus_client"}
HEAVY = {"torch", "transformers", "tokenizers", "safetensors"}
# The readable reference of the planes: only tests import it.
MAY_IMPORT_TORCH = {"zipmoe.codec.planes_twin"}
# Processes that must stay small: three copies of torch would cost 0.7 GB of the memory budget.
SMALL_SERVICES = ("expert_store", "decoder", "gateway")
# The gateway knows the router as its clients do: neither its protocol nor anything of the model.
OF_THE_LIBRARY_FOR_THE_GATEWAY = (
    "zipmoe", "zipmoe.errors", "zipmoe.system_error", "zipmoe.client", "zipmoe.rpc", "zipmoe.process",
)  # fmt: skip

# Which modules of other services a service may import. The gateway is a client of the router like any other.
MEETING_POINTS = {
    "expert_store": set[str](),
    "decoder": {"zipmoe.services.expert_store.client"},
    "router": {"zipmoe.services.decoder.client"},
    "gateway": set[str](),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target: a module of ours as far as it exists, or a foreign top-level name."""

    target: str
    line: int
    at_module_level: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("zipmoe", *parts) if parts[0] == "services" else parts  # zipmoe/services links to services
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))}


def is_type_checking(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(body: list[ast.stmt], at_module_level: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, and whether importing the module runs it; what is for type checkers only is left out."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_module_level
        elif isinstance(node, ast.If) and is_type_checking(node):
            yield from statements(node.orelse, at_module_level)
        else:
            inside = at_module_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for name in ("body", "orelse", "finalbody", "handlers", "cases"):
                for child in getattr(node, name, []):
                    block = [child] if isinstance(child, ast.stmt) else child.body
                    yield from statements(block, inside)


def imports_of(name: str) -> list[Import]:
    path = MODULES[name]
    found = []
    for node, at_module_level in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module or "") if part)
            # `from a import b` is the module a.b where there is one, otherwise a name in a.
            targets = [
                f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES else origin for alias in node.names
            ]
        found += [Import(target, node.lineno, at_module_level) for target in dict.fromkeys(targets)]
    return found


IMPORTS = {name: imports_of(name) for name in MODULES}


def violations(modules: Iterator[str] | list[str], forbidden) -> list[str]:
    """Readable places at which one of the modules imports what `forbidden(module, target)` says it must not."""
    return [
        f"{MODULES[name].relative_to(ROOT)}:{each.line} imports {each.target}"
        for name in modules
        for each in IMPORTS[name]
        if forbidden(name, each.target)
    ]


def below(package: str) -> list[str]:
    return [name for name in MODULES if name == package or name.startswith(package + ".")]


def top(target: str) -> str:
    return target.partition(".")[0]


def loaded_with(name: str) -> dict[str, str]:
    """Every module that importing `name` loads, ours and foreign top-level names, each with who asks for it."""
    loaded = {name: "the command line"}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        parents = [current.rpartition(".")[0]] if "." in current else []
        targets = [each.target for each in IMPORTS.get(current, []) if each.at_module_level]
        for target in parents + targets:
            known = target if target in MODULES else top(target)
            if known not in loaded:
                loaded[known] = current
                waiting.append(known)
    return loaded


def test_the_walk_sees_the_tree():
    """Guards the other tests: an empty walk would hold every rule."""
    assert {"zipmoe.arena.arena", "zipmoe.rpc.server", "zipmoe.errors"} <= set(MODULES)
    assert Import("zipmoe.errors", 1, True).target in {each.target for each in IMPORTS["zipmoe.arena.arena"]}
    assert {"grpc", "zipmoe.rpc.status", "zipmoe.rpc", "zipmoe"} <= set(loaded_with("zipmoe.rpc.server"))


def test_every_import_names_a_module_that_exists():
    assert violations(list(MODULES), lambda _, target: top(target) in TREES and target not in MODULES) == []


def library() -> list[str]:
    return [name for name in below("zipmoe") if name not in below("zipmoe.services")]


def test_the_library_imports_no_service():
    assert violations(library(), lambda _, target: f"{target}.".startswith("zipmoe.services.")) == []


@pytest.mark.parametrize("package", PURE_PACKAGES)
def test_a_pure_package_imports_no_io_framework_not_even_through_others(package):
    names = below(f"zipmoe.{package}")
    assert names
    assert violations(names, lambda _, target: top(target) in NOT_IN_PURE_PACKAGES) == []
    through_others = {
        f"{name} loads {foreign} through {loaded[foreign]}"
        for name in names
        for loaded in [loaded_with(name)]
        for foreign in NOT_IN_PURE_PACKAGES & loaded.keys()
    }
    assert through_others == set()


@pytest.mark.parametrize("package", PURE_PACKAGES)
def test_a_pure_package_knows_nothing_of_processes(package):
    def is_process(_name: str, target: str) -> bool:
        return f"{target}.".startswith(("zipmoe.process.", "zipmoe.rpc.", "zipmoe.cli."))

    assert violations(below(f"zipmoe.{package}"), is_process) == []


def test_residency_is_imported_by_planning_and_simulation_and_never_imports_them():
    def is_above(_name: str, target: str) -> bool:
        return f"{target}.".startswith(("zipmoe.planning.", "zipmoe.simulation."))

    assert violations(below("zipmoe.residency"), is_above) == []
    assert violations(below("zipmoe.planning"), lambda _, target: target.startswith("zipmoe.simulation")) == []


def room_of(name: str) -> str:
    """The folder that a module stands in. A package's map stands in its own, and a program is a room by itself."""
    return name if MODULES[name].name in ("__init__.py", "__main__.py") else name.rpartition(".")[0]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Some names that import each other in a ring, [] if there are none."""
    left = {name: set(targets) for name, targets in imports.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    if not left:
        return []
    ring = [next(iter(left))]
    while ring.count(ring[-1]) == 1:
        ring.append(sorted(left[ring[-1]] & left.keys())[0])
    return ring[ring.index(ring[-1]) :]


def test_no_modules_import_each_other_in_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({name: {each.target for each in IMPORTS[name] if each.target in MODULES} for name in MODULES}) == []


def ties(depth: int, inside: str) -> dict[str, set[str]]:
    """Which rooms below `inside` import which others; rooms of rooms count as their parent at `depth` names."""
    at = {name: ".".join(room_of(name).split(".")[:depth]) for name in MODULES if name.startswith(f"{inside}.")}
    rooms: dict[str, set[str]] = {room: set() for room in at.values()}
    for name, room in at.items():
        rooms[room] |= {at[each.target] for each in IMPORTS[name] if each.target in at} - {room}
    return rooms


def test_no_rooms_import_each_other_in_a_circle():
    """Neither the rooms of the library and the services, nor the rooms inside one; a room and its own rooms may."""
    library_rooms = ties(2, "zipmoe")
    del library_rooms["zipmoe"]  # the nouns below everything, and `python -m zipmoe`
    assert len(library_rooms) > 15
    assert circle(library_rooms) == []
    for room in {*library_rooms, *ties(3, "zipmoe.services")}:
        depth = room.count(".") + 2
        siblings = ties(depth, room)
        siblings.pop(room, None)
        assert circle(siblings) == [], room


@pytest.mark.parametrize("package", [*PURE_PACKAGES, "rpc", "client", "internal", "v1"])
def test_torch_stays_out_of_everything_but_the_model(package):
    names = [name for name in below(f"zipmoe.{package}") if name not in MAY_IMPORT_TORCH]
    assert names
    assert violations(names, lambda _, target: top(target) in HEAVY) == []
    heavy = {name: sorted(HEAVY & loaded_with(name).keys()) for name in names}
    assert {name: found for name, found in heavy.items() if found} == {}


def test_only_the_readable_reference_and_nothing_of_the_product_uses_torch_in_the_codecs():
    assert violations(list(MODULES), lambda _, target: target in MAY_IMPORT_TORCH) == []


def test_the_nouns_and_the_errors_import_only_the_standard_library():
    names = ["zipmoe", "zipmoe.errors", "zipmoe.system_error", "zipmoe.types"]
    assert violations(names, lambda _, target: top(target) not in sys.stdlib_module_names) == []


@pytest.mark.parametrize("service", sorted(MEETING_POINTS))
def test_services_meet_only_at_their_clients(service):
    def is_foreign(_name: str, target: str) -> bool:
        if target in MEETING_POINTS[service]:
            return False
        return target.startswith("zipmoe.services.") and not f"{target}.".startswith(f"zipmoe.services.{service}.")

    assert violations(below(f"zipmoe.services.{service}"), is_foreign) == []


def test_the_gateway_is_a_client_like_any_other():
    def is_foreign(_name: str, target: str) -> bool:
        allowed = any(target == each or target.startswith(f"{each}.") for each in OF_THE_LIBRARY_FOR_THE_GATEWAY[1:])
        own = target.startswith("zipmoe.services.gateway")
        return top(target) == "zipmoe" and not (allowed or own) and target not in OF_THE_LIBRARY_FOR_THE_GATEWAY

    assert violations(below("zipmoe.services.gateway"), is_foreign) == []


def test_nobody_imports_services_by_the_name_that_strangers_have():
    """The services are installed as `zipmoe.services`; `services` is only the name of a folder in the repository."""
    paths = [
        path for tree in ("tests", "benchmarks", "demo", "scripts", *TREES) for path in (ROOT / tree).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node, _ in statements(ast.parse(path.read_text(encoding="utf-8")).body)
        for target in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
        if top(target) == "services"
    ]
    assert found == []


def test_every_service_has_a_rule():
    services = {name.split(".")[2] for name in MODULES if name.startswith("zipmoe.services.")}
    assert services <= set(MEETING_POINTS)


@pytest.mark.parametrize("service", SMALL_SERVICES)
def test_a_small_service_never_names_torch(service):
    names = below(f"zipmoe.services.{service}")
    assert violations(names, lambda _, target: top(target) in HEAVY) == []
    for name in names:
        assert HEAVY & loaded_with(name).keys() == set()


@pytest.mark.parametrize("service", SMALL_SERVICES)
def test_a_small_service_starts_without_torch(service):
    """What the source says, once more in a live process: C extensions and plug-ins import behind its back."""
    program = f"import sys, zipmoe.services.{service}.__main__; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT
    )
    assert (ended.returncode, ended.stdout) == (0, "\n"), ended.stderr
