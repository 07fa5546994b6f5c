"""Rows before they are batches: media, arrays, columns, lengths."""
