"""Between the command line and a run: Hydra, sweeps, and what is printed. The programs in scripts/ use it."""
