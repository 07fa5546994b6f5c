"""Problems whose information about the label is known, for `fast_pid` and its rivals."""
