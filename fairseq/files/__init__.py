"""The disk: atomic writing, safe reading, texts in blocks of lines."""
