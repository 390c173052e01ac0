"""The wheel, built and installed as a user would, holds all that the product needs."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


def test_top_level_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgevlm", "edgevlm_convert"}
    assert "edgevlm/quant_profiles/Q4_K_M.toml" in names
    assert "edgevlm/assets/shapes/checkpoint/model.safetensors" in names
    assert "edgevlm/assets/shapes/prompts.jsonl" in names
    assert "edgevlm/py.typed" in names
    templates = {"report.html.j2", "report.css"}
    assert {f"edgevlm/drift/templates/{name}" for name in templates} <= set(names)


def test_runs_from_a_fresh_venv(wheel: Path, tmp_path: Path) -> None:
    """Installed with --no-deps beside the libraries of this environment (a .pth: no second
    compile)."""
    venv.EnvBuilder(with_pip=True).create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    # Our own editable install is a .pth of this environment: only its folder is added, so that
    # nothing of the checkout can be imported.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "EDGEVLM_CACHE": str(tmp_path)}
    edgevlm = tmp_path / "venv" / "bin" / "edgevlm"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [edgevlm, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import edgevlm, edgevlm_convert as c; print(edgevlm.__file__, c.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert all(Path(path).is_relative_to(tmp_path) for path in where)
    profiles = json.loads(run("profiles", "--json"))
    assert {"Q4_K_M", "Q5_K_M", "Q8_0"} <= {profile["name"] for profile in profiles}
    run("quantize", "shapes", "--level", "Q4_K_M")
    image = next(site.glob("edgevlm/assets/shapes/images/*.png"))
    answer = json.loads(
        run("chat", str(image), "-m", "shapes", "-p", "How many shapes are in the image?", "--json")
    )
    assert answer["answer"].isdigit()
