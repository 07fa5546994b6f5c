"""What a run says of itself: card, pictures, summary, the Hub."""
