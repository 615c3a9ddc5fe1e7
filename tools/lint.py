"""`dnapretrain lint` from a clone that is not installed."""

from _clone import run

run("lint")
