"""Corpora: reading and checking audio, and the metadata that s3prl's downstream experts read."""
