"""Suites of tasks, run beside baselines and published numbers."""
