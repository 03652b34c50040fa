"""Models whose vocabularies differ: rows mapped by token as they are read."""
