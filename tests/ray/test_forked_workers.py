"""The Ray of the tests forks its workers (`tests/ray/forked`): which ones, and what they have."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import serve_grpc
from tests.ray.apps.forked import Worker
from tests.ray.forked import setup_worker

FORKS = """
import os, threading
from ray._raylet import JobID, TaskID
from tests.ray.forked.server import draw_ids

def draw():
    print(TaskID.for_fake_task(JobID.from_int(1)).hex(), flush=True)

for _ in range(3):
    draw_ids()
    if os.fork() == 0:
        draw()
        threads = [threading.Thread(target=draw) for _ in range(20)]
        for thread in threads:
            thread.start()
            thread.join()
        os._exit(0)
    os.wait()
"""


def test_each_fork_draws_ids_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 3 * 21


@pytest.mark.parametrize(
    ("variable", "is_forked"),
    [("", True), ("SERVE_GRPC_OF_A_TEST", True), ("RAY_SERVE_OF_A_TEST", False)],
)
def test_a_worker_is_forked_unless_it_has_variables_of_serve(deploy, variable, is_forked):
    env = {"runtime_env": {"env_vars": {variable: "its own"}}} if variable else {}
    app = serve_grpc.deployment(ray_actor_options={"num_cpus": 0.01, **env})(Worker).bind()
    facts = deploy(app, f"forked{variable}").remote(variable).result(timeout_s=60)
    value = "its own" if variable else None
    assert facts == {"is forked": is_forked, "has a title": True, "variable": value}


def test_an_environment_of_variables_is_set_up_as_ray_does_it():
    context = {
        "command_prefix": [],
        "env_vars": {"A": "1:${B}:${C}", "B": "new"},
        "py_executable": sys.executable,
        "override_worker_entrypoint": None,
        "java_jars": [],
    }
    told = f"--serialized-runtime-env-context={json.dumps(context)}"
    shown = "import os, sys; print(os.environ['A'], os.environ['B'], sys.argv[1:])"
    command = [sys.executable, setup_worker.__file__, "-c", shown, "--language=PYTHON", told, "x"]
    env = {"PATH": os.environ["PATH"], "B": "old"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1:old: new ['x']"
