"""One pass over an evaluation set, and the one measurement that is made of it."""
