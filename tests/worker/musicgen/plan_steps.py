"""How many steps the windows of a song take: MusicGen has no end token."""

from worker.musicgen.windows import Window, n_columns


def n_steps(planned: list[Window], n_codebooks: int) -> int:
    """Columns to generate over all windows."""
    return sum(n_columns(w.length, n_codebooks) - w.carried - 1 for w in planned)
