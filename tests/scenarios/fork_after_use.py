"""200 children, forked one after the other after parallel use, each of which computes and forks a child of its own."""

from common import agrees, answers, finish, forked, problems, wait_for

given = problems()
expected = answers(given)


def child(number):
    right = agrees(given, expected, number)
    grandchild = forked(lambda: agrees(given, expected, number)) if number % 20 == 0 else None
    return right and (grandchild is None or wait_for([grandchild]) == [0])


failures = []
if not all(agrees(given, expected, number) for number in range(4)):
    failures.append("other answers before the first fork")
for first in range(0, 200, 10):
    statuses = wait_for([forked(lambda number=number: child(number)) for number in range(first, first + 10)])
    failures += [f"child {first + i}: {status}" for i, status in enumerate(statuses) if status != 0]
if not all(agrees(given, expected, number) for number in range(4)):
    failures.append("other answers after the last fork")
finish(failures)
