"""Le client, lancé comme on le lance : dans un pseudo-terminal, dans un tube."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import client_exo
import pytest
from conftest import (
    IS_WINDOWS, PATIENCE, ROOT, UNIX_LINES, Peer, needs, peak_kilobytes, proc, wait_in_recv,
    wait_until,
)  # fmt: skip

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


def client_command(patch: str) -> list[str]:
    """Renvoie ce qui lance le client, après que `patch` a changé son module `c`."""
    ours = UNIX_LINES if IS_WINDOWS else ""
    return ["-c", f"import os, sys, client_exo as c\n{ours}\n{patch}\nos._exit(c.main())"]


COMMAND = client_command("") if IS_WINDOWS else ["client_exo.py"]


def run_client(*options, text: str | bytes = "", command=COMMAND, **more):
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run(
        [sys.executable, "-W", "error", *command, *options],
        cwd=ROOT, input=data, capture_output=True, timeout=PATIENCE, **more,
    )  # fmt: skip


def start_client(*options, command=COMMAND, **more) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command, *options], cwd=ROOT, **pipes
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Renvoie le code de sortie et ce qui restait sur stderr ; ferme les tubes."""
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
    lines = [f"{number:099}" for number in range(20_000)]
    result = run_client("--port", str(server.port), "--nom", "Robot", text="\n".join(lines))
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == [f"Robot : {line}" for line in lines]


def test_au_debit_normal_un_tube_attend_que_tout_soit_pris(start_server):
    server = start_server(patch="s.BURST_LINES = 5")
    alice = server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Robot", text="ligne\n" * 25 + "fin")
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == ["Robot : ligne"] * 25 + ["Robot : fin"]


def test_dans_un_tube_muet_l_au_revoir_est_la_derniere_ligne(start_server):
    text = "Bonjour\n//aide dit tout\n"
    result = run_client("--port", str(start_server().port), "--nom", "Robot", text=text)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == [
        "* Bienvenue, Robot ! (/aide : les commandes)", "* Au revoir, Robot.",
    ]  # fmt: skip


def test_un_serveur_tue_avant_d_avoir_tout_pris_renvoie_1(start_server):
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
    assert result.stdout.decode().replace(PROMPT, "").splitlines() == [
        "Entrez votre nom : ", "* Bienvenue, Robot ! (/aide : les commandes)", "",
        "* Au revoir, Robot.", PARTED,
    ]  # fmt: skip


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


@pytest.mark.parametrize("text", ["", "\n \n"], ids=["vide", "blanc"])
def test_un_tube_sans_nom_renvoie_1_et_le_dit(text):
    result = run_client(text=text)
    assert (result.returncode, result.stderr.decode()) == (1, "Aucun nom donné.\n")


def test_un_nom_refuse_sans_terminal_renvoie_1(start_server):
    result = run_client("--port", str(start_server().port), "--nom", "a b")
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.startswith(b"! ")


def test_un_nom_qui_cache_une_ligne_est_refuse(start_server):
    server = start_server()
    alice = server.connect("Alice")
    assert run_client("--port", str(server.port), "--nom", "Bob\nsalut").returncode == 1
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_un_serveur_complet_renvoie_1_avec_sa_raison(start_server):
    server = start_server("--max-clients", "1")
    server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Bob")
    assert result.returncode == 1
    assert result.stdout.decode() == "! Le serveur est complet, réessayez plus tard.\n"


def test_sans_serveur_le_client_le_dit():
    result = run_client("--port", "1", "--nom", "Alice")
    assert result.returncode == 1
    assert result.stderr.decode() == (
        "Connexion impossible à 127.0.0.1:1 : connexion refusée. "
        "Le serveur est-il lancé ? Son pare-feu bloque-t-il ce port ?\n"
    )


@pytest.mark.parametrize("host", ["..", "nulle-part.invalid"])
def test_une_adresse_inconnue_renvoie_1(host):
    result = run_client("--hote", host, "--nom", "Alice")
    assert result.returncode == 1
    assert "adresse inconnue" in result.stderr.decode() and result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("option", [["--port", "70000"], ["--hote", ""], ["--nom"], ["-x"]])
