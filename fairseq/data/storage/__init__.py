"""Files of data: dictionaries, binary files and their manifest."""
