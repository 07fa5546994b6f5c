"""Reading and checking the rows of a data set: media, arrays, columns, lengths, paths, embedding files."""
