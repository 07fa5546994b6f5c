"""What the scripts share that build the suites of natural data from public packages."""
