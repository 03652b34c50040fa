"""What a recipe may say: as data, and as the files of two schemas, ours and mergekit's."""
