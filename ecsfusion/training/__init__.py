"""The parts of `FusionTrainer`, each a layer over the one before: resuming, publishing, stepping, probing."""
