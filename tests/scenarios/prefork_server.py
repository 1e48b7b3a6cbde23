"""A server that loads everything, computes once, then forks workers that answer over sockets from two threads each."""

import os
import socket
import threading

from common import agrees, answers, finish, problems, wait_for

given = problems()
expected = answers(given)
failures = [] if agrees(given, expected, 2) else ["other answers before the fork"]

listener = socket.create_server(("127.0.0.1", 0))


def serve():
    for _ in range(20):
        connection, _ = listener.accept()
        with connection:
            number = connection.recv(1)[0]
            connection.sendall(bytes([agrees(given, expected, number)]))


def worker():
    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        worker()
    children.append(pid)
for number in range(4 * 2 * 20):
    with socket.create_connection(listener.getsockname(), timeout=60) as client:
        client.sendall(bytes([number % 256]))
        if client.recv(1) != b"\x01":
            failures.append(f"request {number}: another answer")
listener.close()
failures += [f"a worker ended with {status}" for status in wait_for(children) if status != 0]
finish(failures)
