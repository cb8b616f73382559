"""The output folder of a box as a store: many threads at once, and one line for whatever goes wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ops.ssh.box_store import BoxStore
from tests.ops.ssh.connect import connected
from worker.errors import UserError
from worker.store.base import Missing

N = 24


@pytest.fixture
def output(box):
    """The output folder with N objects, each over several packets."""
    folder = box.root / "output" / "records"
    folder.mkdir(parents=True)
    for n in range(N):
        (folder / f"{n}").write_bytes(bytes([n]) * 100_000)
    return folder.parent


def read_all(store):
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(store.read, [f"records/{n}" for n in range(N)]))


def test_threads_get_each_its_own_object(box, tmp_path, output):
    with connected(box, tmp_path) as conn, BoxStore(conn, str(output)) as store:
        assert read_all(store) == [bytes([n]) * 100_000 for n in range(N)]


@pytest.mark.parametrize("n_sessions", [2, 3])
def test_server_that_gives_few_sessions_suffices(box, tmp_path, output, n_sessions):
    box.stop()
    box.most_sessions = n_sessions
    box.start()
    with connected(box, tmp_path) as conn, BoxStore(conn, str(output)) as store:
        assert len(read_all(store)) == N


def test_what_is_missing_in_one_thread_disturbs_no_other(box, tmp_path, output):
    with connected(box, tmp_path) as conn, BoxStore(conn, str(output)) as store:
        for _ in range(10):
            with pytest.raises(Missing):
                store.read("records/none")
        assert len(read_all(store)) == N


def test_lost_connection_is_one_line_and_nothing_hangs(box, tmp_path, output):
    with connected(box, tmp_path) as conn, BoxStore(conn, str(output)) as store:
        box.stop()
        for use in (store.list, lambda: read_all(store), lambda: store.download("records/1", tmp_path / "x")):
            with pytest.raises(UserError, match=r"the connection to .* was lost|nothing listens at"):
                use()


def test_folder_that_cannot_be_written_is_no_fault_of_the_connection(box, tmp_path, output):
    path = tmp_path / "no-folder" / "x"
    with (
        connected(box, tmp_path) as conn,
        BoxStore(conn, str(output)) as store,
        pytest.raises(OSError) as got,
    ):
        store.download("records/1", path)
    assert got.value.filename == str(path)
