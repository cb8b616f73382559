"""The generation worker: songs from a prompts file, on one machine with or without a GPU.

Runs on the box (or here, for a rehearsal) as `python -m worker`. Does not import `ops`, Fabric or Invoke.
"""
