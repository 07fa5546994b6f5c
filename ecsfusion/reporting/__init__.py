"""What a run says of itself: the model card, the pictures, the table of results, and both stages on the Hub."""
