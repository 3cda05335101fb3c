"""Coverage-guided fuzzing with atheris: `python -m tests.security.fuzz [SECONDS]`, 60 by default.

It starts from the corpus beside this file; what it finds new goes to .fuzz/corpus, a crash to
.fuzz/crash-*. Copy a crash into the corpus once it is fixed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(".fuzz")
SECONDS = "60"

with atheris.instrument_imports(include=["serve_grpc.protocol", "serve_grpc.payload"]):
    from tests.security.fuzzed import any_target


def main() -> None:
    """Fuzz until the time is over or something is found; then this process ends."""
    if len(sys.argv) > 2 or not "".join(sys.argv[1:] or [SECONDS]).isdigit():
        sys.exit(__doc__)
    seconds = sys.argv[1] if len(sys.argv) == 2 else SECONDS
    found = FOUND / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=5",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={FOUND}/",
        str(found),
        str(CORPUS),
    ]
    atheris.Setup([sys.argv[0], *options], any_target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
