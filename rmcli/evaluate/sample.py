"""Some answers of a set, each as likely as any other, whatever the set's length."""

from dataclasses import dataclass, field
from random import Random

from rmcli.lines.read import Line
from rmcli.records import PreferenceGroup


@dataclass
class Sample:
    """At most `most` better answers, a conversation each, drawn with one seed (Vitter 1985, algorithm R)."""

    most: int
    held: list[PreferenceGroup] = field(default_factory=list)
    _offered: int = 0
    _random: Random = field(default_factory=lambda: Random(0))

    def offer(self, line: Line, better: int) -> None:
        """The answer at this place of the line. Tokens alone are not taken: their text cannot be changed."""
        if not isinstance(line.group, PreferenceGroup) or not self.most:
            return
        one = PreferenceGroup(
            (line.group.conversations[better],), comparisons=(), template_arguments=line.group.template_arguments
        )
        self._offered += 1
        if len(self.held) < self.most:
            self.held.append(one)
        elif (place := self._random.randrange(self._offered)) < self.most:
            self.held[place] = one
