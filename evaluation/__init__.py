"""Metrics, trivial predictors and plots: from arrays, without torch and without a process group."""
