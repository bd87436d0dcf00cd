"""Read weights of other models and stages, and export those of this project."""
