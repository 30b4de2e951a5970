"""Names of the original that only plug-ins import; nothing in the house may."""
