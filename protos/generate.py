"""Writes serve_grpc/_generated/ from the .proto file (`make proto`), or says that it is stale.

What protoc writes is kept as it is, but for two things. The modules lie flat in one package and
import each other relatively, as no package `serve_grpc.v1` exists; and message classes name the
module they really live in, so that they pickle. The descriptor keeps its path under protos/,
"serve_grpc/v1/replica.proto": server reflection serves it by that name.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PROTO = "serve_grpc/v1/replica.proto"
PACKAGE = "serve_grpc._generated"
OUT = PROTOS.parent / "serve_grpc" / "_generated"
NAMES = ("replica_pb2.py", "replica_pb2.pyi", "replica_pb2_grpc.py")


def generate() -> dict[str, str]:
    """Run protoc; return the text of each generated file by its name.

    Raises:
        SystemExit: protoc refused the .proto file; it has printed why.
    """
    import grpc_tools  # not in .venv: see requirements.txt
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as tmp:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={PROTOS}",
                f"--proto_path={well_known}",
                f"--python_out={tmp}",
                f"--pyi_out={tmp}",
                f"--grpc_python_out={tmp}",
                PROTO,
            ]
        )
        if status != 0:
            raise SystemExit(f"protoc failed on {PROTO}")
        written = Path(tmp, PROTO).parent
        return {name: _relocate((written / name).read_text()) for name in NAMES}


def _relocate(source: str) -> str:
    """Move a generated module from package `serve_grpc.v1` to `serve_grpc._generated`."""
    return source.replace("from serve_grpc.v1 import ", "from . import ").replace(
        "'serve_grpc.v1.replica_pb2'", f"'{PACKAGE}.replica_pb2'"
    )


def differences(generated: dict[str, str]) -> list[str]:
    """Return unified diff lines from the files as they are to what they should be."""
    lines: list[str] = []
    for name, wanted in generated.items():
        path = OUT / name
        found = path.read_text() if path.exists() else ""
        lines += difflib.unified_diff(
            found.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            fromfile=f"{OUT.name}/{name}",
            tofile=f"{OUT.name}/{name} (regenerated)",
        )
    return lines


def main() -> int:
    """Write the files, or with --check compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=f"Generate {PACKAGE} from protos/{PROTO}.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    generated = generate()
    if not parser.parse_args().check:
        OUT.mkdir(exist_ok=True)
        for name, text in generated.items():
            (OUT / name).write_text(text)
        return 0
    diff = differences(generated)
    if not diff:
        return 0
    sys.stdout.writelines(diff)
    print(f"generated code is stale (grpcio-tools {version('grpcio-tools')}): run `make proto`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
