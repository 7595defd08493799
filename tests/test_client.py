"""Le client, lancé comme on le lance, contre un vrai serveur."""

import subprocess
import sys

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