def test_une_mauvaise_option_renvoie_2_et_une_seule_ligne(option):
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


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["avec_tampon", "sans_tampon"])
def test_un_disque_plein_est_signale_une_fois_et_l_entree_part_quand_meme(start_server, unbuffered):
    needs("/dev/full")
    server = start_server()
    bob = server.connect("Bob")
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        robot = start_client("--nom", "R", "--port", str(server.port), stdout=full, env=env)
    robot.stdin.write(b"un\n")
    robot.stdin.close()
    assert bob.line() == "* R a rejoint le chat."
    assert bob.line() == "R : un"
    assert finish(robot) == (1, "Impossible d'écrire sur la sortie standard : disque plein.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_un_tube_interrompu_renvoie_1_et_le_dit(fake_server, number):
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    robot.stdin.write(b"un\n")
    robot.stdin.flush()
    assert peer.line() == "un"
    robot.send_signal(number)
    assert [peer.line(), peer.line()] == ["", "exit"]
    peer.close()
    assert finish(robot) == (1, "Interrompu : une partie de l'envoi est peut-être perdue.\n")


def test_un_tube_interrompu_avant_d_avoir_donne_un_nom_renvoie_0():
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", "1")
    assert robot.stdout.read(len("Entrez votre nom : ")) == b"Entrez votre nom : "
    for _ in range(10 * PATIENCE):  # un signal reçu juste avant la lecture ne se voit qu'au suivant
        robot.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            robot.wait(0.1)
            break
    assert robot.stdout.read().decode().strip() == PARTED
    assert finish(robot) == (0, "")


def test_un_tube_interrompu_pendant_l_au_revoir_finit_et_le_dit(fake_server):
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", fake_server.port, "--nom", "Alice", stdin=subprocess.DEVNULL)
    peer = fake_server.admit()
    assert [peer.line(), peer.line()] == ["", "exit"]
    robot.send_signal(signal.SIGINT)
    assert finish(robot) == (1, "Interrompu : une partie de l'envoi est peut-être perdue.\n")
    peer.close()


def test_ctrl_c_finit_meme_si_plus_rien_ne_peut_partir(fake_server):
    """Le serveur ne lit plus : l'envoi attend, et Ctrl+C doit pourtant être vu."""
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()

    def pour() -> None:
        with contextlib.suppress(OSError):
            robot.stdin.write(b"x" * 1000 + b"\n")
            robot.stdin.write((b"x" * 1000 + b"\n") * 20_000)

    thread = threading.Thread(target=pour)
    thread.start()
    assert peer.line() == "x" * 1000
    for _ in range(10 * PATIENCE):  # un premier Ctrl+C, puis un second qui finit
        robot.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            robot.wait(0.1)
            break
    thread.join()
    assert finish(robot)[0] == 1
    peer.close()


def test_un_disque_plein_pour_les_deux_sorties_ne_perd_rien_de_l_entree(start_server):
    needs("/dev/full")
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
    needs("des fichiers dont un autre programme hérite")
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


@pytest.mark.parametrize("named", [True, False], ids=["avec_nom", "sans_nom"])
def test_un_clavier_illisible_est_la_fin_de_l_entree(start_server, tmp_path, named):
    """nohup donne au programme une entrée que l'on ne peut pas lire."""
    port = str(start_server().port) if named else "1"
    with open(tmp_path / "clavier", "wb") as unreadable:
        robot = start_client("--port", port, *["--nom", "R"] * named, stdin=unreadable)
    shown = robot.stdout.read().decode()
    assert finish(robot) == ((0, "") if named else (1, "Aucun nom donné.\n"))
    assert ("* Au revoir, R." in shown) == named


def test_un_tube_laisse_sans_attente_ne_perd_rien(fake_server):
    """Un autre programme a pu régler ces tubes : lire ou écrire n'y attend pas."""
    needs("des fichiers dont un autre programme hérite")
    (stdin, keyboard), (screen, stdout) = os.pipe(), os.pipe()
    for end in (stdin, stdout):
        os.set_blocking(end, False)
    robot = start_client("--port", fake_server.port, "--nom", "Alice", stdin=stdin, stdout=stdout)
    for end in (stdin, stdout):
        os.close(end)
    server = fake_server.admit()
    lines = [f"Bob : {number}\n" for number in range(50_000)]  # plus qu'un tube ne contient
    thread = threading.Thread(target=server.send, args=["".join(lines)])
    thread.start()
    with open(screen, encoding="utf-8") as copy:
        assert copy.readline() == "* Bienvenue, Alice !\n"
        assert [copy.readline() for _ in lines] == lines
    os.write(keyboard, b"deux\n")
    assert server.line() == "deux"
    os.close(keyboard)
    thread.join()
    assert [server.line(), server.line()] == ["", "exit"]
    server.send("* Au revoir, Alice.\n")
    server.close()
    finish(robot)


def test_un_tube_interrompu_jette_ce_qui_n_est_pas_parti(fake_server):
    """Sinon le système l'enverrait encore longtemps après la fin du client."""
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    os.set_blocking(robot.stdin.fileno(), False)
    while select.select([], [robot.stdin], [], 2)[1]:  # jusqu'à ce que plus rien ne parte
        with contextlib.suppress(BlockingIOError):
            os.write(robot.stdin.fileno(), b"x" * 999 + b"\n")
    robot.send_signal(signal.SIGINT)
    assert finish(robot)[0] == 1
    with pytest.raises(ConnectionResetError):
        while peer.line():
            pass
    peer.close()


def test_main_rend_les_signaux_et_l_horloge_a_qui_l_appelle():
    needs("des signaux d'un programme à l'autre")
    program = (
        "import signal, client_exo\n"
        "numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGALRM)\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "assert client_exo.main() == 1\n"
        "assert before == [signal.getsignal(number) for number in numbers]\n"
        "assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)\n"
    )
    assert run_client(command=["-c", program]).stderr.decode() == "Aucun nom donné.\n"


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
    before = peak_kilobytes(robot)
    peer.send("é" * 500_000)
    assert robot.stdout.readline().decode() == "é" * (128 * 1024) + "…\n"
    for _ in range(100):
        peer.send("é" * 500_000)
    peer.send("\nsuite\n")
    assert robot.stdout.readline() == b"suite\n"
    assert peak_kilobytes(robot) - before < 10_000
    peer.close()
    assert finish(robot) == (1, f"{LOST}\n")


def test_un_serveur_qui_ferme_avant_l_accueil_est_une_perte(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    fake_server.accept().close()
    assert finish(robot) == (1, f"{LOST}\n")


def test_une_reponse_venue_avant_le_nom_n_est_pas_perdue(fake_server):
    """Un serveur complet répond et ferme dès la connexion ; ici, le client tarde à donner son nom."""
    needs("/proc")
    program = (
        "import sys, client_exo as c\n"
        "join = c.join\n"
        "c.join = lambda *rest: (sys.stdin.readline(), join(*rest))[1]\n"
        "sys.exit(c.main())"
    )
    robot = subprocess.Popen(
        [sys.executable, "-c", program, "--port", fake_server.port, "--nom", "Alice"], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    peer = fake_server.accept()
    peer.send("* Bienvenue, Alice !\n")
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    wait_in_recv(robot)
    robot.stdin.write(b"\n")
    robot.stdin.close()
    assert [peer.line(), peer.line(), peer.line()] == ["Alice", "", "exit"]
    peer.send("* Au revoir, Alice.\n")
    peer.close()
    assert finish(robot) == (0, "")


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


def test_une_erreur_qui_suit_l_accueil_n_est_pas_un_refus(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.accept()
    assert peer.line() == "Alice"
    peer.send("* Bienvenue, Alice !\n! Trop tard.\n")
    robot.stdin.write(b"un\n")
    robot.stdin.close()
    assert peer.line() == "un"
    peer.close()
    finish(robot)


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
def test_chaque_facon_de_partir_renvoie_0_et_le_terminal(start_server, terminal, keys):
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
def test_partir_avant_de_donner_un_nom_renvoie_0(terminal, keys):
    alice = terminal("--port", "1")
    alice.wait_for("Entrez votre nom : ")
    alice.insist(lambda: alice.type(keys), PARTED)
    assert alice.end() == 0
    assert alice.rows()[-1] == PARTED


def test_ctrl_c_pendant_la_connexion_quitte_sans_traceback(terminal):
    patch = """
def wait_for_ever(address, timeout):
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
    quick = "c.GOODBYE_SECONDS = 0.2"
    alice = terminal("--port", fake_server.port, "--nom", "Alice", patch=quick)
    peer = fake_server.admit()
    alice.wait_for(PROMPT)
    alice.type("exit\r")
    assert [peer.line(), peer.line()] == ["", "exit"]
    alice.wait_for(PARTED)
    assert alice.end() == 0
    peer.close()


def test_un_ctrl_c_qu_input_efface_finit_quand_meme_le_client(start_server, terminal):
    """input() efface une exception levée pendant qu'il vide la sortie : ici, à coup sûr."""
    before = (
        "import builtins\n"
        "read = builtins.input\n"
        "def read_twice(*prompt):\n"
        "    try:\n"
        "        return read(*prompt)\n"
        "    except KeyboardInterrupt:\n"
        "        return read(*prompt)\n"
        "builtins.input = read_twice"
    )
    alice = terminal("--port", str(start_server().port), "--nom", "Alice", before=before)
    alice.wait_for(PROMPT)
    alice.type("\x03")
    alice.wait_for(PARTED)
    assert alice.end() == 0


@pytest.mark.parametrize(
    "numbers", [("SIGTERM", "SIGCONT"), ("SIGINT", "SIGTERM"), ("SIGINT", "SIGALRM")]
)
def test_deux_signaux_ensemble_ont_l_effet_de_chacun(conversation, numbers):
    alice, server = conversation()
    alice.type("à moitié")
    alice.wait_for("à moitié")
    send_together(alice.process, *numbers)
    assert [server.line(), server.line()] == ["", "exit"]
    server.send("* Au revoir, Alice.\n")
    server.close()
    alice.wait_for(PARTED)
    assert alice.end() == 0
    assert "Traceback" not in alice.seen and "SystemError" not in alice.seen


def test_ctrl_c_a_l_instant_ou_le_serveur_est_perdu_quitte(conversation):
    alice, server = conversation()
    send_together(alice.process, "SIGINT", while_stopped=server.close)
    alice.wait_for(PARTED)
    assert alice.end() == 0


def send_together(process, *names: str, while_stopped=lambda: None) -> None:
    """Envoie plusieurs signaux à un programme, qui les reçoit tous au même instant."""
    state = proc(process) / "stat"
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state.read_text().split()[2] == "T", "le client ne s'arrête pas")
    while_stopped()
    for name in (*names, "SIGCONT"):
        process.send_signal(getattr(signal, name))


@pytest.fixture
def shell(terminal):
    """Renvoie une fonction qui lance un client depuis un shell, dans un terminal."""
    if not shutil.which("bash"):
        pytest.skip("demande bash")

    def start(*command: str):
        session = terminal(
            program="import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])",
            LC_ALL="C.UTF-8", PS1="(shell) ", HISTFILE="",
        )  # fmt: skip
        session.wait_for("(shell) ")
        session.type(" ".join([*command, "\r"]))
        return session

    return start


def test_ctrl_z_bg_fg_rend_le_texte_tape(fake_server, shell):
    alice = shell(sys.executable, "client_exo.py --nom Alice --port", fake_server.port)
    server = fake_server.admit()
    alice.wait_for(PROMPT)
    alice.type("abc")
    alice.wait_for(f"{PROMPT}abc")
    alice.type("\x1a")
    alice.wait_for("Stopped")
    alice.type("set -b\r")  # bash dit aussitôt qu'un programme s'arrête de nouveau
    for times in (2, 3):
        alice.type("bg\r")
        alice.wait_for("Stopped", times=times)
    alice.type("fg\r")
    alice.wait_for(f"{PROMPT}abc", times=2)
    alice.type("d\r")
    assert server.line() == "abcd"
    assert "Traceback" not in alice.seen
    server.close()
    alice.wait_for(LOST)


@pytest.mark.parametrize("commands", [["kill %1"], ["bg", "kill %1"]], ids=["kill", "bg_kill"])
def test_kill_finit_un_client_arrete_par_ctrl_z(start_server, shell, commands):
    server = start_server()
    bob = server.connect("Bob")
    alice = shell(sys.executable, "client_exo.py --nom Alice --port", str(server.port))
    alice.wait_for(PROMPT)
    assert bob.line() == "* Alice a rejoint le chat."
    alice.type("abc")
    alice.wait_for(f"{PROMPT}abc")
    alice.type("\x1a")
    alice.wait_for("Stopped")
    alice.type("set -b\r")  # bash dit aussitôt qu'un programme s'arrête de nouveau
    for number, word in enumerate(commands, 1):
        alice.wait_for("Stopped", times=number)
        alice.type(f"{word}\r")
    assert bob.line() == "* Alice a quitté le chat."
    alice.wait_for(PARTED)
    assert "Traceback" not in alice.seen


@pytest.mark.parametrize("is_input_over", [False, True], ids=["avant_la_fin", "apres"])
def test_une_sortie_que_personne_ne_lit_n_empeche_pas_de_finir(fake_server, is_input_over):
    """Le receveur est bloqué au milieu d'une écriture, et le restera."""
    needs("des signaux d'un programme à l'autre")
    import fcntl
    import termios

    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    server = fake_server.admit()
    server.send("Bob : Salut\n" * 20_000)  # plus qu'un tube ne contient
    count = bytearray(4)

    def is_full() -> bool:
        fcntl.ioctl(robot.stdout, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder) > 60_000

    wait_until(is_full, "le tube n'est pas plein")
    if is_input_over:
        robot.stdin.close()
        assert [server.line(), server.line()] == ["", "exit"]
    robot.terminate()
    assert robot.wait(PATIENCE) == 1
    server.close()
    finish(robot)


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
    port = str(start_server().port)
    alice = terminal("--port", port, "--nom", "a b", width=150, patch="c.REFUSAL_SECONDS = 0.2")
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
    assert bob.line() == "Alice : ab\ufffdc"
    alice.type("exit\r")
    assert alice.end() == 0


# --- Au terminal : recevoir pendant que l'on tape ------------------------------------


@pytest.fixture
def conversation(fake_server, terminal):
    """Renvoie une fonction qui lance Alice, admise ; elle renvoie son terminal et le serveur."""
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
    while alice.grid().column != len(PROMPT) + column:
        alice.read_more()
    server.send("Bob : Ça va ?\n")
    alice.wait_for_rows("* Bienvenue, Alice !", "Bob : Ça va ?", f"{PROMPT}{row}")
    assert alice.grid().column == len(PROMPT) + column
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
    [
        ("/l\t\r", "/liste "),
        ("/pr\t Bob\r", "/privé  Bob"),
        ("/privé B\t\r", "/privé B\t"),
        ("a /l\t\r", "a /l\t"),
        ("Léa\t15\t1\r", "Léa\t15\t1"),
        ("\t15\r", "\t15"),
        ("/zut\t\r", "/zut\t"),
    ],
)
def test_tab_complete_une_commande_et_reste_sinon_une_tabulation(conversation, keys, sent):
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


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"PYTHONUNBUFFERED": "1"}, {}], ids=["dumb", "python_u", "codes"]
)
@pytest.mark.parametrize("has_readline", [True, False], ids=["readline", "sans_readline"])
def test_une_ligne_recue_avant_que_l_invite_soit_ecrite_ne_la_double_pas(
    conversation, environment, has_readline
):
    before = (
        "import builtins, time\n"
        "read = builtins.input\n"
        "def read_late(*prompt):\n"
        "    print('(prêt)', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.5)\n"  # la ligne arrive pendant ce temps
        "    return read(*prompt)\n"
        "builtins.input = read_late\n"
    )
    if not has_readline:
        before += "sys.modules['readline'] = None\n"
    alice, server = conversation(before=before, **environment)
    server.send("Bob : Salut\n")
    alice.wait_for("Bob : Salut")
    alice.type("abc\r")
    assert server.line() == "abc"
    alice.wait_for(PROMPT, times=2)
    assert "Bob : Salut" in alice.rows()
    assert not [row for row in alice.rows() if row.count("message") > 1]


