"""What VARAN costs beside a weighted sum and a plain loop over layers: `python run/benchmark`."""
