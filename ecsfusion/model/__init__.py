"""The parts of a fusion model: configuration, encoders, pooling, fused heads, kinds of labels."""
