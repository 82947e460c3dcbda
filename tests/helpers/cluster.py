"""A Ray cluster of two nodes on loopback, in a process of its own; it ends with its input.

Prints the address, then obeys ``kill N`` (a node at once, 0 is the head) line by line.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that localhost stays 127.0.0.1
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_raylet_start_wait_time_s": "240",  # on a busy machine
}


class Cluster:
    """The process, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = process.stdout.readline().strip()
        assert self.address.startswith("127.0.0.1:"), self.address

    def kill(self, node: int) -> None:
        self._process.stdin.write(f"kill {node}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start one, and leave nothing of it behind."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | SETTINGS | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Cluster(process)


def main() -> None:
    """Run the cluster."""
    from ray.cluster_utils import Cluster as Nodes  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        shared = {
            "num_cpus": 1,
            "include_dashboard": False,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": 80_000_000,
            "temp_dir": folder,
        }
        nodes = Nodes(initialize_head=True, head_node_args=shared)
        try:
            every = [nodes.head_node, nodes.add_node(**shared)]
            print(nodes.address, flush=True)
            for line in sys.stdin:
                nodes.remove_node(every[int(line.split()[1])], allow_graceful=False)
                print("killed", flush=True)
        finally:
            nodes.shutdown()


if __name__ == "__main__":
    main()
