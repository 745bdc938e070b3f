"""What a saved detector needs to be served: files that are written beside it."""
