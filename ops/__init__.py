"""The operating side: runs on the user's machine, loads no torch, prints and asks through `ops.ui` only."""
