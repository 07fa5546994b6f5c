"""A page in the browser that answers rows with a trained model and measures files of embeddings: `ecsfusion demo`."""
