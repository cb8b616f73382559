"""A worker's heartbeat in an output, without a worker."""

from datetime import UTC, datetime, timedelta

from worker.songs import status
from worker.store.open import open_store
from worker.timestamps import stamp


def write(
    output: str,
    run_id: str,
    *,
    host: str = "elsewhere",
    state: str = "generating",
    ago_s: float = 3.0,
    steps: status.Steps | None = None,
) -> None:
    """As of so many seconds ago: three of ten songs are made, one has failed; or a training's `steps`."""
    at = stamp(datetime.now(UTC) - timedelta(seconds=ago_s))
    written = status.Status(
        schema=status.SCHEMA,
        run_id=run_id,
        state=state,
        updated_at=at,
        started_at=at,
        pid=1,
        host=host,
        model="facebook/musicgen-small",
        device="cuda",
        precision="float16",
        slots=8,
        progress=3,
        songs=None if steps else status.Songs(asked=10, done=3, made=3, failed=1, left=6),
        frames=None if steps else status.Frames(done=900, total=3000),
        current=[],
        rate=4.0,
        eta_s=90.0,
        hourly_cost_usd=0.4,
        cost_usd=0.1,
        gpu_memory=None,
        notice=None,
        exit_code=None if state in ("generating", "training") else 0,
        steps=steps,
    )
    open_store(output).write(f"runs/{run_id}/{status.FILE}", written.to_json())
