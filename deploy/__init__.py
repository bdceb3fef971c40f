"""Command line, job entry points and benchmarks."""
