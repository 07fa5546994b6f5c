"""The recipe: one training script, `hf_recipes.run`, and its YAML files."""
