"""A package, so that no other `tests` that some package installs is found in its place."""
