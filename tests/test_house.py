"""The shape of the code: imports go one way, a task is known in its room only, parts stay small."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from s3prl_varan.tasks import task_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "s3prl_varan"
TOOLS = ROOT / "run"
# Names of tasks that are words of their own (CTC is a loss too): elsewhere they are looked for as
# -d NAME and the like.
ENGLISH = {"classification", "ctc"}
# The English word: of corpora and probes of emotion, not of the task. And what mutates the configs
# of all tasks, by name.
SPEAKS_OF_EMOTION = {
    "run/micro_wavlm/probes.py",
    "run/prepare_data.py",
    "run/stress/configs.py",
    "run/stress/ground.py",
    "run/stress/mutations.py",
    "run/synthetic/__init__.py",
    "s3prl_varan/corpora/emodb.py",
    "s3prl_varan/corpora/iemocap.py",
    "s3prl_varan/corpora/ravdess.py",
}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports.

    A package's __init__ stands for what it defines itself; the root's only hands names on.
    """
    modules = {module_of(path): path for path in sources(PACKAGE)}
    graph = {}
    for module, path in modules.items():
        found = set()
        for name in imported(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = found - {"", PACKAGE.name, module}
    return graph


def package_of(module: str) -> str:
    """`s3prl_varan.tasks.asr.beam` -> `s3prl_varan.tasks`; a file at the top stands for itself."""
    return ".".join(module.split(".")[:2])


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_check_sees_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert len(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == 4
    graph = import_graph()
    assert "s3prl_varan.layerwise.heads" in graph["s3prl_varan.tasks.shapes.base"]
    assert "s3prl_varan.app.inference" in graph["s3prl_varan.app.run"]  # in a function


def test_no_file_imports_itself_in_a_circle():
    assert circle(import_graph()) == []


def test_no_loop_between_packages():
    packages = defaultdict(set)
    for module, targets in import_graph().items():
        own = package_of(module)
        packages[own] |= {package_of(target) for target in targets} - {own}
    del packages[PACKAGE.name]
    assert circle(packages) == []


def test_reports_need_no_model():
    targets = set()
    for module, found in import_graph().items():
        if package_of(module) == "s3prl_varan.report":
            targets |= {package_of(target) for target in found}
    allowed = {f"s3prl_varan.{name}" for name in ("report", "errors", "files", "intervals")}
    assert targets <= allowed


def test_no_task_is_known_by_name_outside_its_room():
    names = task_names()
    flag = re.compile(rf"(-d |tasks\.|downstream_configs/)({'|'.join(names)})\b")
    own_words = "|".join(set(names) - ENGLISH)
    word = re.compile(rf"(?<!s3prl\.downstream\.)\b({own_words})\b|{flag.pattern}")
    found = []
    for path in [*sources(PACKAGE), *sources(TOOLS)]:
        place = path.relative_to(ROOT).as_posix()
        room = re.match(r"s3prl_varan/tasks/(\w+)", place)
        own = room[1] if room else None
        looked_for = flag if place in SPEAKS_OF_EMOTION else word
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            named = [match for match in looked_for.finditer(line) if own not in match.groups()]
            found += [f"{place}:{number}: {line.strip()}" for _ in named[:1]]
    assert not found, "\n".join(found)


def test_parts_stay_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    long = []
    for path in sources(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path}: {node.name} has {lines} lines")
    assert not long
