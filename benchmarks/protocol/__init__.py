"""The protocol of `benchmarks/compare.py`: what a method is, one run of it, and what all runs together say."""
