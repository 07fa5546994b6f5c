"""Reports of a run: model card, pictures, the text at its end, and what is published on the Hub."""
