"""Un client dans une fenêtre (IDLE, Thonny, Jupyter…), imitée : elle remplace les flux de Python."""

import os
import select
import subprocess
import sys

from conftest import PATIENCE, ROOT, needs

WINDOW = """
import builtins, contextlib, os, signal, sys, threading, time
sys.path.insert(0, {root!r})
hours, now = [], time.monotonic  # une heure passe pendant chaque ligne que l'on tape
time.monotonic = lambda: now() + 3600 * len(hours)
gate = threading.RLock()  # dans IDLE, rien ne s'écrit pendant qu'input attend
class Bare:
    def write(self, text):
        if not gate.acquire(blocking=not {in_idle}):
            os.write({output}, b"(attend)")
            gate.acquire()
        os.write({output}, text.encode())
        gate.release()
    def flush(self): pass
    def isatty(self): return True
    def readline(self): return ""
sys.stdin = sys.stdout = sys.stderr = Bare()
commands = open({commands}, encoding="utf-8")
def typed(prompt=""):
    with gate if {in_idle} else contextlib.nullcontext():
        sys.stdout.write(prompt)
        line = commands.readline()
        hours.append(line)
    if line == "^C\\n":
        raise KeyboardInterrupt
    if not line:
        raise EOFError
    return line[:-1]
builtins.input = typed
sys.argv = ["client_exo.py", *{options!r}]
import client_exo
if {in_idle}:  # une machine lente ne doit pas changer ce que l'on voit
    client_exo.CATCH_UP_SECONDS, client_exo.RECENT_SECONDS = 1, 60
handler = signal.getsignal(signal.SIGINT)
for _ in range({times}):
    code = client_exo.main()
    sys.stdout.write("main renvoie %d\\n" % code)
assert signal.getsignal(signal.SIGINT) is handler
"""


class Window:
    """Un client dont les flux sont ceux d'une fenêtre : ni fileno, ni signaux, ni readline."""

    def __init__(self, *options: str, times=1, in_idle=False, **environment: str) -> None:
        needs("des fichiers dont un autre programme hérite")
        commands, self.keyboard = os.pipe()
        self.screen, output = os.pipe()
        program = WINDOW.format(
            root=str(ROOT), output=output, commands=commands, options=options, times=times,
            in_idle=in_idle,
        )  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program], pass_fds=[commands, output],
            stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        )  # fmt: skip
        os.close(commands)
        os.close(output)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def wait_for(self, text: str) -> None:
        """Lit jusqu'à ce que `text` s'affiche, et l'oublie avec ce qui le précède."""
        while text not in self.seen:
            assert select.select([self.screen], [], [], PATIENCE)[0], self.seen
            data = os.read(self.screen, 65536).decode()
            assert data, self.seen
            self.seen += data
        self.seen = self.seen.partition(text)[2]

    def end(self) -> None:
        assert self.process.wait(PATIENCE) == 0
        os.close(self.keyboard)
        os.close(self.screen)