def test_sans_readline_une_ligne_arrive_au_dessus_aussi(conversation):
    alice, server = conversation(before="sys.modules['readline'] = None")
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("Bob : un\n")
    alice.wait_for_rows("Bob : un", f"{PROMPT}abc")
    alice.type("d\n")
    assert server.line() == "abcd"


# --- Ce qui diffère ailleurs ---------------------------------------------------------


def test_sans_pthread_kill_une_perte_finit_le_client_quand_meme(fake_server, terminal):
    """Windows : rien n'y interrompt une lecture du clavier."""
    alice = terminal("--port", fake_server.port, "--nom", "Alice", patch="del c.signal.setitimer")
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
            return asked.append if name == "parse_and_bind" else lambda *_: 0

    monkeypatch.setattr(client_exo, "readline", Libedit())
    monkeypatch.setattr(client_exo.sys.stdin, "isatty", lambda: True, raising=False)
    with contextlib.ExitStack() as settings:
        client_exo.set_up_readline(client_exo.Terminal(True, True), settings)
    assert asked == ["bind ^I rl_complete"]


def test_deux_threads_suffisent(start_server, terminal):
    alice = terminal("--port", str(start_server().port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    assert len(list((proc(alice.process) / "task").iterdir())) == 2


# --- Ce que l'on tape se relit en entier ---------------------------------------------


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"PYTHONUNBUFFERED": "1"}])
def test_une_longue_ligne_se_relit_aussi_sur_un_affichage_simple(conversation, environment):
    alice, server = conversation(**environment)
    text = "un message plus long que la rangée, " * 3 + "fin"
    alice.type(f"{text}\r")
    assert server.line() == text
    alice.wait_for(f"{PROMPT}{text}")


