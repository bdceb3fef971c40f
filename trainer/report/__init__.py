"""Reports of runs: their data gathered, drawn, and written as one page that needs nothing else."""
