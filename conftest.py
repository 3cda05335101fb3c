"""Loads what the tests of the package and those of its benchmark share: fixtures, and the tiers."""

pytest_plugins = ["tests.fixtures", "tests.tiers"]
