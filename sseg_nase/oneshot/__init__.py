"""Networks that choose while they train: gates beside weights, and how both are trained."""
