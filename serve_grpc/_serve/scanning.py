"""Objects of one type, found and replaced wherever pickle can see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.dag.py_obj_scanner import _PyObjScanner

__all__ = ["replace_objects"]


def replace_objects(
    kind: type | tuple[type, ...], container: Any, replacement: Callable[[Any], Any]
) -> Any:
    """`container` with each object of `kind` in it replaced; what is in such an object is not seen.

    The way Serve itself finds applications and handles among constructor arguments: by pickling
    them, so nesting of any depth and objects' attributes are covered. Where nothing is
    replaced by another object the container itself is returned, not a copy.
    """
    scanner: Any = _PyObjScanner(source_type=kind)
    try:
        found = scanner.find_nodes(container)
        # `found` holds the objects meanwhile, so no other one gets the id of one of them.
        table = {id(obj): replacement(obj) for obj in found}
        if all(table[id(obj)] is obj for obj in found):
            return container
        return scanner.replace_nodes(_ById(table))
    finally:
        scanner.clear()  # it stands in a table of Ray's module, `_instances`


class _ById:
    """Looks replacements up by identity: applications and handles have no useful hash."""

    def __init__(self, by_id: dict[int, Any]) -> None:
        self._by_id = by_id

    def __getitem__(self, obj: Any) -> Any:
        return self._by_id[id(obj)]
