"""Who may import whom (DESIGN, section 4), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dagnn

ROOT = Path(dagnn.__file__).parent
STDLIB = sys.stdlib_module_names

# room -> the rooms of dagnn and the packages it may import. A room is a file or folder below dagnn/.
ALLOWED = {
    "errors": set(),
    "dtypes": {"errors", "numpy", "ml_dtypes"},
    "nbytes": {"errors"},
    "geometry": {"errors"},
    "graph": {"errors", "networkx"},
    "backends": {
        "dtypes",
        "errors",
        "geometry",
        "nbytes",
        "numpy",
        "cudnn",
        "cupy",
        "scipy",
        "threadpoolctl",
    },
    "layers": {"errors", "geometry"},
    "variables": {"dtypes", "errors", "graph", "layers", "numpy"},
    "keeping": {"errors", "layers"},
    "plan": {"dtypes", "errors", "graph", "keeping", "layers", "variables", "backends"},
    "planning": {"errors", "graph", "layers", "plan", "variables"},
    "overwriting": {"layers", "plan"},
    "rewrites": {"errors", "layers", "variables", "plan"},
    "capturable": {"backends", "errors", "layers", "numpy", "plan"},
    "capture": {"capturable", "layers", "plan", "variables"},
    "rehearsal": {"backends", "dtypes", "numpy", "layers", "plan"},
    "recompute": {"errors", "keeping", "layers", "nbytes", "overwriting", "plan", "rehearsal"},
    "structure": {"errors", "geometry", "graph", "layers", "variables"},
    "precision": {"dtypes", "errors", "layers", "plan", "rewrites", "variables"},
    "settings": {"errors", "keeping", "numpy", "precision", "structure"},
    "zoo": {"errors", "layers", "net", "numpy"},
    "net": {
        "capture",
        "dtypes",
        "errors",
        "geometry",
        "keeping",
        "layers",
        "nbytes",
        "overwriting",
        "plan",
        "planning",
        "precision",
        "recompute",
        "rewrites",
        "settings",
        "structure",
        "variables",
        "backends",
        "numpy",
    },
}
# imported inside functions only, so that `import dagnn` stays light and cycles stay impossible
LAZY = {"net": {"io", "summary", "profile", "deploy", "simplenn"}, "layers": {"numpy"}}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(room or package, whether at module level outside TYPE_CHECKING) of every import in a file."""
    found = []

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if typing_only:
                continue
            inner = top and not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name.split(".")[0], top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                package = path.relative_to(ROOT.parent).with_suffix("").parts[: -child.level or None]
                names = (*package[1:], *(child.module or "").split(".")) if child.level else ()
                inside = next((name for name in names if name), None)
                if child.level == 0:
                    found.append((child.module.split(".")[0], top))
                elif inside:
                    found.append((inside, top))
                else:
                    found.extend((alias.name, top) for alias in child.names)
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    files = list((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        for name, top in imports(path):
            allowed = ALLOWED[room] | {room} | (set() if top else LAZY.get(room, set()))
            if name in STDLIB:
                continue
            assert name in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_networkx_is_used_in_one_place():
    assert {p.name for p in ROOT.rglob("*.py") if any(n == "networkx" for n, _ in imports(p))} == {"graph.py"}


def test_nothing_imports_the_command_line():
    users = {p.name for p in ROOT.rglob("*.py") if any(name == "cli" for name, _ in imports(p))}
    assert users <= {"__main__.py"}


def test_heavy_packages_are_not_imported_with_dagnn():
    heavy = ["h5py", "scipy", "matplotlib", "onnx", "mpi4py", "PIL", "cupy", "cudnn"]
    heavy += ["ml_dtypes", "sklearn", "torch", "tqdm", "dagnn.capture", "dagnn.recompute"]
    code = f"import sys, dagnn; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_short():
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long
