"""The rules that keep the package readable and its model folder fit for the Hub, as a walk over the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "semidetr_hf"

# What each part of the package may import of the rest; a new part must be entered here.
ARROWS: dict[str, set[str]] = {
    "structures": set(),
    "geometry": set(),
    "model": set(),
    "data": {"geometry", "structures"},
    "ssod": {"model", "geometry", "structures"},
    "metrics": set(),
    "training": {"ssod", "data", "metrics", "model", "hub", "structures", "visualization"},
    "labeling": {"data", "structures", "training", "visualization"},
    "export": {"data", "model", "training"},
    "demo_page": {"data", "geometry", "labeling", "prediction", "report", "training", "visualization"},
    "report": {"data", "metrics", "model", "ssod", "structures", "training"},
    "batch_inference": {"data", "video"},
    "deployment": set(),
    "hub": {"deployment"},
    "conversion": {"model", "conversion_tables"},
    "conversion_tables": set(),
    "visualization": {"structures"},
    "video": {"data"},
    "prediction": {"batch_inference", "data", "training", "video", "visualization"},
}
UNRESTRICTED = {"__init__", "cli"}
# What the model folder may need on a machine that downloads it: everything else must be guarded. scipy solves the
# assignment of the loss; every install of this package has it.
MODEL_REQUIREMENTS = {"torch", "torchvision", "transformers", "numpy", "PIL", "huggingface_hub", "timm", "scipy"}
FORBIDDEN_NAMES = {"utils", "misc", "common", "helpers"}
MAX_FILE_LINES = {"modeling_semidetr.py": 900}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def part_of(path: Path) -> str:
    """Return `training` for semidetr_hf/training/config.py and `geometry` for semidetr_hf/geometry.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yield the full dotted name of everything imported anywhere in a file of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from semidetr_hf import ssod` names the part only behind the import.
            yield from (f"{prefix}.{alias.name}" if prefix == "semidetr_hf" else prefix for alias in node.names)


def forbidden_arrows(source: str, path: Path) -> list[str]:
    """Return the parts that a file of the package may not import but does."""
    part = part_of(path)
    modules = [name.split(".") for name in imported_modules(source, ".".join(path.relative_to(ROOT).parts[:-1]))]
    imported = {name[1] if len(name) > 1 else "__init__" for name in modules if name[0] == "semidetr_hf"}
    return sorted(imported - ARROWS[part] - {part})


def hub_problems(path: Path) -> list[str]:
    """Return what keeps a file of a flat model folder from working as remote code."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    relative = {node for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
    wrong = [node for node in relative if node.level > 1 or not path.with_name(f"{node.module}.py").exists()]
    problems = [f"`{ast.unparse(node)}` is not `from .sibling import Name`" for node in wrong]
    # transformers finds the files to copy with a regular expression, which also reads docstrings.
    text = set(get_relative_imports(path)) - {"." * (node.level - 1) + (node.module or "") for node in relative}
    problems += [f"a line of text begins like an import of .{name}" for name in text]
    required = set(get_imports(path)) - set(sys.stdlib_module_names) - MODEL_REQUIREMENTS
    problems += [f"{name} would become a requirement" for name in required]
    if any(isinstance(n, ast.Attribute) and n.attr == "loss_function" and isinstance(n.ctx, ast.Store) for n in nodes):
        problems.append("transformers ignores what is assigned to loss_function")
    return problems


def long_functions(source: str, limit: int = 80) -> list[str]:
    return [
        f"{node.name} has {(node.end_lineno or node.lineno) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > limit
    ]


def prints(source: str) -> list[int]:
    """Return the line numbers of calls of `print`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_there_is_a_package_to_check() -> None:
    assert len(python_files("semidetr_hf")) > 10
    assert (PACKAGE / "model").is_dir()


def test_imports_follow_the_arrows() -> None:
    problems = {}
    for path in python_files("semidetr_hf"):
        part = part_of(path)
        if part in UNRESTRICTED:
            continue
        assert part in ARROWS, f"{path.name}: enter what {part} may import in ARROWS"
        if wrong := forbidden_arrows(path.read_text(encoding="utf-8"), path):
            problems[str(path.relative_to(ROOT))] = wrong
    assert problems == {}


def test_structures_and_geometry_need_only_torch() -> None:
    for name in ("structures", "geometry"):
        source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        tops = {module.split(".")[0] for module in imported_modules(source, "semidetr_hf")}
        assert tops - set(sys.stdlib_module_names) <= {"torch"}, name


def test_model_folder_can_be_put_on_the_hub() -> None:
    files = [path for path in python_files("semidetr_hf/model") if path.name != "__init__.py"]
    problems = {path.name: hub_problems(path) for path in files}
    assert {name: found for name, found in problems.items() if found} == {}
    # Files are copied flat.
    assert {path.parent for path in files} == {PACKAGE / "model"}


def test_files_and_functions_are_short() -> None:
    problems = {}
    for path in python_files("semidetr_hf", "examples", "benchmarks"):
        source = path.read_text(encoding="utf-8")
        found = long_functions(source)
        lines = source.count("\n")
        if lines > MAX_FILE_LINES.get(path.name, 400):
            found.append(f"{lines} lines")
        if found:
            problems[str(path.relative_to(ROOT))] = found
    assert problems == {}


def test_no_file_is_named_after_nothing() -> None:
    folders = ("semidetr_hf", "examples", "benchmarks", "tests")
    stems = {part for path in python_files(*folders) for part in path.relative_to(ROOT).with_suffix("").parts}
    assert stems & FORBIDDEN_NAMES == set()


def test_the_package_logs_and_does_not_print() -> None:
    found = {path.name: prints(path.read_text(encoding="utf-8")) for path in python_files("semidetr_hf")}
    assert {name: lines for name, lines in found.items() if lines} == {}


# ---- The checks themselves find what they are there for.


@pytest.mark.parametrize(
    ("source", "file", "expected"),
    [
        ("from semidetr_hf.training.config import DataConfig", "data/coco.py", ["training"]),
        ("def f():\n    import semidetr_hf.ssod.teacher", "data/coco.py", ["ssod"]),
        ("from semidetr_hf import model, geometry", "data/coco.py", ["model"]),
        ("import semidetr_hf", "data/coco.py", ["__init__"]),
        ("from ..ssod.teacher import EMATeacher", "data/coco.py", ["ssod"]),
        ("from .images import Sample\nfrom semidetr_hf.structures import View", "data/__init__.py", []),
        ("from .model.matching import x", "structures.py", ["model"]),
        ("import torch", "structures.py", []),
    ],
)
def test_wrong_arrows_are_found(source: str, file: str, expected: list[str]) -> None:
    assert forbidden_arrows(source, PACKAGE / file) == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("from . import box_ops", "is not `from .sibling import Name`"),
        ("from ..structures import View", "is not `from .sibling import Name`"),
        ("from .sub.matching import x", "is not `from .sibling import Name`"),
        ("from .missing import x", "is not `from .sibling import Name`"),
        ("def f():\n    import semidetr_hf.structures", "semidetr_hf would become a requirement"),
        ("if TYPE_CHECKING:\n    import accelerate", "accelerate would become a requirement"),
        ("import sklearn.mixture", "sklearn would become a requirement"),
        ("self.loss_function = f()", "loss_function"),
        ('"""Docstring.\n\nfrom .matching import x\n"""', "begins like an import of .matching"),
    ],
)
def test_hub_problems_are_found(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "box_ops.py").touch()
    (tmp_path / "modeling.py").write_text(source)
    found = hub_problems(tmp_path / "modeling.py")
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "import math\nimport torch\nfrom torch import nn\nfrom .box_ops import box_iou",
        "if is_scipy_available():\n    from scipy.optimize import linear_sum_assignment",
        "try:\n    import deformops\nexcept ImportError:\n    deformops = None",
        "loss = self.loss_function(outputs)",
    ],
)
def test_sound_hub_files_pass(tmp_path: Path, source: str) -> None:
    (tmp_path / "box_ops.py").touch()
    (tmp_path / "modeling.py").write_text(source)
    assert hub_problems(tmp_path / "modeling.py") == []


def test_long_functions_and_prints_are_found() -> None:
    source = "def long():\n" + "    pass\n" * 80 + "def short():\n" + "    pass\n" * 79 + "print('x')\n"
    assert long_functions(source) == ["long has 81 lines"]
    assert prints(source) == [162]
    assert prints("log.print('x')\n'print(1)'") == []
