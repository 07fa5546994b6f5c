"""A finished model as one graph that runs without this library."""
