"""Rollouts: how traffic moves from the stable revision to a candidate, and back when it must."""
