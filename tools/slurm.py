"""`dnapretrain slurm` from a clone that is not installed."""

from _clone import run

run("slurm")
