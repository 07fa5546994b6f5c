"""The controller's rules, one a file, and what a rule sees and answers (`decision`)."""
