"""A recorder of graphs that runs on a CPU: its graphs run the step again where CUDA's replay its kernels."""

from worker.decoding import graphs


class Recorder:
    """Logs each size that is captured or replayed. `fault`: raised in a capture of over one slot."""

    def __init__(self, monkeypatch, stepper):
        self.captured, self.log, self.fault = [], [], None
        advance = stepper._advance

        def watched(self_, bucket, n_slots):
            self.size = bucket, n_slots
            advance(self_, bucket, n_slots)

        monkeypatch.setattr(stepper, "_advance", watched)
        monkeypatch.setattr(graphs, "recorder", lambda _: self)

    def __call__(self, work):
        work()
        size = self.size
        if self.fault and size[1] > 1:
            self.fault()
        self.captured.append(size)
        self.log.append("capture")

        def replay():
            self.log.append("replay")
            work()

        return replay


def not_permitted():
    """A capture that fails for another reason than memory."""
    try:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
