"""DESIGN: imports run one way, nothing imports a concrete task or data set, every file has its tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dropkey_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# What the files of each part may import of this package; a part may import itself.
MAY_IMPORT = {
    "errors": set[str](),
    "files": set[str](),
    "seeds": set[str](),
    "catalog": set[str](),
    "checkpoints": {"errors"},
    "method": {"errors"},
    "patching": {"errors", "method"},
    "models": {"errors", "catalog", "checkpoints", "method", "patching"},
    "data": {"errors", "files", "seeds"},
    "tasks": {"errors", "seeds", "method", "patching", "models", "data"},
    "report": {"errors", "files", "method", "patching"},
    "callbacks": {"errors", "files", "seeds", "method", "patching", "models", "data", "report"},
    "benchmark": {"errors", "method", "patching", "models"},
    "export": {"errors", "files", "checkpoints", "models", "data"},
    "ablation": {"errors", "files", "method", "report"},
    "commands": {
        "errors",
        "files",
        "catalog",
        "checkpoints",
        "method",
        "patching",
        "models",
        "data",
        "callbacks",
        "benchmark",
        "export",
        "ablation",
    },
    "cli": {"errors", "commands", "__version__"},
    "__main__": {"cli"},
    "__init__": {"method", "patching"},
}
# Every task and data set; chosen by class path, so that none of them is built in.
CONCRETE = {"dropkey_cli.tasks.classification", "dropkey_cli.data.digits", "dropkey_cli.data.image_folder"}
CONCRETE |= {"dropkey_cli.data.named_images"}
CONCRETE |= {"dropkey_cli.tasks.multi_label.", "dropkey_cli.data.table."}  # but table_file and table_rows are parts


def imports(file: Path) -> set[str]:
    """Modules that a file imports, at any depth; ``from a import b`` counts as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    used = {name.split(".")[1] for name in imports(file) if name.startswith("dropkey_cli.")}
    assert used <= MAY_IMPORT[part(file)] | {part(file)}


def test_nothing_imports_a_concrete_task_or_data_set() -> None:
    for file in FILES:
        built_on = {"multi_label.py": "dropkey_cli.tasks.classification."}.get(file.name, "none")
        assert not [name for name in imports(file) if name.startswith(tuple(CONCRETE)) and not name.startswith(built_on)], file


def test_the_method_knows_torch_only() -> None:
    for file in FILES:
        if part(file) == "method":
            foreign = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names)
            assert foreign <= {"torch", "triton", "dropkey_cli"}, file


def test_one_place_creates_timm_models() -> None:
    for file in FILES:
        if part(file) != "models":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}  # a text may speak of it
            assert "timm.create_model" not in named | imports(file), file


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, dropkey_cli, dropkey_cli.cli, dropkey_cli.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_public_names_are_loaded_on_first_use() -> None:
    import dropkey_cli

    for name in dropkey_cli.__all__:
        assert getattr(dropkey_cli, name)
    with pytest.raises(AttributeError, match="module 'dropkey_cli' has no attribute 'nothing'"):
        _ = dropkey_cli.nothing


def test_every_file_has_its_tests() -> None:
    tested = [file.relative_to(PACKAGE) for file in FILES if file.stem not in ("__init__", "__main__")]
    missing = [str(file) for file in tested if not (ROOT / "tests" / file.with_name(f"test_{file.name}")).is_file()]
    assert missing == []


def test_files_stay_short_enough_to_read() -> None:
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_in_its_first_line(file: Path) -> None:
    first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert first
    assert len(first) <= 125
