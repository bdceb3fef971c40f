"""Command line, job entry points and benchmarks."""

import os

# Threads of OpenMP that wait for the next product spin, by default for a millisecond and more, on cores that the search
# and the training step have other threads for. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