def test_des_cellules_de_tableur_collees_se_relisent_en_entier(conversation):
    alice, server = conversation()
    text = "12\t" * 10 + "fin"  # des tabulations : peu de caractères, beaucoup de cases
    alice.type(f"{text}\r")
    assert server.line() == text
    alice.wait_for(f"{PROMPT}{text}".expandtabs())


@pytest.mark.parametrize("missing", [2, 1, 0])
def test_une_ligne_qui_remplit_la_rangee_a_peu_pres_se_relit_aussi(conversation, missing):
    alice, server = conversation()
    text = "x" * (alice.width - len(PROMPT) - missing - 3) + "fin"
    alice.type(f"{text}\r")
    assert server.line() == text
    alice.wait_for(PROMPT, times=3)
    assert f"{PROMPT}{text}" in "".join(alice.rows())


def test_une_longue_ligne_se_relit_en_entier_apres_entree(conversation):
    alice, server = conversation(patch="c.RECENT_SECONDS = 0")  # on tape aussitôt après l'accueil
    text = "un message écrit pour déborder d'une rangée sur un écran étroit, mot à mot ou non."
    alice.type(f"{text}\r")
    assert server.line() == text
    alice.wait_for(PROMPT, times=3)
    shown = "".join(row.ljust(alice.width) for row in alice.rows())
    assert f"{PROMPT}{text}" in shown
    assert [row for row in alice.rows() if row.startswith(("<", PROMPT.rstrip()))] == [
        f"{PROMPT}{text}"[: alice.width].rstrip(), PROMPT.rstrip(),
    ]  # fmt: skip


