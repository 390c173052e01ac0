"""The house's rules, read off the source with `ast`: arrows point down, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Level of each room; a longer prefix wins. Lower levels may not know higher ones.
LEVELS = {
    "edgevlm": 0,  # __init__: lazy names only
    "edgevlm.errors": 0,
    "edgevlm.progress": 0,
    "edgevlm.files": 0,
    "edgevlm.ggml_types": 1,
    "edgevlm.gguf_value": 1,
    "edgevlm.gguf_file": 1,
    "edgevlm.gguf_shards": 1,
    "edgevlm.manifest": 1,
    "edgevlm.vectors": 1,
    "edgevlm.model_dir": 1,
    "edgevlm.reference_file": 1,
    "edgevlm.hub": 1,
    "edgevlm.native": 1,
    "edgevlm_convert": 1,
    "edgevlm.quantize": 2,
    "edgevlm.runtime": 2,
    "edgevlm.build": 3,
    "edgevlm.drift": 4,
    "edgevlm.calibrate": 4,
    "edgevlm.verify": 4,
    "edgevlm.serve": 4,
    "edgevlm.cli": 5,
    "edgevlm.__main__": 6,
}
# The steps inside a level that the design allows.
STEPS = {
    ("edgevlm.files", "edgevlm.errors"),
    ("edgevlm.manifest", "edgevlm.gguf_shards"),
    ("edgevlm.manifest", "edgevlm.ggml_types"),
    ("edgevlm.model_dir", "edgevlm.manifest"),
    ("edgevlm.model_dir", "edgevlm.gguf_file"),
    ("edgevlm.model_dir", "edgevlm.gguf_shards"),
    ("edgevlm.model_dir", "edgevlm.ggml_types"),
    ("edgevlm.gguf_shards", "edgevlm.gguf_file"),
    ("edgevlm.gguf_file", "edgevlm.gguf_value"),
    ("edgevlm.gguf_file", "edgevlm.ggml_types"),
}
# Who alone may import a package from outside.
OWNERS = {
    "llama_cpp": "edgevlm.native",
    "typer": "edgevlm.cli",
    "rich": "edgevlm.cli",
    "transformers": "edgevlm.verify",
    "huggingface_hub": "edgevlm.hub",
    "httpx2": "edgevlm.hub",
    "click": "nobody: typer vendors it",
    "torch": "edgevlm.verify",
}
CONVERTER_MAY_IMPORT = {
    "edgevlm.errors",
    "edgevlm.progress",
    "edgevlm.files",
    "edgevlm_convert",
    "numpy",
    "gguf",
    "tokenizers",
}


def product_files() -> list[Path]:
    return sorted([*(ROOT / "edgevlm").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    if parts[0] == "convert":
        parts = parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    prefixes = [name for name in LEVELS if module == name or module.startswith(name + ".")]
    return max(prefixes, key=len)


def imports(path: Path) -> Iterator[str]:
    """Yield every module a file imports, lazily or not, but for typing alone."""
    yield from _imports(ast.parse(path.read_text()), module_name(path))


def _imports(node: ast.AST, module: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}: relative import"
            assert child.module is not None
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child, module)


def forbidden(module: str, imported: str) -> str | None:
    """Return why `module` may not import `imported`, None when it may."""
    top = imported.split(".")[0]
    here = room(module)
    if top in OWNERS and here != OWNERS[top]:
        return f"only {OWNERS[top]} imports {top}"
    if module == "edgevlm":
        return None if top in (*sys.stdlib_module_names, "edgevlm") else "stdlib only"
    if here == "edgevlm_convert":
        allowed = top in sys.stdlib_module_names or any(
            imported == name or imported.startswith(name + ".") for name in CONVERTER_MAY_IMPORT
        )
        return None if allowed else "the converter stands on errors, progress and files alone"
    if top not in ("edgevlm", "edgevlm_convert"):
        return None
    there = room(imported)
    if there == here or there == "edgevlm" or (here, there) in STEPS:
        return None
    if LEVELS[there] >= LEVELS[here]:
        return f"level {LEVELS[here]} may not import level {LEVELS[there]}"
    return None


@pytest.mark.parametrize("path", product_files(), ids=module_name)
def test_arrows_point_down(path: Path) -> None:
    module = module_name(path)
    wrong = [(name, why) for name in imports(path) if (why := forbidden(module, name))]
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("edgevlm.quantize.plan", "edgevlm.build.convert.convert_model"),
        ("edgevlm.quantize.plan", "edgevlm.runtime.vlm.open_vlm"),
        ("edgevlm.native.library", "edgevlm.gguf_file.read_gguf"),
        ("edgevlm.runtime.vlm", "llama_cpp.llama_cpp"),
        ("edgevlm.build.convert", "rich.console.Console"),
        ("edgevlm_convert.writer", "edgevlm.quantize.encode"),
        ("edgevlm_convert.checkpoint", "torch"),
        ("edgevlm", "numpy"),
        ("edgevlm.cli.app", "click"),
    ],
)
def test_the_guard_sees_a_wrong_arrow(module: str, imported: str) -> None:
    assert forbidden(module, imported)


def n_code_lines(function: ast.FunctionDef) -> int:
    """Count the lines of a function without its docstring."""
    first = function.body[0]
    skipped = 0
    if ast.get_docstring(function) is not None:
        skipped = (first.end_lineno or 0) - first.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - skipped


@pytest.mark.parametrize("path", product_files(), ids=module_name)
def test_one_idea_a_file(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and room(module_name(path)) != "edgevlm.cli":
            assert n_code_lines(node) <= MAX_FUNCTION_LINES, node.name


def test_no_pickle_and_no_foreign_code() -> None:
    for path in product_files():
        names = set(imports(path))
        assert not names & {"pickle", "marshal", "shelve"}, path
        assert "trust_remote_code" not in path.read_text(), path


def test_import_loads_the_standard_library_only() -> None:
    code = (
        "import sys, edgevlm; edgevlm.__version__\n"
        "print(sorted({n.split('.')[0] for n in sys.modules}"
        " & {'numpy', 'typer', 'rich', 'llama_cpp', 'gguf', 'tokenizers', 'pydantic', 'PIL'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys\n"
        "from edgevlm.cli.app import main\n"
        "main(['--help'])\n"
        "print(sorted({n.split('.')[0] for n in sys.modules}"
        " & {'numpy', 'llama_cpp', 'gguf', 'tokenizers', 'pydantic', 'PIL', 'jinja2'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
