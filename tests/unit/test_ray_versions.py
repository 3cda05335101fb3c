"""A Ray outside the tested range is refused, in words that say which to install."""

from __future__ import annotations

import pytest

from serve_grpc._serve.versions import NEWEST, OLDEST, check_ray_version


@pytest.mark.parametrize(
    "version",
    [
        f"{OLDEST[0]}.{OLDEST[1]}.0",
        f"{NEWEST[0]}.{NEWEST[1]}.7",
        f"{NEWEST[0]}.{NEWEST[1]}.0rc1",
        f"{OLDEST[0]}.{OLDEST[1]}",
    ],
)
def test_a_tested_one_is_taken(version: str) -> None:
    check_ray_version(version)


@pytest.mark.parametrize(
    "version",
    [
        f"{OLDEST[0]}.{OLDEST[1] - 1}.9",
        f"{NEWEST[0]}.{NEWEST[1] + 1}.0",
        f"{NEWEST[0] + 1}.0.0",
        "3.0.0.dev0",
        "nightly",
    ],
)
def test_another_is_refused_and_the_range_named(version: str) -> None:
    with pytest.raises(ImportError) as raised:
        check_ray_version(version)
    text = str(raised.value)
    assert f"Ray {version} is installed" in text
    oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
    assert f"Ray {oldest} to {newest}" in text
    assert f"ray[serve]>={oldest},<{NEWEST[0]}.{NEWEST[1] + 1}" in text
