"""Evaluation: the outputs of one pass over an evaluation set, and the measurement that is made of them."""
