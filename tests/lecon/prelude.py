"""Ce qui s'exécute avant un programme essayé, dans son processus (voir essai.py, qui le lance).

    python -c PRELUDE PORT FICHIER ARGUMENTS…

Le programme s'exécute ensuite tel qu'il est, comme `__main__`. Des méthodes de `socket.socket` sont
enveloppées : chacune fait ce qu'elle faisait, et en dit un mot par une connexion à PORT (des
événements, une ligne JSON chacun). Trois choses seulement changent : `bind` prend un port libre de
cette machine, `connect` mène à PORT, et une porte (gate), que la scène arme, retient un appel.
Quand essai.py ferme ces connexions, ou disparaît, tout le groupe de processus finit.
"""

import _thread
import builtins
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types

HELD_SECONDS = 5  # s pendant lesquelles une porte retient un appel, si la scène ne l'ouvre pas
ENDLESS = 30  # recv vides de suite sur une connexion : c'est une boucle sans fin
MAX_FORKS = 50  # processus qu'un programme peut lancer par fork
LIMITS = {  # ce qu'un programme peut prendre à la machine, là où le système sait le limiter
    "RLIMIT_DATA": 1 << 31,  # octets de mémoire : un Python sans GIL en réserve d'abord la moitié
    "RLIMIT_FSIZE": 1 << 26,  # octets par fichier, stderr comprise
    "RLIMIT_CPU": 60,  # s de processeur
    "RLIMIT_CORE": 0,
}

PORT, PATH = int(sys.argv[1]), sys.argv[2]
control = socket.create_connection(("127.0.0.1", PORT))
lifeline = socket.create_connection(("127.0.0.1", PORT))  # rien n'y passe ; sa fin est un signal
real = types.SimpleNamespace(**{name: getattr(socket.socket, name) for name in dir(socket.socket)})
control_lock = threading.RLock()
ports = {}  # numéro du socket d'un client → port de l'autre bout, qui nomme ce client
empties = {}  # ce port → recv vides de suite
bound = {}  # port demandé par le programme → port pris
gates = {}  # sorte de porte → la porte armée, ses conditions et son événement d'ouverture


def guard():
    """Attend, dans un processus à part, la fin d'essai.py : le programme peut tout bloquer."""
    tokens, more = os.pipe()
    os.write(more, b"." * MAX_FORKS)
    os.set_blocking(tokens, False)
    fork = os.fork

    def limited_fork():
        os.read(tokens, 1)  # un jeton par processus ; lève BlockingIOError quand il n'y en a plus
        return fork()

    if child := fork():
        control.close()
        for number in (0, 1, 2):
            os.close(number)
        lifeline.recv(1)
        os.kill(child, signal.SIGKILL)
        shutil.rmtree(os.path.dirname(os.getcwd()), ignore_errors=True)  # le dossier de cet essai
        os.killpg(0, signal.SIGKILL)
    os.fork = limited_fork
    os.setsid = os.setpgrp = os.setpgid = lambda *_: 0  # rien ne sort du groupe
    popen = subprocess.Popen.__init__

    def grouped_popen(self, *args, start_new_session=False, process_group=None, **more):
        popen(self, *args, **more)

    subprocess.Popen.__init__ = grouped_popen
    with contextlib.suppress(ImportError):
        import resource

        for name, value in LIMITS.items():
            with contextlib.suppress(ValueError, OSError, AttributeError):
                resource.setrlimit(getattr(resource, name), (value, value))


def report(*event):
    with control_lock, contextlib.suppress(OSError):
        real.sendall(control, json.dumps(event).encode() + b"\n")


def obey():
    """Arme ou ouvre les portes que la scène demande, et finit avec elle."""
    with control.makefile("rb") as orders:
        for line in orders:
            order = json.loads(line)
            if order["do"] == "arm":
                gates[order["kind"]] = {**order, "opened": threading.Event(), "is_free": True}
            elif order["do"] == "open":
                gates.pop(order["kind"])["opened"].set()
            report("done")
    if not hasattr(os, "fork"):  # ailleurs, guard finit tout le groupe
        os._exit(1)


def take_gate(kind, port=None, data=b""):
    """Renvoie la porte armée si l'appel y passe, sinon None ; elle ne sert qu'une fois."""
    with control_lock:
        gate = gates.get(kind)
        if not gate or not gate["is_free"] or port in gate.get("but", []):
            return None
        if port not in gate.get("only", [port]) or gate.get("word", "").encode() not in bytes(data):
            return None
        gate["is_free"] = False
        report("held", port, kind)
        return gate


