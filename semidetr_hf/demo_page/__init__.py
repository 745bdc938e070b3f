"""A page in the browser to try a detector on pictures of one's own."""
