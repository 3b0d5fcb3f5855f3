"""Benchmarks: craterun beside other runtimes, and beside the kernel's own cost."""
