"""What embeddings know about a label: from matrices and labels to a partial information decomposition."""
