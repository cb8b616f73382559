"""The operating side: runs on the user's machine, loads no torch, asks and tells through `ops.ui` only."""
