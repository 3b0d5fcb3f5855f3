"""Benchmarks of the machine they run on: `craterun bench`, and what `bench/` shares with it."""
