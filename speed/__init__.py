"""How fast training steps are, beside the same model written the published way."""
