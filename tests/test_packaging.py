"""What somebody gets who installs the package, looked at in wheels that are built offline."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROTO = "serve_grpc/protos/serve_grpc/v1/replica.proto"
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"


def build(kind: str, source: Path, out: Path) -> Path:
    """A wheel or sdist of the tree at `source`, as pip has it built."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, out=str(out))],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because a build leaves files in the tree."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("serve_grpc", "protos"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    return copy


@pytest.mark.parametrize("through_sdist", [False, True], ids=["from the tree", "from an sdist"])
def test_a_wheel_has_all_that_belongs_to_the_package(
    tree: Path, tmp_path: Path, through_sdist: bool
) -> None:
    if through_sdist:
        shutil.unpack_archive(build("sdist", tree, tmp_path), tmp_path / "unpacked")
        (tree,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", tree, tmp_path)) as wheel:
        listed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert wheel.read(PROTO) == (ROOT / "protos/serve_grpc/v1/replica.proto").read_bytes()
    assert listed == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "serve_grpc").rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi", ".proto", ".typed")
    } | {"serve_grpc/py.typed"}


def test_the_protocol_file_is_found_from_python() -> None:
    found = files("serve_grpc") / "protos"
    text = (found / "serve_grpc/v1/replica.proto").read_text()
    assert text == (ROOT / "protos/serve_grpc/v1/replica.proto").read_text()
