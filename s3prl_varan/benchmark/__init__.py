"""What VARAN costs beside a weighted sum and beside the plain loop over layers, measured side by side; see run/benchmark.py."""
