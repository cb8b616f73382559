"""Amounts as people read them: money, durations, sizes, counts. Ours everywhere, so written once."""


def usd(amount: float) -> str:
    """`$12.30`, and to a hundredth of a cent below a dollar: `$0.0123`, `<$0.0001`."""
    if 0 < amount < 0.0001:
        return "<$0.0001"
    text = f"{amount:.4f}" if amount < 1 else f"{amount:.2f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"


def duration(seconds: float) -> str:
    """`2.5 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds, 1) < 60:
        return f"{round(seconds, 1):g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: float) -> str:
    """`1.2 GB`, `34.5 MB`, `12 kB`."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.0f} kB"


def count(n: int, noun: str) -> str:
    """`1 song`, `3 songs`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
