"""Pseudo-labels for review: a detector labels images, and people look at the least certain ones first."""
