"""Small things a handle needs of Serve: its default marker and a flag."""

from __future__ import annotations

from ray.serve._private.constants import RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP
from ray.serve._private.utils import DEFAULT

__all__ = ["DEFAULT", "RUN_ROUTER_IN_SEPARATE_LOOP"]

RUN_ROUTER_IN_SEPARATE_LOOP: bool = RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP
