"""Le client, lancé comme on le lance : dans un pseudo-terminal, dans un tube."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import client_exo
import pytest
from conftest import PATIENCE, ROOT, Peer
from terminal import Session

LOST = "Connexion au serveur perdue."
PARTED = "Vous avez quitté le chat."
PROMPT = "Votre message : "


class FakeServer:
    """Un serveur joué par le test, ligne à ligne."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.port = str(self.listener.getsockname()[1])

    def accept(self) -> Peer:
        return Peer(self.listener.accept()[0])

    def admit(self, name: str = "Alice") -> Peer:
        peer = self.accept()
        assert peer.line() == name
        peer.send(f"* Bienvenue, {name} !\n")
        return peer


@pytest.fixture
def fake_server():
    server = FakeServer()
    yield server
    server.listener.close()


def run_client(*options, text: str | bytes = "", command=("client_exo.py",), **more):
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run(
        [sys.executable, "-W", "error", *command, *options],
        cwd=ROOT, input=data, capture_output=True, timeout=PATIENCE, **more,
    )  # fmt: skip


def start_client(*options, **more) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(
        [sys.executable, "-W", "error", "client_exo.py", *options], cwd=ROOT, **pipes
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Rend le code de sortie et ce qui restait sur stderr ; ferme les tubes."""
    code = process.wait(PATIENCE)
    errors = process.stderr.read().decode()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return code, errors


# --- Dans un tube ------------------------------------------------------------------


def test_ce_qui_est_envoye_par_un_tube_arrive_entier(start_server):
    server = start_server("--debit", "0")
    alice = server.connect("Alice")
    text = "".join(f"{number}\n" for number in range(100_000))
    result = run_client("--port", str(server.port), "--nom", "Robot", text=text)
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == [f"Robot : {n}" for n in range(100_000)]


def test_au_debit_normal_un_tube_attend_que_tout_soit_pris(start_server):
    server = start_server(patch="s.BURST_LINES = 5")
    alice = server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Robot", text="ligne\n" * 25 + "fin")
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == ["Robot : ligne"] * 25 + ["Robot : fin"]


def test_un_serveur_tue_avant_d_avoir_tout_pris_rend_1(start_server):
    server = start_server()
    alice = server.connect("Alice")
    robot = start_client("--port", str(server.port), "--nom", "Robot")
    robot.stdin.write(b"ligne\n" * 300)
    robot.stdin.close()
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.line() == "Robot : ligne"
    server.process.kill()
    assert finish(robot) == (1, f"{LOST}\n")


def test_sans_option_la_premiere_ligne_du_tube_est_le_nom(start_server):
    server = start_server()
    alice = server.connect("Alice")
    result = run_client("--port", str(server.port), text="Robot\nBonjour\nexit\nperdu\n")
    assert result.returncode == 0
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == ["Robot : Bonjour"]
    assert PROMPT not in result.stdout.decode()


def test_exit_finit_l_entree_des_la_premiere_ligne(start_server):
    server = start_server()
    alice = server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Robot", text="exit\nperdu\n")
    assert result.returncode == 0
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.line() == "* Robot a quitté le chat."


def test_toutes_les_lignes_recues_sont_gardees(start_server):
    server = start_server("--debit", "0")
    alice = server.connect("Alice")
    robot = start_client("--port", str(server.port), "--nom", "Robot")
    assert robot.stdout.readline().startswith(b"* Bienvenue")
    alice.send("".join(f"{number}\n" for number in range(1000)) + "exit\n")
    received = [robot.stdout.readline().decode() for _ in range(1001)]
    assert received == [f"Alice : {n}\n" for n in range(1000)] + ["* Alice a quitté le chat.\n"]
    robot.stdin.close()
    assert finish(robot) == (0, "")


@pytest.mark.parametrize("text", ["", "\n \n", "exit\nBonjour\n"], ids=["vide", "blanc", "exit"])
def test_un_tube_sans_nom_rend_1_et_le_dit(text):
    result = run_client(text=text)
    assert (result.returncode, result.stderr.decode()) == (1, "Aucun nom donné.\n")


def test_un_nom_refuse_sans_terminal_rend_1(start_server):
    result = run_client("--port", str(start_server().port), "--nom", "a b")
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.startswith(b"! ")


def test_un_nom_qui_cache_une_ligne_est_refuse(start_server):
    server = start_server()
    alice = server.connect("Alice")
    assert run_client("--port", str(server.port), "--nom", "Bob\nsalut").returncode == 1
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_un_serveur_complet_rend_1_avec_sa_raison(start_server):
    server = start_server("--max-clients", "1")
    server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Bob")
    assert result.returncode == 1
    assert result.stdout.decode() == "! Le serveur est complet, réessayez plus tard.\n"


def test_sans_serveur_le_client_le_dit():
    result = run_client("--port", "1", "--nom", "Alice")
    assert result.returncode == 1
    assert result.stderr.decode() == (
        "Connexion impossible à 127.0.0.1:1 : connexion refusée. Le serveur est-il lancé ?\n"
    )


@pytest.mark.parametrize("host", ["..", "nulle-part.invalid"])
def test_une_adresse_inconnue_rend_1(host):
    result = run_client("--hote", host, "--nom", "Alice")
    assert result.returncode == 1
    assert "adresse inconnue" in result.stderr.decode() and result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("option", [["--port", "70000"], ["--hote", ""], ["--nom"], ["-x"]])
def test_une_mauvaise_option_rend_2_et_une_seule_ligne(option):
    result = run_client(*option)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)


def test_un_tube_de_sortie_ferme_finit_sans_bruit_et_sans_rien_perdre_de_l_entree(start_server):
    server = start_server()
    bob = server.connect("Bob")
    robot = start_client("--nom", "R", "--port", str(server.port))
    assert robot.stdout.readline().startswith(b"* Bienvenue, R !")
    robot.stdout.close()
    assert bob.line() == "* R a rejoint le chat."
    bob.send("un\n")
    robot.stdin.write(b"deux\ntrois")
    robot.stdin.close()
    assert bob.lines_until("* R a quitté le chat.") == ["R : deux", "R : trois"]
    assert finish(robot) == (0, "")


def test_un_disque_plein_est_signale_une_fois_et_l_entree_part_quand_meme(start_server):
    server = start_server()
    bob = server.connect("Bob")
    with open("/dev/full", "wb") as full:
        robot = start_client("--nom", "R", "--port", str(server.port), stdout=full)
    robot.stdin.write(b"un\n")
    robot.stdin.close()
    assert bob.line() == "* R a rejoint le chat."
    assert bob.line() == "R : un"
    assert finish(robot) == (1, "Plus rien ne s'écrit sur la sortie : disque plein.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_un_tube_interrompu_rend_1_et_le_dit(fake_server, number):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    robot.stdin.write(b"un\n")
    robot.stdin.flush()
    assert peer.line() == "un"
    while not select.select([peer.sock], [], [], 0.5)[0]:  # une lecture qui commence le perdrait
        robot.send_signal(number)
    assert [peer.line(), peer.line()] == ["", "exit"]
    assert finish(robot) == (1, "Interrompu : tout n'est peut-être pas arrivé.\n")
    peer.close()


def test_un_tube_interrompu_pendant_l_au_revoir_finit_et_le_dit(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice", stdin=subprocess.DEVNULL)
    peer = fake_server.admit()
    assert [peer.line(), peer.line()] == ["", "exit"]
    robot.send_signal(signal.SIGINT)
    assert finish(robot) == (1, "Interrompu : tout n'est peut-être pas arrivé.\n")
    peer.close()


def test_ctrl_c_finit_meme_si_plus_rien_ne_peut_partir():
    """select reprend son attente après un signal : seule la fin de la connexion l'en sort."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    done = threading.Event()

    def insist() -> None:
        for _ in range(10 * PATIENCE):
            if done.wait(0.1):
                return
            os.kill(os.getpid(), signal.SIGTERM)
        theirs.close()  # l'épreuve échoue, au lieu d'attendre toujours

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    insister = threading.Thread(target=insist)
    with ours, theirs:
        connection = client_exo.Connection(ours)
        client_exo.listen_to_signals(connection)
        connection.is_leaving = True
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 65536, socket.MSG_DONTWAIT)
        insister.start()
        client_exo.part(connection, patience=None)
        done.set()
        insister.join()
        assert theirs.fileno() > 0
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def test_un_disque_plein_pour_les_deux_sorties_ne_perd_rien_de_l_entree(start_server):
    server = start_server()
    bob = server.connect("Bob")
    with open("/dev/full", "wb") as full:
        robot = start_client("--nom", "R", "--port", str(server.port), stdout=full, stderr=full)
    assert bob.line() == "* R a rejoint le chat."
    robot.stdin.write(b"un\n")
    robot.stdin.flush()
    assert bob.line() == "R : un"
    bob.send("Salut\n")
    bob.barrier()
    robot.stdin.write(b"deux\n")
    robot.stdin.close()
    assert bob.line() == "R : deux"
    assert bob.line() == "* R a quitté le chat."
    assert robot.wait(PATIENCE) == 1


