"""Interchange with other toolkits."""
