"""What embeddings know about labels: the parts below `estimate`, and tables too large for memory."""
