import os
import subprocess
import sys

import pytest

# A file that Arrow reads in a thread of its own, which is not done when the process is.
SCRIPT = """
import atexit, io, sys, threading, time
import pyarrow as pa
import pyarrow.parquet as pq
from jobs.ending import end_process

begun = threading.Event()


class Slow(io.BytesIO):
    def read(self, size=-1):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.5)
        return super().read(size)


sink = io.BytesIO()
pq.write_table(pa.table({"a": [1], "b": [2]}), sink)
parquet = pq.ParquetFile(Slow(sink.getvalue()), pre_buffer=True)
threading.Thread(target=parquet.read, daemon=True).start()
begun.wait()
atexit.register(lambda: sys.stdout.write("at the end"))
sys.stdout.write("said, ")
end_process(STATUS)
"""


@pytest.mark.parametrize("status", [0, 3])
def test_a_process_ends_with_its_status_whatever_threads_of_arrow_still_do(status: int) -> None:
    script = SCRIPT.replace("STATUS", str(status))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "said, at the end", "")


def test_a_process_whose_reader_is_gone_ends_as_python_ends_it() -> None:
    script = "import os, sys; from jobs.ending import end_process; os.close(1); sys.stdout.write('x'); end_process(0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=buffered)
    assert done.returncode == 120
