"""What `benchmarks/controller_response.py` does to a controller: events in real runs, and simulated readings."""
