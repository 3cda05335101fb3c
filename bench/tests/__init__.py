"""Tests of the benchmark. `runs` makes up runs; those with the marker `ray` start a Ray."""
