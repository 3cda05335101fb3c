"""A Ray of the tests' own."""

from __future__ import annotations

from typing import Any

__all__ = ["start_ray"]

TOO_SLOW = "timed out during startup"


def start_ray(**options: Any) -> None:
    """Start Ray on this machine, without dashboard and without its output.

    Ray gives its node 30 seconds, which is too short while it is read from a cold disk for the
    first time; then it is started once more.
    """
    import ray

    options = {
        "address": "local",
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        **options,
    }
    try:
        ray.init(**options)
    except Exception as error:
        if TOO_SLOW not in str(error):
            raise
        ray.shutdown()
        ray.init(**options)
