"""Le client, lancé comme on le lance, contre un vrai serveur."""

import os
import pty
import select
import subprocess
import sys
import termios

from conftest import PATIENCE, ROOT


def run_client(port, *options, text=""):
    return subprocess.run(
        [sys.executable, "-W", "error", "client_exo.py", "--port", str(port), *options],
        cwd=ROOT, input=text.encode(), capture_output=True, timeout=PATIENCE,
    )  # fmt: skip


def test_ce_qui_est_envoye_par_un_tube_arrive_entier(serveur):
    server = serveur("--debit", "0")
    alice = server.connect("Alice")
    text = "".join(f"{number}\n" for number in range(2000))
    result = run_client(server.port, "--nom", "Robot", text=text)
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == [f"Robot : {n}" for n in range(2000)]


def test_sans_option_la_premiere_ligne_du_tube_est_le_nom(serveur):
    server = serveur()
    alice = server.connect("Alice")
    assert run_client(server.port, text="Robot\nBonjour\nexit\nperdu\n").returncode == 0
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == ["Robot : Bonjour"]


def test_un_nom_refuse_sans_terminal_rend_1(serveur):
    server = serveur()
    result = run_client(server.port, "--nom", "a b")
    assert result.returncode == 1
    assert result.stdout.startswith(b"! ")


def test_sans_serveur_le_client_le_dit():
    result = run_client(1, "--nom", "Alice")
    assert result.returncode == 1
    assert result.stderr.decode().startswith("Connexion impossible à 127.0.0.1:1 : ")
    assert result.stderr.count(b"\n") == 1


class Typist:
    """Un client dans un pseudo-terminal, et ce qui s'y est écrit."""

    def __init__(self, *options: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "client_exo.py", *options],
            cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.read = b""

    @property
    def seen(self) -> str:
        return self.read.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        """Lit l'écran jusqu'à ce que `text` s'y soit écrit."""
        while text not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.read += os.read(self.master, 65536)

    def end(self) -> int:
        """Attend la fin ; rend le code de sortie une fois le terminal comparé."""
        code = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return code


def test_au_terminal_on_parle_on_recoit_et_on_part(serveur):
    server = serveur()
    bob = server.connect("Bob")
    alice = Typist("--port", str(server.port))
    alice.wait_for("Entrez votre nom : ")
    alice.type("Alice\n")
    alice.wait_for("Votre message : ")
    assert bob.line() == "* Alice a rejoint le chat."
    alice.type("moi")
    alice.wait_for("moi")
    bob.send("Salut\n")
    alice.wait_for("Bob : Salut")
    alice.type("tié\n")
    assert bob.line() == "Alice : moitié"
    alice.type("exit\n")
    alice.wait_for("Vous avez quitté le chat.")
    assert alice.end() == 0


def test_un_serveur_qui_disparait_termine_le_client_sans_touche(serveur):
    server = serveur()
    alice = Typist("--port", str(server.port), "--nom", "Alice")
    alice.wait_for("Votre message : ")
    alice.type("à moitié")
    server.process.kill()
    alice.wait_for("Connexion au serveur perdue.")
    assert alice.end() == 1


def test_un_nom_refuse_au_terminal_est_redemande(serveur):
    server = serveur()
    alice = Typist("--port", str(server.port), "--nom", "a b")
    alice.wait_for("Entrez votre nom : ")
    assert "! Nom refusé" in alice.seen
    alice.type("Alice\n")
    alice.wait_for("Votre message : ")
    alice.type("\x04")
    alice.wait_for("Vous avez quitté le chat.")
    assert alice.end() == 0


def test_un_tube_de_sortie_ferme_finit_sans_bruit_et_sans_rien_perdre_de_l_entree(serveur):
    server = serveur()
    bob = server.connect("Bob")
    robot = subprocess.Popen(
        [sys.executable, "-W", "error", "client_exo.py", "--nom", "R", "--port", str(server.port)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert robot.stdout.readline().startswith(b"* Bienvenue, R !")
    robot.stdout.close()
    assert bob.line() == "* R a rejoint le chat."
    bob.send("un\n")
    robot.stdin.write(b"deux\ntrois")
    robot.stdin.close()
    assert bob.lines_until("* R a quitté le chat.") == ["R : deux", "R : trois"]
    with robot.stderr:
        assert robot.stderr.read() == b""
    assert robot.wait(PATIENCE) == 0
