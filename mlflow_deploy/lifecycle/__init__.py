"""Lifecycle: from a model URI to a deployment that answers, and back."""
