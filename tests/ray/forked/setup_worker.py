"""What a raylet runs before a worker with a `runtime_env`, in place of Ray's file of this name.

Ray's imports all of Ray to set the variables, before the worker does so once more. This one does
the same for an environment that only has variables, and leaves any other to Ray's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

CONTEXT = "--serialized-runtime-env-context="
OURS = ("--language=", CONTEXT)
"""Arguments that are not the worker's."""


def only_variables(context: dict[str, Any]) -> dict[str, str] | None:
    """The variables of an environment; None if it has more than those."""
    variables: dict[str, str] = context.pop("env_vars", {})
    executable = context.pop("py_executable", sys.executable)
    return variables if executable == sys.executable and not any(context.values()) else None


def main(argv: list[str]) -> None:
    told = [arg for arg in argv if arg.startswith(CONTEXT)]
    variables = only_variables(json.loads(told[0][len(CONTEXT) :] if told else "{}"))
    if variables is None:
        from ray._private.workers import __path__ as places

        os.execv(sys.executable, [sys.executable, f"{places[0]}/setup_worker.py", *argv])
    for name, value in variables.items():
        # As Ray does it: a variable that is not there stands for nothing.
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    os.execv(sys.executable, [sys.executable, *(arg for arg in argv if not arg.startswith(OURS))])


if __name__ == "__main__":
    main(sys.argv[1:])
