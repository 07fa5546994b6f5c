"""Collaborators of `FusionTrainer`: plan, stages, evaluator, checkpoints, best heads, publishing, saving."""