@pytest.mark.parametrize("closed", [0, 1, 2], ids=["entrée", "sortie", "erreurs"])
def test_un_flux_ferme_au_depart_ne_fait_pas_de_traceback(start_server, closed):
    server = start_server()
    result = subprocess.run(
        [sys.executable, "client_exo.py", "--port", str(server.port), "--nom", "R"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(closed), timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("options", [["--help"], ["--port", "1", "--nom", "É"]])
def test_une_sortie_qui_ne_sait_pas_les_accents_recoit_des_points_d_interrogation(options):
    result = run_client(*options, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"Traceback" not in result.stderr
    assert b"?" in result.stdout + result.stderr and b"\\x" not in result.stdout + result.stderr


def test_un_message_accentue_dans_une_sortie_ascii_garde_sa_ligne(start_server):
    server = start_server()
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    robot = start_client("--port", str(server.port), "--nom", "R", env=env)
    assert robot.stdout.readline().startswith(b"* Bienvenue")
    alice = server.connect("Alice")
    assert robot.stdout.readline() == b"* Alice a rejoint le chat.\n"
    alice.send("Noël\n")
    assert robot.stdout.readline() == b"Alice : No?l\n"
    robot.stdin.close()
    assert finish(robot) == (0, "")


# --- Un serveur hostile --------------------------------------------------------------


def test_un_serveur_hostile_ne_pilote_pas_le_terminal(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    peer.send(b"\x1b[2J\x9b31m \xc2\x9b \xe2\x80\xae \xff\xfe \xe2\x80\xa8fin\r\n" + b"coup\xc3\xa9")
    peer.close()
    assert robot.stdout.read().decode() == (
        "* Bienvenue, Alice !\n\ufffd[2J\ufffd31m \ufffd \ufffd \ufffd\ufffd \ufffdfin\ncoupé\n"
    )
    assert finish(robot) == (1, f"{LOST}\n")


def test_une_ligne_sans_fin_est_coupee_et_la_memoire_reste_plate(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    before = resident_kilobytes(robot)
    peer.send("é" * 500_000)
    assert robot.stdout.readline().decode() == "é" * (128 * 1024) + "…\n"
    for _ in range(100):
        peer.send("é" * 500_000)
    peer.send("\nsuite\n")
    assert robot.stdout.readline() == b"suite\n"
    assert resident_kilobytes(robot) - before < 10_000
    peer.close()
    assert finish(robot) == (1, f"{LOST}\n")


def resident_kilobytes(process: subprocess.Popen) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_un_serveur_qui_ferme_avant_l_accueil_est_une_perte(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    fake_server.accept().close()
    assert finish(robot) == (1, f"{LOST}\n")


def test_un_accueil_en_deux_morceaux_avec_la_suite_se_lit_bien(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.accept()
    assert peer.line() == "Alice"
    peer.send("* Bienve")
    peer.send("nue, Alice !\nBob : un\nBob : deux\n* Au revoir, Alice.\n")
    assert [robot.stdout.readline().decode()[:-1] for _ in range(3)] == [
        "* Bienvenue, Alice !", "Bob : un", "Bob : deux",
    ]  # fmt: skip
    robot.stdin.close()
    assert [peer.line(), peer.line()] == ["", "exit"]
    peer.close()
    assert finish(robot) == (0, "")


# --- Au terminal : arriver et partir ---------------------------------------------------


def test_au_terminal_on_parle_on_recoit_et_on_part(start_server, terminal):
    server = start_server()
    bob = server.connect("Bob")
    alice = terminal("--port", str(server.port))
    alice.wait_for("Entrez votre nom : ")
    alice.type("\r")
    alice.wait_for("Entrez votre nom : ", times=2)
    alice.type("Alice\r")
    alice.wait_for(PROMPT)
    assert bob.line() == "* Alice a rejoint le chat."
    alice.type("moi")
    alice.wait_for("moi")
    bob.send("Salut\n")
    alice.wait_for_rows("* Bienvenue, Alice ! (/aide : les commandes)", "Bob : Salut", f"{PROMPT}moi")
    alice.type("tié\r")
    assert bob.line() == "Alice : moitié"
    alice.type("exit\r")
    alice.wait_for(PARTED)
    assert alice.end() == 0


@pytest.mark.parametrize(
    "keys",
    ["exit\r", " EXIT \r", "/quitter\r", "/exit\r", "/quit\r", "\x04", "\x03", "à moitié\x03"],
    ids=["exit", "EXIT", "quitter", "slash_exit", "quit", "ctrl_d", "ctrl_c", "ctrl_c_en_tapant"],
)
def test_chaque_facon_de_partir_rend_0_et_le_terminal(start_server, terminal, keys):
    server = start_server()
    bob = server.connect("Bob")
    alice = terminal("--port", str(server.port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    alice.insist(lambda: alice.type(keys), PARTED)
    assert alice.end() == 0
    assert alice.rows()[-1] == PARTED
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "* Alice a quitté le chat."


def test_kill_rend_le_terminal_et_quitte_le_chat(start_server, terminal):
    alice = terminal("--port", str(start_server().port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    alice.insist(alice.process.terminate, PARTED)
    assert alice.end() == 0


@pytest.mark.parametrize("keys", ["exit\r", "/quitter\r", "\x03", "\x04"])
def test_partir_avant_de_donner_un_nom_rend_0(terminal, keys):
    alice = terminal("--port", "1")
    alice.wait_for("Entrez votre nom : ")
    alice.insist(lambda: alice.type(keys), PARTED)
    assert alice.end() == 0
    assert alice.rows()[-1] == PARTED


def test_ctrl_c_pendant_la_connexion_quitte_sans_traceback(terminal):
    patch = """
def wait_for_ever(address):
    print("prêt", flush=True)
    c.threading.Event().wait()
c.socket.create_connection = wait_for_ever
"""
    alice = terminal("--nom", "Alice", patch=patch)
    alice.wait_for("prêt")
    alice.insist(lambda: alice.type("\x03"), PARTED)
    assert alice.end() == 0
    assert "Traceback" not in alice.seen


def test_un_serveur_muet_au_depart_n_est_attendu_qu_un_moment(fake_server, terminal):
    alice = terminal("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    alice.wait_for(PROMPT)
    alice.type("exit\r")
    assert [peer.line(), peer.line()] == ["", "exit"]
    alice.wait_for(PARTED)
    assert alice.end() == 0
    peer.close()


def test_ctrl_c_pendant_l_au_revoir_finit_sans_attendre(fake_server, terminal):
    alice = terminal(
        "--port", fake_server.port, "--nom", "Alice", patch=f"c.GOODBYE_SECONDS = {10 * PATIENCE}"
    )
    peer = fake_server.admit()
    alice.wait_for(PROMPT)
    alice.type("exit\r")
    assert [peer.line(), peer.line()] == ["", "exit"]
    alice.insist(lambda: alice.type("\x03"), PARTED)
    peer.close()
    assert alice.end() == 0


@pytest.mark.parametrize("keys", ["", "à moitié", "\x12rech"], ids=["repos", "en_tapant", "ctrl_r"])
def test_un_serveur_qui_disparait_finit_chaque_client_sans_touche(start_server, terminal, keys):
    server = start_server()
    sessions = [terminal("--port", str(server.port), "--nom", f"u{number}") for number in range(8)]
    for session in sessions:
        session.wait_for(PROMPT)
        session.type(keys)
    server.process.kill()
    for session in sessions:
        session.wait_for(LOST)
        assert session.end() == 1
        assert session.rows()[-1] == LOST


def test_un_serveur_qui_s_arrete_le_dit_et_finit_le_client(start_server, terminal):
    server = start_server()
    alice = terminal("--port", str(server.port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    server.process.send_signal(signal.SIGINT)
    alice.wait_for("* Le serveur s'arrête.")
    alice.wait_for(LOST)
    assert alice.end() == 1


def test_une_perte_pendant_la_demande_du_nom_se_voit_sans_touche(fake_server, terminal):
    alice = terminal("--port", fake_server.port, "--nom", "pris")
    peer = fake_server.accept()
    assert peer.line() == "pris"
    peer.send("! Nom pris.\n")
    alice.wait_for("Entrez votre nom : ")
    peer.close()
    alice.wait_for(LOST)
    assert alice.end() == 1


def test_un_nom_refuse_au_terminal_est_redemande_et_oublie(start_server, terminal):
    server = start_server()
    bob = server.connect("Bob")
    alice = terminal("--port", str(server.port), "--nom", "a b")
    alice.wait_for("Entrez votre nom : ")
    assert "! Nom refusé" in alice.seen
    alice.type("Alice\r")
    alice.wait_for(PROMPT)
    alice.type("\x1b[Abonjour\r")  # Flèche-haut n'a pas de nom à proposer
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "Alice : bonjour"
    alice.insist(lambda: alice.type("\x04"), PARTED)
    assert alice.end() == 0


def test_cinq_noms_refuses_finissent_le_client(start_server, terminal):
    alice = terminal("--port", str(start_server().port), "--nom", "a b", width=150)
    for number in range(4):
        alice.wait_for("Entrez votre nom : ", times=number + 1)
        alice.type("a b\r")
    alice.wait_for("C'était le dernier des 5 essais.")
    assert alice.end() == 1


def test_un_octet_qui_n_est_pas_de_l_utf8_ne_fait_pas_tomber_le_client(start_server, terminal):
    server = start_server()
    bob = server.connect("Bob")
    alice = terminal("--port", str(server.port), "--nom", "Alice", PYTHONIOENCODING="utf-8:strict")
    alice.wait_for(PROMPT)
    alice.type(b"ab\xffc\r")
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "Alice : ab?c"
    alice.type("exit\r")
    assert alice.end() == 0


# --- Au terminal : recevoir pendant que l'on tape ------------------------------------


@pytest.fixture
def conversation(fake_server, terminal):
    """Rend une fonction qui lance Alice, admise ; elle rend son terminal et le serveur."""
    peers = []

    def start(**more):
        alice = terminal("--port", fake_server.port, "--nom", "Alice", **more)
        peers.append(fake_server.admit())
        alice.wait_for(PROMPT)
        return alice, peers[-1]

    yield start
    for peer in peers:
        peer.close()


@pytest.mark.parametrize(
    ("typed", "row", "column", "rest", "sent"),
    [
        ("été", "été", 3, "!", "été!"),
        ("abcd\x1b[D\x1b[D", "abcd", 2, "XY", "abXYcd"),
        ("naïf\x01", "naïf", 0, "Ô ", "Ô naïf"),
        ("日本", "日本", 4, "語", "日本語"),
        ("un deux\x17", "un", 3, "trois", "un trois"),
    ],
    ids=["accents", "curseur_au_milieu", "début_de_ligne", "caractères_doubles", "mot_effacé"],
)
def test_une_ligne_arrive_au_dessus_de_ce_que_l_on_tape(
    conversation, typed, row, column, rest, sent
):
    alice, server = conversation()
    alice.type(typed)
    alice.wait_for_rows(f"{PROMPT}{row}")
    while alice.screen().column != len(PROMPT) + column:
        alice.read_more()
    server.send("Bob : Ça va ?\n")
    alice.wait_for_rows("* Bienvenue, Alice !", "Bob : Ça va ?", f"{PROMPT}{row}")
    assert alice.screen().column == len(PROMPT) + column
    alice.type(f"{rest}\r")
    assert server.line() == sent


def test_fleche_haut_et_ctrl_r_survivent_a_une_ligne(conversation):
    alice, server = conversation()
    alice.type("premier\rsecond\r")
    assert [server.line(), server.line()] == ["premier", "second"]
    alice.wait_for(PROMPT, times=3)
    alice.type("\x1b[A\x1b[A")
    alice.wait_for_rows(f"{PROMPT}premier")
    server.send("Bob : un\n")
    alice.wait_for_rows("Bob : un", f"{PROMPT}premier")
    alice.type("\r")
    assert server.line() == "premier"
    alice.wait_for(PROMPT, times=4)
    alice.type("\x12sec")
    alice.wait_for("second", times=3)
    server.send("Bob : deux\n")
    alice.wait_for("Bob : deux")
    alice.type("\r")
    assert server.line() == "second"


def test_une_ligne_tapee_plus_longue_que_l_ecran_reste_sur_une_rangee(conversation):
    alice, server = conversation()
    text = "".join(str(number % 10) for number in range(70))
    alice.type(text)
    alice.wait_for(text[-5:])
    alice.type("\x01")
    alice.wait_for_rows(f"{PROMPT}{text[:43]}>")
    server.send("Bob : un\n")
    alice.wait_for_rows("Bob : un", f"{PROMPT}{text[:43]}>")
    alice.type("\x05!\r")
    assert server.line() == f"{text}!"


@pytest.mark.parametrize("width", [60, 20])
def test_un_message_plus_large_que_l_ecran_y_tient_en_rangees(conversation, width):
    alice, server = conversation(width=width, height=40)
    alice.type("ab")
    alice.wait_for("ab")
    text = "Bob : " + "0123456789" * 8
    server.send(f"{text}\n* fin\n")
    alice.wait_for("* fin"[: width - 1])
    alice.type("c\r")
    assert server.line() == "abc"
    rows = [text[start : start + width - 1] for start in range(0, len(text), width - 1)]
    alice.wait_for(PROMPT[:4], times=2)
    shown = alice.rows()
    start = shown.index(rows[0])
    assert shown[start : start + len(rows)] == [row.rstrip() for row in rows]


def test_un_message_plus_haut_que_l_ecran_laisse_la_ligne_tapee(conversation):
    alice, server = conversation(height=6)
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("x" * 59 * 20 + "\n* fin\n")
    alice.wait_for_rows("x" * 59, "* fin", f"{PROMPT}abc")
    alice.type("d\r")
    assert server.line() == "abcd"


@pytest.mark.parametrize("text", ["日本語" * 20, "👩‍🚀 et 👍", "e\u0301" * 30, "tab\tulation"])
def test_des_caracteres_de_toute_largeur_ne_derangent_pas_la_ligne_tapee(conversation, text):
    alice, server = conversation()
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send(f"Bob : {text}\n* fin\n")
    while "* fin" not in alice.seen:
        alice.read_more()
    alice.type("d\r")
    assert server.line() == "abcd"
    if "\u200d" not in text:  # chaque terminal montre à sa façon les emoji composés
        alice.wait_for_rows("* fin", f"{PROMPT}abcd", PROMPT.rstrip())


def test_une_rafale_de_cent_lignes_s_affiche_dans_l_ordre(conversation):
    alice, server = conversation()
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("".join(f"Bob : {number}\n" for number in range(100)))
    alice.wait_for_rows(*(f"Bob : {number}" for number in range(90, 100)), f"{PROMPT}abc")
    alice.type("d\r")
    assert server.line() == "abcd"


def test_une_fenetre_que_l_on_retrecit_garde_la_ligne_tapee(conversation):
    alice, server = conversation()
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    alice.resize(30, 12)
    alice.width = 30
    server.send("Bob : " + "x" * 40 + "\n")
    alice.wait_for("x" * 17)
    alice.type("d\r")
    assert server.line() == "abcd"
    assert "Bob : " + "x" * 23 + "\x1b8" in alice.seen


def test_pendant_des_centaines_de_messages_ce_qui_part_est_ce_qui_est_tape(conversation):
    alice, server = conversation()
    stop = threading.Event()

    def pour() -> None:
        number = 0
        while not stop.wait(0.002):
            server.send(f"Bob : {number}\n" * 3)
            number += 1

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        for number in range(60):
            alice.wait_for(PROMPT, times=number + 1)
            for key in ["n", "o", "x", "é", "\x1b[D", "\x7f", "ë", *str(number), "\r"]:
                alice.type(key)
            assert server.line() == f"noë{number}é"
    finally:
        stop.set()
        thread.join()


def test_un_collage_part_ligne_par_ligne(conversation):
    alice, server = conversation()
    alice.type("un\rdeux\r\rtrois\r")
    assert [server.line() for _ in range(4)] == ["un", "deux", "", "trois"]


def test_un_collage_entre_crochets_part_ligne_par_ligne(conversation, tmp_path):
    inputrc = tmp_path / "inputrc"
    inputrc.write_text("set enable-bracketed-paste on\n")
    alice, server = conversation(INPUTRC=str(inputrc))
    alice.type("\x1b[200~un\rexit\rtrois\x1b[201~\r")
    assert [server.line() for _ in range(3)] == ["un", "", "exit"]
    server.close()
    alice.wait_for(PARTED)
    assert alice.end() == 0


@pytest.mark.parametrize(
    ("keys", "sent"),
    [("/l\t\r", "/liste "), ("/pr\t Bob\r", "/privé  Bob"), ("/privé B\t\r", "/privé B"), ("a /l\t\r", "a /l")],
)
def test_tab_complete_les_commandes_et_rien_d_autre(conversation, keys, sent):
    alice, server = conversation()
    alice.type(keys)
    assert server.line() == sent


@pytest.mark.parametrize(
    "more",
    [{"TERM": "dumb"}, {"before": "sys.stdout.reconfigure(write_through=True)"}],
    ids=["dumb", "python_u"],
)
def test_un_terminal_sans_codes_montre_la_ligne_puis_l_invite(conversation, more):
    alice, server = conversation(**more)
    alice.type("abc")
    alice.wait_for(f"{PROMPT}abc")
    server.send("Bob : un\n")
    alice.wait_for(f"Bob : un\r\n{PROMPT}")
    alice.type("d\r")
    assert server.line() == "abcd"
    assert "\x1b" not in alice.seen.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")


def test_sans_readline_une_ligne_arrive_au_dessus_aussi(conversation):
    alice, server = conversation(before="sys.modules['readline'] = None")
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("Bob : un\n")
    alice.wait_for_rows("Bob : un", f"{PROMPT}abc")
    alice.type("d\n")
    assert server.line() == "abcd"


def test_sans_tampon_le_client_se_relance_avec(conversation):
    alice, server = conversation(PYTHONUNBUFFERED="1")
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("Bob : un\n")
    alice.wait_for_rows("Bob : un", f"{PROMPT}abc")


# --- Ce qui diffère ailleurs ---------------------------------------------------------


def test_sans_pthread_kill_une_perte_finit_le_client_quand_meme(fake_server, terminal):
    """Windows : rien n'y interrompt une lecture du clavier."""
    alice = terminal("--port", fake_server.port, "--nom", "Alice", patch="del c.signal.pthread_kill")
    peer = fake_server.admit()
    alice.wait_for(PROMPT)
    peer.close()
    alice.wait_for(LOST)
    assert alice.process.wait(PATIENCE) == 1


def test_libedit_recoit_sa_propre_syntaxe(monkeypatch):
    """macOS : le module readline y est le plus souvent libedit."""
    asked = []

    class Libedit:
        __doc__ = "Importing this module enables command line editing using libedit readline."

        def __getattr__(self, name):
            return asked.append if name == "parse_and_bind" else lambda *_: None

    monkeypatch.setattr(client_exo, "readline", Libedit())
    monkeypatch.setattr(client_exo.sys.stdin, "isatty", lambda: True, raising=False)
    client_exo.set_up_readline()
    assert asked == ["bind ^I rl_complete"]


def test_deux_threads_suffisent(start_server, terminal):
    alice = terminal("--port", str(start_server().port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    assert len(list(Path(f"/proc/{alice.process.pid}/task").iterdir())) == 2
