"""What the readings of a run say against it: one file per kind of failure, and `RunDiagnostics`, which looks for them.

Each diagnostic is a pure function of plain records that yields `Finding`s, one sentence each.
"""
