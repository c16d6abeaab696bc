"""What was found wrong, and how much was compared."""

import collections
import dataclasses
import math


@dataclasses.dataclass
class Findings:
    """One study's findings; those of all studies are added up."""

    objects: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    mismatches: list[str] = dataclasses.field(default_factory=list)
    compared: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    runs: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Findings") -> None:
        self.objects += other.objects
        self.errors += other.errors
        self.warnings += other.warnings
        self.mismatches += other.mismatches
        self.compared += other.compared
        self.runs += other.runs

    def all(self) -> list[str]:
        return [f"{kind}: {words}" for kind in ("errors", "warnings", "mismatches") for words in getattr(self, kind)]

    def error(self, words: str) -> None:
        self.errors.append(words)

    def require(self, holds: bool, words: str) -> None:
        """A rule, which is no comparison of values."""
        if not holds:
            self.errors.append(words)

    def equal(self, kind: str, where: str, expected, found) -> None:
        """Compares one value; numbers may differ in what a Decimal String cannot hold."""
        self.compared[kind] += 1
        if isinstance(expected, float) and isinstance(found, (int, float)):
            same = math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-9)
        else:
            same = expected == found
        if not same:
            self.mismatches.append(f"{where}: {kind} is {found!r}, {expected!r} expected")

    def equal_sets(self, kind: str, where: str, expected: dict, found: dict) -> None:
        """Compares named values: none may be missing, none may be there that nobody expects."""
        for name in sorted(set(expected) | set(found), key=str):
            if name not in found:
                self.compared[kind] += 1
                self.mismatches.append(f"{where}: {kind} {name} is missing, {expected[name]!r} expected")
            elif name not in expected:
                self.compared[kind] += 1
                self.mismatches.append(f"{where}: {kind} {name} is {found[name]!r}, none expected")
            else:
                self.equal(kind, f"{where}: {name}", expected[name], found[name])