def test_une_longue_ligne_ne_cache_aucune_ligne_recue(conversation):
    """Cinquante lignes par seconde arrivent pendant que l'on tape."""
    alice, server = conversation(height=60)
    stop, sent = threading.Event(), []

    def pour() -> None:
        while not stop.wait(0.02) and len(sent) < 40:
            sent.append(f"Bob : {len(sent)}")
            server.send(f"{sent[-1]}\n")

    thread = threading.Thread(target=pour)
    thread.start()
    text = "x" * 70
    for number in range(3):
        alice.wait_for(PROMPT, times=1 + number)
        alice.type(f"{text}{number}\r")
        assert server.line() == f"{text}{number}"
    stop.set()
    thread.join()
    server.send("* fin\n")
    alice.wait_for("* fin")
    shown = alice.rows()
    for line in sent:
        assert line in shown
    for number in range(3):
        assert f"{PROMPT}{text}{number}" in "".join(row.ljust(alice.width) for row in shown)


def test_apres_ctrl_z_et_fg_l_invite_et_le_texte_reviennent(conversation):
    alice, server = conversation()
    for times in (1, 2):
        alice.type("abc")
        alice.wait_for_rows(f"{PROMPT}{'abc' * times}")
        alice.read += b"\r\nfg\r\n"  # ce que le shell écrirait
        for _ in range(PATIENCE):  # un signal reçu juste avant l'attente ne se voit qu'au suivant
            alice.process.send_signal(signal.SIGSTOP)
            while (proc(alice.process) / "stat").read_text().split()[2] != "T":
                pass
            alice.process.send_signal(signal.SIGCONT)
            if select.select([alice.master], [], [], 1)[0]:
                break
        alice.wait_for_rows("fg", f"{PROMPT}{'abc' * times}")
    alice.type("d\r")
    assert server.line() == "abcabcd"


