"""Start processes of one job on this machine: what torchrun does for PyTorch."""

import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def run_all(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> int:
    """Run commands with an environment each. The first that fails is named, and ends the others."""
    processes = [subprocess.Popen(command, env=env) for command, env in commands]
    while True:
        statuses = [process.poll() for process in processes]
        failed = [(number, status) for number, status in enumerate(statuses) if status]
        if failed:
            for process in processes:
                process.kill()
            number, status = failed[0]
            print(f"process {number} ended with status {status}; all others too", file=sys.stderr)
            return 1
        if None not in statuses:
            return 0
        time.sleep(0.1)
