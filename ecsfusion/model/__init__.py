"""The parts of a fusion model: configuration, encoders, pooling, fused heads, losses, kinds of labels, readout."""
