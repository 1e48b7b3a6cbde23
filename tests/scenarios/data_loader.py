"""PyTorch's DataLoader: workers that compute on what they load, while the parent trains."""

import threading

import torch
from common import agrees, answers, finish, problems

given = problems()
expected = answers(given)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return agrees(given, expected, index)


def wait_for_feeders(seconds=60.0):
    """Wait for the threads that fed the workers' queues.

    They are daemons, and the last to hold a queue's semaphore: one that the interpreter ends between removing
    it and telling so to multiprocessing's tracker makes the tracker complain on stderr (seen once in many runs,
    always with a second of sleep between the two).
    """
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(seconds)


def main():
    failures = [] if agrees(given, expected, 2) else ["other answers in the parent"]
    for method in ("fork", "forkserver"):
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context=method)
        for batch in loader:
            x = torch.ones(64, 64)
            (x @ x).sum()
            if not all(batch.tolist()) or not agrees(given, expected, 3):
                failures.append(f"other answers with workers by {method}")
    wait_for_feeders()
    finish(failures)


if __name__ == "__main__":
    main()
