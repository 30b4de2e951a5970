"""Hot operations: one function each, with a plain reference and interchangeable backends."""