@pytest.mark.parametrize(
    ("line", "width", "rows"),
    [
        ("abcdef", 4, ["abc", "def"]),
        ("un deux trois", 10, ["un deux ", "trois"]),
        ("e\u0301" * 4, 4, ["e\u0301" * 3, "e\u0301"]),
        ("🇫🇷🇫🇷", 4, ["🇫🇷", "🇫🇷"]),
        ("👍🏽a", 4, ["👍🏽", "a"]),
        ("", 4, [""]),
        ("日本語", 6, ["日本", "語"]),
        ("un deuxtrois", 10, ["un ", "deuxtrois"]),
        ("un  deuxtroi  x", 10, ["un  ", "deuxtroi ", " x"]),
        ("un deuxtroisx", 10, ["un deuxtr", "oisx"]),
    ],
)
def test_une_rangee_est_coupee_entre_deux_caracteres_ou_a_un_blanc(line, width, rows):
    assert client_exo.wrap(line, width) == rows


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"\x01" * 300_000, "\ufffd" * 262_144 + "…"),
        ("é".encode() * 200_000, "é" * 131_072 + "…"),
        (b"a" + "é".encode() * 200_000, "a" + "é" * 131_071 + "\ufffd…"),
        (b"\x80" * 300_000, "\ufffd" * 262_144 + "…"),
    ],
)
def test_une_ligne_trop_longue_du_serveur_est_coupee_et_non_videe(line, text):
    assert client_exo.readable(line[: client_exo.MAX_SERVER_LINE_BYTES + 1000]) == text


# --- Fenêtres, tubes gardés ouverts, sessions qui continuent ----------------------------

WINDOW = """
import builtins, contextlib, os, signal, sys, threading
sys.path.insert(0, {root!r})
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
    if line == "^C\\n":
        raise KeyboardInterrupt
    if not line:
        raise EOFError
    return line[:-1]
builtins.input = typed
sys.argv = ["client_exo.py", *{options!r}]
import client_exo
if {in_idle}:  # une machine lente ne doit pas changer ce que l'on voit
    client_exo.CATCH_UP_SECONDS, client_exo.RECENT_SECONDS = 2, 60
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


@pytest.mark.parametrize("environment", [{}, {"TERM": ""}, {"PYTHONUNBUFFERED": "1"}])
def test_dans_une_fenetre_on_parle_on_recoit_on_part_deux_fois(start_server, environment):
    server = start_server()
    bob = server.connect("Bob")
    window = Window("--port", str(server.port), times=2, **environment)
    for _ in range(2):
        window.wait_for("Entrez votre nom : ")
        window.type("a b\n")
        window.wait_for("! Nom refusé")
        window.wait_for("Entrez votre nom : ")
        window.type("Alice\n")
        window.wait_for("* Bienvenue, Alice !")
        window.wait_for(PROMPT)
        assert bob.line() == "* Alice a rejoint le chat."
        bob.send("Salut\n")
        window.wait_for("\nBob : Salut\n" + PROMPT)
        window.type("Bonjour\n")
        assert bob.line() == "Alice : Bonjour"
        window.wait_for(PROMPT)
        window.type("exit\n")
        window.wait_for("* Au revoir, Alice.\n" + PARTED + "\nmain renvoie 0\n")
        assert bob.line() == "* Alice a quitté le chat."
    window.end()


@pytest.mark.parametrize("keys", ["^C\n", "exit\n"])
def test_dans_une_fenetre_on_peut_partir_au_lieu_de_donner_un_nom(keys):
    window = Window("--port", "1")
    window.wait_for("Entrez votre nom : ")
    window.type(keys)
    window.wait_for(PARTED + "\nmain renvoie 0\n")
    window.end()


def test_dans_une_fenetre_la_perte_du_serveur_se_voit_et_attend_entree(fake_server):
    window = Window("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    window.wait_for(PROMPT)
    peer.close()
    window.wait_for(f"\n{LOST} Appuyez sur Entrée.\n")
    window.type("\n")
    window.wait_for("main renvoie 1\n")
    window.end()


def test_une_seule_touche_entree_montre_tout_ce_qu_idle_retenait(fake_server):
    window = Window("--port", fake_server.port, "--nom", "Alice", in_idle=True)
    peer = fake_server.admit()
    window.wait_for(PROMPT)
    peer.send("".join(f"Bob : {number}\n" for number in range(4)))
    peer.close()
    window.wait_for("(attend)")
    window.type("\n")
    window.wait_for(f"\nBob : 0\nBob : 1\nBob : 2\nBob : 3\n{PROMPT}\n{LOST}")
    window.wait_for("main renvoie 1\n")
    window.end()


def test_dans_une_fenetre_la_reponse_vient_avant_l_invite_suivante(start_server):
    window = Window("--port", str(start_server().port), "--nom", "Alice", in_idle=True)
    window.wait_for(PROMPT)
    window.type("/liste\n")
    window.wait_for(f"* Connectés (1) : Alice\n{PROMPT}")
    window.type("exit\n")
    window.wait_for("main renvoie 0\n")
    window.end()


def test_trois_tubes_gardes_ouverts_sont_une_personne(start_server):
    """L'onglet Run de PyCharm : pas de terminal, mais quelqu'un y tape."""
    server = start_server()
    bob = server.connect("Bob")
    environment = {**os.environ, "PYCHARM_HOSTED": "1", "PYTHONUNBUFFERED": "1"}
    robot = start_client("--port", str(server.port), env=environment)

    def type_after(prompt: str, text: str) -> None:
        seen = b""
        while not seen.endswith(prompt.encode()):
            seen += (char := os.read(robot.stdout.fileno(), 1))
            assert char, seen
        robot.stdin.write(f"{text}\n".encode())
        robot.stdin.flush()

    type_after("Entrez votre nom : ", "Alice")
    type_after(PROMPT, "Bonjour")
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "Alice : Bonjour"
    type_after(PROMPT, "exit")
    assert finish(robot)[0] == 0


@pytest.mark.parametrize("options", [[], ["--nom", "exit"]], ids=["tapé", "option"])
def test_exit_au_lieu_du_nom_quitte_sans_se_connecter(options):
    result = run_client("--port", "1", *options, text="exit\n")
    assert (result.returncode, result.stderr) == (0, b"")
    assert (PARTED in result.stdout.decode()) == (not options)


def test_une_marque_d_ordre_des_octets_au_debut_de_l_entree_est_otee(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    robot.stdin.write("\ufeffBonjour\n".encode())
    robot.stdin.close()
    assert peer.line() == "Bonjour"
    peer.close()
    finish(robot)


def test_avec_tee_les_invites_restent_sur_le_terminal(fake_server, terminal):
    reading, writing = os.pipe()
    before = f"import os; sys.stdout = open({writing}, 'w', encoding='utf-8')"
    alice = terminal("--port", fake_server.port, "--nom", "Alice", before=before, pass_fds=[writing])
    os.close(writing)
    peer = fake_server.admit()
    alice.wait_for(PROMPT)
    with open(reading, encoding="utf-8") as copy:
        assert copy.readline() == "* Bienvenue, Alice !\n"
        alice.type("Bonjour\r")
        assert peer.line() == "Bonjour"
        peer.send("Bob : Salut\n")
        assert copy.readline() == "Bob : Salut\n"
        alice.type("Fin\r")
        assert peer.line() == "Fin"
        alice.wait_for(PROMPT, times=3)
        # Aucune invite ne suit la ligne reçue : elle arriverait avant elle, qui passe par tee.
        assert alice.seen.count(PROMPT) == 3
        peer.close()
        alice.end()
        assert copy.read() == ""


SESSION = """
import readline, signal, sys
sys.ps1 = ">>> "
readline.add_history("avant")
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
import client_exo
for _ in range(2):
    print("main renvoie", client_exo.main(), flush=True)
