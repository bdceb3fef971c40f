"""Command line, job entry points and benchmarks."""

import memory_store  # noqa: F401  # sets how threads wait, before torch is loaded