def hold(*call):
    """Retient cet appel si une porte armée l'attend, jusqu'à ce qu'elle s'ouvre."""
    if gate := take_gate(*call):
        gate["opened"].wait(HELD_SECONDS)


def bind(self, address):
    good = isinstance(address, tuple) and len(address) > 1 and isinstance(address[0], str)
    if not good or not isinstance(address[1], int) or not 0 <= address[1] < 65536:
        return real.bind(self, address)  # une famille à part, ou une adresse que bind refusera
    local = "::1" if self.family == socket.AF_INET6 else "127.0.0.1"
    real.bind(self, (local, 0))
    bound[address[1]] = self.getsockname()[1]
    report("bound", address[0])


def listen(self, *backlog):
    real.listen(self, *backlog)
    report("listening", self.getsockname()[1])


def accept(self):
    report("accepting")
    sock, address = real.accept(self)
    ports[sock.fileno()] = address[1]
    empties[address[1]] = 0
    if "small buffers" in gates:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    report("accepted", address[1])
    return sock, address


def connecting(name):
    def connect(self, address):
        if self.type & 0xF != socket.SOCK_STREAM or self.family != socket.AF_INET:
            return getattr(real, name)(self, address)
        result = getattr(real, name)(self, ("127.0.0.1", bound.get(address[1], PORT)))
        port = ports[self.fileno()] = self.getsockname()[1]
        empties[port] = 0
        report("connected", port)
        return result

    return connect


def receiving(name):
    def recv(self, *args, **more):
        port = ports.get(self.fileno())
        if port is None:
            return getattr(real, name)(self, *args, **more)
        report("receiving", port)
        size = -1
        try:
            result = getattr(real, name)(self, *args, **more)
            data = result[0] if isinstance(result, tuple) else result
            size = data if isinstance(data, int) else len(data)
        finally:
            hold("recv", port)
            report("received", port, size)
        empties[port] = 0 if size else empties[port] + 1
        if empties[port] >= ENDLESS:
            report("endless", port)
            threading.Event().wait()  # ce thread ne fait plus rien
        return result

    return recv


def sending(name):
    def send(self, data, *flags):
        port, method = ports.get(self.fileno()), getattr(real, name)
        if port is None:
            return method(self, data, *flags)
        report("sending", port)
        try:
            hold("before", port, data)
            if name == "sendall" and (gate := take_gate("halves", port, data)):
                half = len(data) // 2
                method(self, data[:half], *flags)
                gate["opened"].wait(HELD_SECONDS)
                return method(self, data[half:], *flags)
            if name == "send":
                hold("send", port, data)
                if take_gate("partial", port, data):
                    data = data[: len(data) // 2]
            result = method(self, data, *flags)
        finally:
            report("sent", port)
        hold("after", port, data)
        return result

    return send


def close(self):
    number = self.fileno()
    real.close(self)
    if number in ports and self.fileno() == -1:  # un fichier de makefile peut le garder ouvert
        report("closed", ports.pop(number))


def start(self):
    real_start(self)
    hold("start")


class Keyboard(io.TextIOWrapper):
    """L'entrée du programme : input() et lui-même y lisent des lignes, et l'on sait quand."""

    prompt = ""

    def readline(self, *size):
        report("asking", self.prompt)
        self.prompt = ""
        return super().readline(*size)


def ask(prompt=""):
    sys.stdin.prompt = str(prompt)
    return real_input(prompt)


if hasattr(os, "fork"):
    guard()
_thread.start_new_thread(obey, ())  # sans objet Thread : le programme peut compter les siens
for wrapper in (bind, listen, accept, close):
    setattr(socket.socket, wrapper.__name__, wrapper)
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, connecting(name))
for name in ("recv", "recv_into", "recvfrom", "recvmsg"):
    if hasattr(real, name):
        setattr(socket.socket, name, receiving(name))
for name in ("send", "sendall"):
    setattr(socket.socket, name, sending(name))
real_start, threading.Thread.start = threading.Thread.start, start
real_input, builtins.input = builtins.input, ask
sys.stdin = Keyboard(sys.stdin.buffer, encoding=sys.stdin.encoding)
socket.gethostbyname = lambda host: "127.0.0.1"  # bind prend cette machine de toute façon

program = types.ModuleType("__main__")
program.__file__ = PATH
sys.modules["__main__"], prelude = program, sys.modules["__main__"]
sys.argv[:] = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(PATH))
with open(PATH, "rb") as file:
    source = file.read()
exec(compile(source, PATH, "exec", dont_inherit=True), program.__dict__)