length = readline.get_current_history_length()
assert [readline.get_history_item(n + 1) for n in range(length)] == ["avant"], length
assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
print("intact", flush=True)
"""


def test_une_session_qui_continue_retrouve_son_historique_et_ses_signaux(start_server, terminal):
    alice = terminal("--port", str(start_server().port), "--nom", "Alice", program=SESSION)
    for times in (1, 2):
        alice.wait_for(PROMPT, times=2 * times - 1)
        alice.type("Bonjour\r")
        alice.wait_for(PROMPT, times=2 * times)
        alice.type("exit\r")
        alice.wait_for("main renvoie 0", times=times)
    alice.wait_for("intact")
    assert alice.end() == 0


# --- Le réseau -----------------------------------------------------------------------


NO_NAME_SERVER = """
def getaddrinfo(*_, **__):
    print("(cherche)", flush=True)
    while True:  # du code en C : aucune exception ne l'interrompt
        try:
            c.threading.Event().wait()
        except KeyboardInterrupt:
            pass
c.socket.getaddrinfo = getaddrinfo
"""


def test_sans_serveur_de_noms_le_client_le_dit(terminal):
    patch = f"{NO_NAME_SERVER}\nc.CONNECT_SECONDS = 0.5"
    alice = terminal("--nom", "Alice", "--hote", "chat.example", patch=patch, width=200)
    alice.wait_for("Connexion impossible à chat.example:12345 : ce nom n'a pas pu être cherché.")
    assert alice.end() == 1


def test_ctrl_c_est_vu_pendant_que_l_on_cherche_un_nom(terminal):
    patch = f"{NO_NAME_SERVER}\nc.CONNECT_SECONDS = {10 * PATIENCE}"
    alice = terminal("--nom", "Alice", "--hote", "chat.example", patch=patch)
    alice.wait_for("(cherche)")
    alice.type("\x03")
    alice.wait_for(PARTED)
    assert alice.end() == 0


@pytest.fixture
def black_hole():
    """Renvoie un port qui ne répond pas, comme le fait Linux quand sa file d'attente est pleine."""
    needs("/proc")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_un_pare_feu_qui_ne_repond_pas_est_nomme(black_hole):
    quick = client_command("c.CONNECT_SECONDS = 0.5")
    result = run_client("--nom", "A", "--port", str(black_hole), command=quick)
    assert result.returncode == 1
    assert result.stderr.decode().startswith(
        f"Connexion impossible à 127.0.0.1:{black_hole} : pas de réponse. Le serveur est-il lancé ?"
    )


