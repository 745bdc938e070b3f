"""The report of a run: one HTML file to look at."""
