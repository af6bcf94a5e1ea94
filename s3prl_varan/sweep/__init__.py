"""Sweeps: many experiments from one YAML, on many workers, none run twice. See run/sweep.py."""
