"""Diagnostics of a run: one file for each kind of failure, and `RunDiagnostics`, which calls them.

Each diagnostic is a pure function of plain records. It yields objects of the class `Finding`, with one sentence each.
"""
