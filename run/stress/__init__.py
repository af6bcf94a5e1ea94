"""Reruns of what the program promises when something goes wrong: see `python run/stress --help`."""
