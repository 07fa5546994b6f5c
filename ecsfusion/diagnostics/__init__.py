"""Failure signatures: what the readings of a run say against it, one file each, pure functions with their sentence."""
