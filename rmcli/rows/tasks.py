"""Seeded preference pairs whose better answer can be checked by rule: what `tiny` learns when no data is at hand.

Each task is a short question, its right answer, and a plausible wrong one.
"""

from collections.abc import Callable, Iterator
from random import Random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Task = Callable[[Random], tuple[str, str, str]]


def add(random: Random) -> tuple[str, str, str]:
    """A sum without a carry; the wrong answer carries one too many or too few."""
    tens, a = random.randint(2, 8), random.randint(0, 9)
    b = random.randint(0, 9 - a)
    right = 10 * tens + a + b
    return f"What is {10 * tens + a} + {b}?", str(right), str(right + random.choice([-10, 10]))


def sort(random: Random) -> tuple[str, str, str]:
    """Digits in rising order; the wrong answer has two of them swapped."""
    digits = random.sample(range(10), random.randint(4, 6))
    right = sorted(digits)
    wrong = list(right)
    i, j = random.sample(range(len(wrong)), 2)
    wrong[i], wrong[j] = wrong[j], wrong[i]
    return f"Sort: {_join(digits)}", _join(right), _join(wrong)


def copy(random: Random) -> tuple[str, str, str]:
    """The same letters again; the wrong answer repeats one of them in place of its neighbour."""
    letters = random.sample(LETTERS, random.randint(3, 5))
    wrong = list(letters)
    slip = random.randrange(1, len(wrong))
    wrong[slip] = wrong[slip - 1]
    return f"Copy: {_join(letters)}", _join(letters), _join(wrong)


def follow_format(random: Random) -> tuple[str, str, str]:
    """A word in the brackets that were asked for; the wrong answer uses other ones."""
    styles = {"round": "({})", "square": "[{}]", "curly": "{{{}}}"}
    word = "".join(random.choices(LETTERS, k=random.randint(2, 4)))
    asked, other = random.sample(sorted(styles), 2)
    return f"Put {word} in {asked} brackets.", styles[asked].format(word), styles[other].format(word)


TASKS: dict[str, Task] = {"add": add, "sort": sort, "copy": copy, "format": follow_format}


def _join(items: list) -> str:
    return " ".join(str(item) for item in items)


def generate(num_rows: int, seed: int = 0) -> Iterator[dict]:
    """`num_rows` canonical rows (`prompt`, `chosen`, `rejected` message lists) and their `task`, seeded."""
    random = Random(seed)
    names = list(TASKS)
    for _ in range(num_rows):
        name = random.choice(names)
        question, right, wrong = TASKS[name](random)
        yield {
            "task": name,
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": right}],
            "rejected": [{"role": "assistant", "content": wrong}],
        }
