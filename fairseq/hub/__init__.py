"""Models for use: loading them, and the objects that people call."""
