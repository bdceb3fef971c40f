"""Question and fact encoders."""
