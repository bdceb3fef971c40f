"""Raw facts and questions into checked, deduplicated, embedded facts in Arrow files."""