def test_une_adresse_qui_ne_repond_pas_laisse_du_temps_a_la_suivante(black_hole, fake_server):
    ports = [black_hole, black_hole, int(fake_server.port)]
    patch = (
        "tcp = c.socket.AF_INET, c.socket.SOCK_STREAM, 0, ''\n"
        f"found = [(*tcp, ('127.0.0.1', p)) for p in {ports}]\n"
        "c.socket.getaddrinfo = lambda *_, **__: found\n"
        "c.CONNECT_SECONDS = 6\n"
    )
    robot = start_client("--hote", "deux", "--nom", "Alice", command=client_command(patch))
    fake_server.admit().close()
    finish(robot)


def test_la_limite_de_la_connexion_ne_vaut_pas_pour_la_suite(fake_server):
    """create_connection laisse au socket sa limite : elle couperait un salon silencieux."""
    patch = (
        "connect = c.socket.create_connection\n"
        "def limited(*rest):\n"
        "    sock = connect(*rest)\n"
        "    sock.settimeout(0.2)\n"
        "    return sock\n"
        "c.socket.create_connection = limited\n"
    )
    options = "--port", fake_server.port, "--nom", "Alice"
    robot = start_client(*options, command=client_command(patch))
    peer = fake_server.admit()
    time.sleep(1)  # plus long que la limite : c'est ce silence que l'on essaie
    peer.send("* fin\n")
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    assert robot.stdout.readline() == b"* fin\n"
    peer.close()
    finish(robot)


def test_un_serveur_qui_prend_son_temps_n_est_pas_perdu(fake_server):
    """Il ne lit plus pendant plus longtemps que la limite, ici raccourcie."""
    quick = "c.protocol.SOCKET_OPTIONS |= {'TCP_USER_TIMEOUT': 300}"
    options = "--port", fake_server.port, "--nom", "Alice"
    robot = start_client(*options, command=client_command(quick))
    peer = fake_server.admit()
    lines = (b"x" * 999 + b"\n") * 8000  # plus que le système n'en garde
    thread = threading.Thread(target=lambda: (robot.stdin.write(lines), robot.stdin.close()))
    thread.start()
    assert peer.line() == "x" * 999
    time.sleep(3)  # plus long que la limite : c'est cette attente que l'on essaie
    assert peer.lines_until("") == ["x" * 999] * 7999
    assert peer.line() == "exit"
    thread.join()
    peer.send("* Au revoir, Alice.\n")
    peer.close()
    assert finish(robot) == (0, "")


@pytest.fixture
def cable():
    """Renvoie deux programmes, qui entrent chacun dans un réseau, et de quoi débrancher le câble."""
    ours, theirs = (f"chat{os.getpid()}{side}" for side in "ab")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def enter(network: str) -> str:
        path = f"/run/netns/{network}"
        return f"import ctypes, os; assert not ctypes.CDLL(None).setns(os.open({path!r}, 0), 0)"

    try:
        ip("netns", "add", ours)
        ip("netns", "add", theirs)
        ip("-n", ours, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", theirs)
        for network, address in ((ours, "192.0.2.1/24"), (theirs, "192.0.2.2/24")):
            ip("-n", network, "address", "add", address, "dev", "cable")
            ip("-n", network, "link", "set", "cable", "up")
        yield enter(ours), enter(theirs), lambda: ip("-n", ours, "link", "set", "cable", "down")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("demande de créer un réseau (ip netns)")
    finally:
        for network in (ours, theirs):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", network], capture_output=True)


@pytest.mark.parametrize("in_pipe", [False, True], ids=["terminal", "tube"])
@pytest.mark.parametrize("typed", ["Tu es là ?\n", ""], ids=["une_ligne_part", "silence"])
def test_un_cable_debranche_se_voit(start_server, terminal, cable, typed, in_pipe):
    """Les délais sont plus courts que les vrais : 120 s pour une ligne, 120 s de silence."""
    ours, theirs, unplug = cable
    server = start_server("--hote", "192.0.2.1", patch=ours)
    quick = "{'TCP_KEEPIDLE': 1, 'TCP_KEEPINTVL': 1, 'TCP_KEEPCNT': 2, 'TCP_USER_TIMEOUT': 2000}"
    if typed:
        quick = "{'TCP_USER_TIMEOUT': 1000}"
    quick = f"c.protocol.SOCKET_OPTIONS |= {quick}"
    address = ("--hote", "192.0.2.1", "--port", str(server.port), "--nom", "Alice")
    if in_pipe:
        alice = start_client(*address, command=client_command(f"{theirs}\n{quick}"))
        assert alice.stdout.readline().startswith(b"* Bienvenue")
        unplug()
        alice.stdin.write(typed.encode())
        alice.stdin.flush()
        assert finish(alice) == (1, f"{LOST}\n")
    else:
        alice = terminal(*address, before=theirs, patch=quick)
        alice.wait_for(PROMPT)
        unplug()
        alice.type(typed.replace("\n", "\r"))
        alice.wait_for(LOST)
        assert alice.end() == 1
