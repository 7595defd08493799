"""Un client dans un pseudo-terminal, et l'écran qu'une personne y verrait.

L'émulation ne connaît que les codes qui passent ici (ceux de client_exo et de readline avec
TERM=xterm) ; un autre fait échouer le test.
"""

import os
import re
import select
import struct
import subprocess
import sys
import unicodedata

try:
    import fcntl
    import termios
except ImportError:  # Windows ; la fixture `terminal` y passe les tests
    pass

from conftest import PATIENCE, ROOT

CODE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z@])|\x1b([78DM=>])|\x1b")


class Grid:
    """Des rangées de cases, un curseur."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [[" "] * width for _ in range(height)]
        self.row = self.column = 0
        self.saved = (0, 0)

    def draw(self, text: str) -> None:
        """Dessine du texte, codes compris ; un code coupé est une erreur."""
        while text:
            if found := CODE.match(text):
                self.obey(*found.groups())
                text = text[found.end() :]
            else:
                self.put(text[0])
                text = text[1:]

    def put(self, char: str) -> None:
        if char == "\n":
            self.next_row()
        elif char == "\r":
            self.column = 0
        elif char == "\b":
            self.column = max(0, self.column - 1)
        elif char == "\x07":
            pass
        elif unicodedata.category(char)[0] == "M" or char == "\u200d":  # ils n'ont pas de case
            self.rows[self.row][self.column - 1] += char
        else:
            assert char.isprintable(), f"caractère de commande {char!r}"
            cells = [char, ""] if unicodedata.east_asian_width(char) in "WF" else [char]
            if self.column + len(cells) > self.width:
                self.column = 0
                self.next_row()
            self.rows[self.row][self.column : self.column + len(cells)] = cells
            self.column += len(cells)

    def next_row(self) -> None:
        if self.row == self.height - 1:
            del self.rows[0]
            self.rows.append([" "] * self.width)
        else:
            self.row += 1

    def obey(self, numbers: str | None, code: str | None, short: str | None) -> None:
        number = int(numbers) if numbers and numbers.isdigit() else 0
        times = max(1, number)
        row = self.rows[self.row]
        match code or short:
            case "A":
                self.row = max(0, self.row - times)
            case "B":
                self.row = min(self.height - 1, self.row + times)
            case "C":
                self.column = min(self.width - 1, self.column + times)
            case "D" if code:
                self.column = max(0, self.column - times)
            case "D":
                self.next_row()
            case "G":
                self.column = times - 1
            case "H":
                self.row = self.column = 0
            case "J":
                for index in range(self.row if number == 0 else 0, self.height):
                    self.rows[index] = [" "] * self.width
            case "K":
                row[self.column :] = [" "] * (self.width - self.column)
            case "L":
                self.rows.insert(self.row, [" "] * self.width)
                del self.rows[self.height]
            case "P":
                row[:] = (row[: self.column] + row[self.column + times :] + [" "] * times)
            case "@":
                row[:] = (row[: self.column] + [" "] * times + row[self.column :])[: self.width]
            case "7":
                self.saved = (self.row, self.column)
            case "8":
                self.row, self.column = self.saved
            case "h" | "l" | "m" | "=" | ">":
                pass
            case _:
                raise AssertionError(f"code inconnu : {numbers}{code or short}")

    def shown(self) -> list[str]:
        """Renvoie les rangées non vides, sans les blancs de la fin."""
        rows = ["".join(row).rstrip() for row in self.rows]
        return [row for row in rows if row]


class Session:
    """Un client_exo.py dans un pseudo-terminal ; `patch` change d'abord le module `c`.

    `program` est ce que Python exécute à sa place, s'il est donné.
    """

    def __init__(
        self, *options: str, width=60, height=12, patch="", before="", program="", pass_fds=(),
        **environment: str,
    ):  # fmt: skip
        self.master, self.terminal = os.openpty()
        self.width, self.height = width, height
        self.resize(width, height)
        ours = f"import sys\n{before}\nimport client_exo as c\n{patch}\nsys.exit(c.main())"
        defaults = {"TERM": "xterm", "PYTHONPATH": str(ROOT), "INPUTRC": "/dev/null"}
        environment = defaults | {"PYTHONUNBUFFERED": ""} | environment
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program or ours, *options],
            cwd=ROOT, stdin=self.terminal, stdout=self.terminal, stderr=self.terminal,
            start_new_session=True, env={**os.environ, **environment}, pass_fds=pass_fds,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # pour que Ctrl+C envoie SIGINT
        )  # fmt: skip
        self.read = b""
        self.is_closed = False

    @property
    def seen(self) -> str:
        """Tout ce qui s'est écrit, codes compris."""
        return self.read.decode(errors="replace")

    def rows(self) -> list[str]:
        """Renvoie l'écran, rangée par rangée."""
        return self.grid().shown()

    def grid(self) -> Grid:
        grid = Grid(self.width, self.height)
        grid.draw(self.seen)
        return grid

    def type(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def read_more(self) -> None:
        assert select.select([self.master], [], [], PATIENCE)[0], self.seen
        self.read += os.read(self.master, 65536)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Lit jusqu'à ce que `text` se soit écrit `times` fois."""
        while self.seen.count(text) < times:
            self.read_more()

    def wait_for_rows(self, *rows: str) -> None:
        """Lit jusqu'à ce que l'écran finisse par ces rangées."""
        while self.complete_rows()[-len(rows) :] != list(rows):
            self.read_more()

    def complete_rows(self) -> list[str]:
        """Renvoie l'écran, ou rien si le dernier code n'est pas encore arrivé en entier."""
        try:
            return self.rows()
        except AssertionError:
            if re.search(r"\x1b\[?[\d;]*$", self.seen):
                return []
            raise

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def end(self) -> int:
        """Attend la fin ; renvoie le code de sortie ; vérifie les réglages du terminal."""
        try:
            while self.process.poll() is None:  # si on ne lisait pas, il serait bloqué
                if select.select([self.master], [], [], 0.01)[0]:
                    self.read += os.read(self.master, 65536)
            while select.select([self.master], [], [], 0)[0]:
                self.read += os.read(self.master, 65536)
            assert termios.tcgetattr(self.terminal) == self.before
            return self.process.returncode
        finally:
            self.close()

    def close(self) -> None:
        """Ferme tout ; sans effet la deuxième fois, quand d'autres ont repris les numéros."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self.master, self.terminal):
            os.close(descriptor)
