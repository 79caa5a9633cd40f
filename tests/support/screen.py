"""A terminal emulator: as much of one as the project's output requires."""

from __future__ import annotations

import re


class Screen:
    """The lines of a terminal, from the first one that was written.

    Args:
        columns: its width; a longer line continues in the next row, and does so again after :meth:`resize`.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows = [""]
        self._continued: set[int] = set()  # rows that continue the one above
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        return [row.rstrip() for row in self._rows]

    def write(self, text: str) -> None:
        pattern = r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b])"
        for number, code, control, character in re.findall(pattern, text):
            if character:
                self._put(character)
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._down()
            elif code == "A":
                self._row = max(0, self._row - int(number or 1))
            elif code == "B":
                self._down()
            elif code == "K":
                self._rows[self._row] = "" if number == "2" else self._rows[self._row][: self._column]
            elif code == "J":
                self._rows[self._row :] = [self._rows[self._row][: self._column]]
                self._continued = {row for row in self._continued if row <= self._row}
            elif code == "M":
                del self._rows[self._row : self._row + int(number or 1)]

    def resize(self, columns: int) -> None:
        """Wrap all lines again, as most terminals do; the cursor stays at its character."""
        lines: list[str] = []
        for number, row in enumerate(self._rows):
            if number in self._continued:
                lines[-1] += row
            else:
                lines.append(row)
        assert self._row == len(self._rows) - 1, "the cursor is in the last row"
        self._columns, self._rows, self._continued = columns, [], set()
        for line in lines:
            pieces = [line[at : at + columns] for at in range(0, len(line), columns)] or [""]
            self._continued |= {len(self._rows) + number for number in range(1, len(pieces))}
            self._rows += pieces
        self._row, self._column = len(self._rows) - 1, len(self._rows[-1])

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self._down()
            self._column = 0
            self._continued.add(self._row)
        row = self._rows[self._row].ljust(self._column)
        self._rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        self._rows += [""] * (self._row + 1 - len(self._rows))
