"""Le client, lancé comme on le lance : dans un pseudo-terminal, dans un tube."""

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    IS_WINDOWS, PATIENCE, ROOT, UNIX_LINES, Peer, needs, peak_kilobytes, proc, wait_until,
)  # fmt: skip
from fenetre import Window

LOST = "Connexion au serveur perdue."
PARTED = "Vous avez quitté le chat."
INTERRUPTED = "Interrompu : une partie de l'envoi est peut-être perdue.\n"
PROMPT = "Votre message : "
WELCOME = "* Bienvenue, Robot ! (/aide : les commandes)"
FAREWELL = "* Au revoir, Robot."


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


def client_command(*options: str, patch: str = "") -> list[str]:
    """Renvoie ce qui lance le client, dont `patch` change d'abord les limites (module `c`)."""
    ours = UNIX_LINES if IS_WINDOWS else ""
    program = f"import os, sys, client_exo as c\n{ours}\n{patch}\nos._exit(c.main())"
    how = ["-c", program] if patch or IS_WINDOWS else ["client_exo.py"]
    return [sys.executable, "-W", "error", *how, *options]


def run_client(*options: str, text: str = "", patch: str = "", **more):
    return subprocess.run(
        client_command(*options, patch=patch),
        cwd=ROOT, input=text.encode(), capture_output=True, timeout=PATIENCE, **more,
    )  # fmt: skip


def start_client(*options: str, patch: str = "", **more) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(client_command(*options, patch=patch), cwd=ROOT, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Renvoie le code de sortie et ce qui restait sur stderr ; ferme les tubes."""
    code = process.wait(PATIENCE)
    errors = process.stderr.read().decode() if process.stderr else ""
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


def test_un_tube_attend_que_le_serveur_ait_tout_pris(start_server):
    """Vingt lignes par seconde : c'est bien plus long que la limite d'un au revoir au terminal."""
    port = str(start_server(patch="s.BURST_LINES = 5").port)
    quick = "c.GOODBYE_SECONDS = 0.1"
    result = run_client("--port", port, "--nom", "Robot", text="ligne\n" * 20 + "fin", patch=quick)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == [WELCOME, FAREWELL]


@pytest.mark.parametrize(
    ("name", "text", "sent", "shown"),
    [
        (["--nom", "Robot"], "Bonjour", ["Robot : Bonjour"], [WELCOME, FAREWELL]),
        (["--nom", "Robot"], "Bonjour\nexit\nperdu\n", ["Robot : Bonjour"], [WELCOME, FAREWELL]),
        (["--nom", "Robot"], "exit\nperdu\n", [], [WELCOME, FAREWELL]),
        (["--nom", "Robot"], "\ufeffBonjour\n", ["Robot : Bonjour"], [WELCOME, FAREWELL]),
        (
            [], "Robot\nBonjour\nexit\nperdu\n", ["Robot : Bonjour"],
            ["Entrez votre nom : ", WELCOME, "", FAREWELL, PARTED],
        ),
    ],
    ids=["sans_exit", "exit", "exit_seul", "marque_d_ordre_des_octets", "nom_en_premier"],
)  # fmt: skip
def test_un_tube_dit_son_entree_jusqu_a_exit_et_montre_ce_qui_arrive(lobby, name, text, sent, shown):
    alice = lobby.connect("Alice")
    result = run_client("--port", str(lobby.port), *name, text=text)
    assert (result.returncode, result.stderr) == (0, b"")
    assert alice.line() == "* Robot a rejoint le chat."
    assert alice.lines_until("* Robot a quitté le chat.") == sent
    assert result.stdout.decode().replace(PROMPT, "").splitlines() == shown


@pytest.mark.parametrize("is_admitted", [False, True], ids=["avant_l_accueil", "apres"])
def test_dans_un_tube_un_serveur_perdu_avant_l_au_revoir_renvoie_1(fake_server, is_admitted):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    robot.stdin.write(b"ligne\n" * 300)
    robot.stdin.close()
    peer = fake_server.admit() if is_admitted else fake_server.accept()
    assert not is_admitted or peer.line() == "ligne"
    peer.close()
    assert finish(robot) == (1, f"{LOST}\n")


@pytest.mark.parametrize(
    ("options", "text", "end"),
    [
        ([], "", (1, "Aucun nom donné.\n")),
        ([], "\n \n", (1, "Aucun nom donné.\n")),
        ([], "exit\n", (0, "")),
        (["--nom", "exit"], "", (0, "")),
    ],
)
def test_un_tube_sans_nom_ne_se_connecte_pas(options, text, end):
    result = run_client("--port", "1", *options, text=text)
    assert (result.returncode, result.stderr.decode()) == end
    assert (PARTED in result.stdout.decode()) == (text == "exit\n")


@pytest.mark.parametrize("name", ["a b", "Bob\nsalut"], ids=["espace", "deux_lignes"])
def test_un_nom_refuse_dans_un_tube_renvoie_1_et_rien_n_est_dit(lobby, name):
    alice = lobby.connect("Alice")
    result = run_client("--port", str(lobby.port), "--nom", name)
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.startswith(b"! ")
    assert alice.barrier() == "* Connectés (1) : Alice"


# Le thread principal attend la fin de chaque autre : tout ce qui arrive est lu avant son envoi.
LATE_NAME = """
import threading
start = threading.Thread.start
threading.Thread.start = lambda thread: (start(thread), thread.join())
"""


@pytest.mark.parametrize("patch", ["", LATE_NAME], ids=["nom_envoyé", "réponse_avant_le_nom"])
def test_un_serveur_complet_renvoie_1_avec_sa_raison(start_server, patch):
    if patch:
        needs("SIGALRM")  # ailleurs, le receveur n'attend le thread principal qu'un moment
    server = start_server("--max-clients", "1")
    server.connect("Alice")
    result = run_client("--port", str(server.port), "--nom", "Bob", patch=patch)
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.decode() == "! Le serveur est complet, réessayez plus tard.\n"


@pytest.mark.parametrize("option", [["--port", "70000"], ["--hote", ""], ["--nom"], ["-x"]])
def test_une_mauvaise_option_renvoie_2_et_une_seule_ligne(option):
    result = run_client(*option)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)


DISK_FULL = "Impossible d'afficher la suite : disque plein.\n"


@pytest.mark.parametrize(
    ("full", "unbuffered", "end"),
    [
        ([], "", (0, "")),
        (["stdout"], "", (1, DISK_FULL)),
        (["stdout"], "1", (1, DISK_FULL)),
        (["stdout", "stderr"], "", (1, "")),
    ],
    ids=["tube_fermé", "disque_plein", "disque_plein_sans_tampon", "disque_plein_et_stderr"],
)
def test_une_sortie_perdue_n_empeche_pas_l_entree_de_partir(lobby, full, unbuffered, end):
    bob = lobby.connect("Bob")
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with contextlib.ExitStack() as stack:
        if full:
            needs("/dev/full")
            full = dict.fromkeys(full, stack.enter_context(open("/dev/full", "wb")))
        robot = start_client("--nom", "R", "--port", str(lobby.port), env=env, **dict(full))
    if not full:
        assert robot.stdout.readline().startswith(b"* Bienvenue, R !")
        robot.stdout.close()
    assert bob.line() == "* R a rejoint le chat."
    bob.send("Salut\n")
    robot.stdin.write(b"un\n")
    robot.stdin.flush()
    assert bob.line() == "R : un"
    bob.send("Encore\n")
    robot.stdin.write(b"deux\ntrois")
    robot.stdin.close()
    assert bob.lines_until("* R a quitté le chat.") == ["R : deux", "R : trois"]
    assert finish(robot) == end


@pytest.mark.parametrize("is_input_over", [False, True], ids=["avant_la_fin", "apres"])
def test_une_sortie_que_personne_ne_lit_n_empeche_pas_de_finir(fake_server, is_input_over):
    """Le receveur est bloqué au milieu d'une écriture, et le restera."""
    needs("des signaux d'un programme à l'autre")
    import fcntl
    import termios

    quick = "c.GOODBYE_SECONDS = 0.2"
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=quick)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "kill"])
def test_un_tube_interrompu_renvoie_1_et_le_dit(fake_server, number):
    needs("des signaux d'un programme à l'autre")
    quick = "c.GOODBYE_SECONDS = 0.2"
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=quick)
    peer = fake_server.admit()
    robot.stdin.write(b"un\n")
    robot.stdin.flush()
    assert peer.line() == "un"
    robot.send_signal(number)
    assert finish(robot) == (1, INTERRUPTED)
    assert [peer.line(), peer.line()] == ["", "exit"]
    peer.close()


def test_un_tube_interrompu_pendant_l_au_revoir_finit_et_le_dit(fake_server):
    """Sous Windows aussi, où un test n'envoie pas de signal : le client se donne ce Ctrl+C,
    quand le test le lui dit par une autre connexion."""
    patch = (
        "import signal, socket, threading\n"
        "order = socket.create_connection(('127.0.0.1', int(sys.argv[2])))\n"
        "def obey():\n"
        "    order.recv(1)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "threading.Thread(target=obey, daemon=True).start()"
    )
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=patch)
    robot.stdin.close()
    order, peer = fake_server.accept(), fake_server.admit()
    assert [peer.line(), peer.line()] == ["", "exit"]
    order.send("!")
    assert finish(robot) == (1, INTERRUPTED)
    order.close()
    peer.close()


def test_un_tube_interrompu_avant_d_avoir_donne_un_nom_renvoie_0():
    needs("des signaux d'un programme à l'autre")
    robot = start_client("--port", "1")
    assert robot.stdout.read(len("Entrez votre nom : ")) == b"Entrez votre nom : "
    robot.send_signal(signal.SIGINT)
    assert robot.stdout.read().decode().strip() == PARTED
    assert finish(robot) == (0, "")


def test_un_tube_interrompu_jette_ce_qui_ne_peut_pas_partir(fake_server):
    """Le serveur ne lit plus ; sinon le système l'enverrait longtemps après la fin du client."""
    needs("des signaux d'un programme à l'autre")
    quick = "c.GOODBYE_SECONDS = 0.2"
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=quick)
    peer = fake_server.admit()
    os.set_blocking(robot.stdin.fileno(), False)
    # Une machine lente croirait trop tôt que plus rien ne part : le test serait moins sévère.
    while select.select([], [robot.stdin], [], 0.5)[1]:
        with contextlib.suppress(BlockingIOError):
            os.write(robot.stdin.fileno(), b"x" * 999 + b"\n")
    robot.send_signal(signal.SIGINT)
    assert finish(robot)[0] == 1
    with pytest.raises(ConnectionResetError):
        while peer.line():
            pass
    peer.close()


@pytest.mark.parametrize("closed", [0, 1, 2], ids=["entrée", "sortie", "erreurs"])
def test_un_flux_ferme_au_depart_ne_fait_pas_de_traceback(lobby, closed):
    needs("des fichiers dont un autre programme hérite")
    result = subprocess.run(
        [sys.executable, "client_exo.py", "--port", str(lobby.port), "--nom", "R"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(closed), timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("options", [["--help"], ["--port", "1", "--nom", "É"]])
def test_une_sortie_qui_ne_sait_pas_les_accents_recoit_des_points_d_interrogation(options):
    result = run_client(*options, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"Traceback" not in result.stderr
    assert b"?" in result.stdout + result.stderr and b"\\x" not in result.stdout + result.stderr


def test_un_message_accentue_dans_une_sortie_ascii_garde_sa_ligne(fake_server):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    robot = start_client("--port", fake_server.port, "--nom", "R", env=env)
    peer = fake_server.admit("R")
    peer.send("Alice : Noël\nAlice : fin\n")
    peer.close()
    assert robot.stdout.read() == b"* Bienvenue, R !\nAlice : No?l\nAlice : fin\n"
    assert finish(robot) == (1, f"{LOST}\n")


@pytest.mark.parametrize("named", [True, False], ids=["avec_nom", "sans_nom"])
def test_un_clavier_illisible_est_la_fin_de_l_entree(lobby, tmp_path, named):
    """nohup donne au programme une entrée que l'on ne peut pas lire."""
    port = str(lobby.port) if named else "1"
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
    server.close()
    finish(robot)


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


def test_une_ligne_trop_longue_est_coupee_et_la_memoire_reste_plate(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.admit()
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    for sent, shown in [
        (b"a" * 262_144, "a" * 262_144),
        (b"\x01" * 300_000, "\ufffd" * 262_144 + "…"),
        (b"\x80" * 300_000, "\ufffd" * 262_144 + "…"),
        ("é".encode() * 200_000, "é" * 131_072 + "…"),
        (b"a" + "é".encode() * 200_000, "a" + "é" * 131_071 + "\ufffd…"),
    ]:
        peer.send(sent + b"\n")
        assert robot.stdout.readline().decode() == f"{shown}\n"
    before = peak_kilobytes(robot)
    peer.send("é" * 500_000)
    assert robot.stdout.readline().decode() == "é" * 131_072 + "…\n"  # avant la fin de la ligne
    for _ in range(100):
        peer.send("é" * 500_000)
    peer.send("\nsuite\n")
    assert robot.stdout.readline() == b"suite\n"
    assert peak_kilobytes(robot) - before < 10_000
    peer.close()
    finish(robot)


def test_ni_des_lignes_coupees_ni_une_erreur_apres_l_accueil_ne_trompent_le_client(fake_server):
    robot = start_client("--port", fake_server.port, "--nom", "Alice")
    peer = fake_server.accept()
    assert peer.line() == "Alice"
    peer.send("* Bienvenue, Alice !\n! Trop tard.\nBob : un\n* Au rev")
    shown = [robot.stdout.readline().decode() for _ in range(3)]
    assert shown == ["* Bienvenue, Alice !\n", "! Trop tard.\n", "Bob : un\n"]
    robot.stdin.write(b"un\n")
    robot.stdin.close()
    assert [peer.line(), peer.line(), peer.line()] == ["un", "", "exit"]
    peer.send("oir, Alice.\n")
    peer.close()
    assert robot.stdout.read() == b"* Au revoir, Alice.\n"
    assert finish(robot) == (0, "")


# --- Au terminal : arriver et partir ---------------------------------------------------


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


def test_au_terminal_on_parle_on_recoit_et_on_part(lobby, terminal):
    bob = lobby.connect("Bob")
    alice = terminal("--port", str(lobby.port))
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
    ["exit\r", " EXIT \r", "/quitter\r", "/exit\r", "/quit\r", "\x04", "\x03", "à moitié\x03", ""],
    ids=["exit", "EXIT", "quitter", "slash_exit", "quit", "ctrl_d", "ctrl_c", "en_tapant", "kill"],
)
def test_chaque_facon_de_partir_renvoie_0_et_le_terminal(lobby, terminal, keys):
    bob = lobby.connect("Bob")
    alice = terminal("--port", str(lobby.port), "--nom", "Alice")
    alice.wait_for(PROMPT)
    if keys:
        alice.type(keys)
    else:
        alice.process.terminate()
    alice.wait_for(PARTED)
    assert alice.end() == 0
    assert alice.rows()[-1] == PARTED
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "* Alice a quitté le chat."


@pytest.mark.parametrize("keys", ["exit\r", "/quitter\r", "\x03", "\x04"])
def test_partir_avant_de_donner_un_nom_renvoie_0(terminal, keys):
    alice = terminal("--port", "1")
    alice.wait_for("Entrez votre nom : ")
    alice.type(keys)
    alice.wait_for(PARTED)
    assert alice.end() == 0
    assert alice.rows()[-1] == PARTED


@pytest.mark.parametrize(
    ("seconds", "keys"), [(0.2, ""), (10 * PATIENCE, "\x03")], ids=["attente", "ctrl_c"]
)
def test_un_serveur_muet_au_depart_n_est_attendu_qu_un_moment(conversation, seconds, keys):
    alice, server = conversation(patch=f"c.GOODBYE_SECONDS = {seconds}")
    alice.type("exit\r")
    assert [server.line(), server.line()] == ["", "exit"]
    alice.type(keys)
    alice.wait_for(PARTED)
    server.close()
    assert alice.end() == 0


def test_un_ctrl_c_qu_input_efface_finit_quand_meme_le_client(conversation):
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
    alice, server = conversation(before=before)
    alice.type("\x03")
    assert [server.line(), server.line()] == ["", "exit"]
    server.close()
    alice.wait_for(PARTED)
    assert alice.end() == 0


@pytest.mark.parametrize(
    "names", [("SIGTERM", "SIGCONT"), ("SIGINT", "SIGTERM"), ("SIGINT", "SIGALRM")]
)
def test_deux_signaux_ensemble_ont_l_effet_de_chacun(conversation, names):
    alice, server = conversation()
    alice.type("à moitié")
    alice.wait_for("à moitié")
    send_together(alice.process, *names)
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
    """Renvoie un shell dans un terminal ; bash y dit aussitôt qu'un programme s'arrête (set -b)."""
    needs("bash")
    alice = terminal(
        program="import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])",
        LC_ALL="C.UTF-8", PS1="(shell) ", HISTFILE="",
    )  # fmt: skip
    alice.wait_for("(shell) ")
    alice.type("set -b\r")
    alice.wait_for("(shell) ", times=2)
    return alice


def alice_command(port: str, end: str = "") -> str:
    """Renvoie ce que l'on tape pour lancer Alice, qui attend l'au revoir aussi longtemps qu'il faut."""
    patient = client_command("--nom", "Alice", "--port", port, patch="c.GOODBYE_SECONDS = 999")
    return f"{shlex.join(patient)}{end}\r"


@pytest.fixture
def stopped(fake_server, shell):
    """Renvoie un client lancé depuis un shell et arrêté par Ctrl+Z, « abc » tapé, et le serveur."""
    alice = shell
    alice.type(alice_command(fake_server.port))
    server = fake_server.admit()
    alice.wait_for(PROMPT)
    alice.type("abc")
    alice.wait_for(f"{PROMPT}abc")
    alice.type("\x1a")
    alice.wait_for("Stopped")
    yield alice, server
    server.close()


def test_apres_ctrl_z_l_invite_et_le_texte_reviennent_chaque_fois(stopped):
    alice, server = stopped
    for times in (2, 3):
        alice.type("bg\r")
        alice.wait_for("Stopped", times=times)
    alice.type("fg\r")
    alice.wait_for_rows(f"{PROMPT}abc")
    alice.type("d")
    alice.wait_for_rows(f"{PROMPT}abcd")
    alice.type("\x1a")
    alice.wait_for("Stopped", times=4)
    alice.type("fg\r")
    alice.wait_for_rows(f"{PROMPT}abcd")
    alice.type("e\r")
    assert server.line() == "abcde"
    alice.type("fin\r")
    assert server.line() == "fin"
    assert "Traceback" not in alice.seen
    server.close()
    alice.wait_for(LOST)


@pytest.mark.parametrize("commands", [["kill %1"], ["bg", "kill %1"]], ids=["kill", "bg_kill"])
def test_kill_finit_un_client_arrete_par_ctrl_z(stopped, commands):
    alice, server = stopped
    for number, word in enumerate(commands, 1):
        alice.wait_for("Stopped", times=number)
        alice.type(f"{word}\r")
    assert [server.line(), server.line()] == ["", "exit"]
    server.close()
    alice.wait_for(PARTED)
    assert "Traceback" not in alice.seen


def test_un_second_kill_n_attend_plus_l_au_revoir(stopped):
    alice, server = stopped
    alice.type("kill %1\r")
    assert [server.line(), server.line()] == ["", "exit"]
    alice.type("kill %1\r")
    alice.wait_for(PARTED)


def test_kill_finit_un_client_lance_en_arriere_plan(fake_server, shell):
    shell.type(alice_command(fake_server.port, " &"))
    server = fake_server.admit()
    shell.wait_for("Stopped")
    shell.type("kill %1\r")
    assert [server.line(), server.line()] == ["", "exit"]
    time.sleep(1)  # l'horloge du client passe deux fois ; sinon, le test serait moins sévère
    server.send("* Au revoir, Alice.\n")
    shell.wait_for("* Au revoir, Alice.")
    server.close()
    shell.wait_for(PARTED)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"], ids=["tué", "arrêté"])
def test_un_serveur_qui_disparait_finit_chaque_client_sans_touche(start_server, terminal, name):
    server = start_server()
    sessions = []
    for keys, seen in (("", PROMPT), ("à moitié", "à moitié"), ("\x12", "reverse-i-search")):
        sessions.append(terminal("--port", str(server.port), "--nom", f"u{len(sessions)}"))
        sessions[-1].wait_for(PROMPT)
        sessions[-1].type(keys)
        sessions[-1].wait_for(seen)
    server.process.send_signal(getattr(signal, name))
    for session in sessions:
        session.wait_for(LOST)
        assert session.end() == 1
        assert session.rows()[-1] == LOST
        assert ("* Le serveur s'arrête." in session.seen) == (name == "SIGINT")


def test_une_perte_pendant_la_demande_du_nom_se_voit_sans_touche(fake_server, terminal):
    alice = terminal("--port", fake_server.port, "--nom", "pris")
    peer = fake_server.accept()
    assert peer.line() == "pris"
    peer.send("! Nom pris.\n")
    alice.wait_for("Entrez votre nom : ")
    peer.close()
    alice.wait_for(LOST)
    assert alice.end() == 1


def test_un_nom_refuse_au_terminal_est_redemande(lobby, terminal):
    bob = lobby.connect("Bob")
    alice = terminal("--port", str(lobby.port), "--nom", "a b")
    alice.wait_for("Entrez votre nom : ")
    assert "! Nom refusé" in alice.seen
    alice.type("Alice\r")
    alice.wait_for(PROMPT)
    alice.type("bonjour\rexit\r")
    assert bob.line() == "* Alice a rejoint le chat."
    assert bob.line() == "Alice : bonjour"
    alice.wait_for(PARTED)
    assert alice.end() == 0


def test_cinq_noms_refuses_finissent_le_client(lobby, terminal):
    port = str(lobby.port)
    alice = terminal("--port", port, "--nom", "a b", width=150, patch="c.REFUSAL_SECONDS = 0.2")
    for number in range(4):
        alice.wait_for("Entrez votre nom : ", times=number + 1)
        alice.type("a b\r")
    alice.wait_for("C'était le dernier des 5 essais.")
    assert alice.end() == 1


def test_un_octet_qui_n_est_pas_de_l_utf8_ne_fait_pas_tomber_le_client(conversation):
    alice, server = conversation(PYTHONIOENCODING="utf-8:strict")
    alice.type(b"ab\xffc\r")
    assert server.line() == "ab\ufffdc"


# --- Au terminal : recevoir pendant que l'on tape ------------------------------------


@contextlib.contextmanager
def pouring(server: Peer, seconds: float):
    """Envoie « Bob : 0 », « Bob : 1 »… pendant ce bloc ; `seconds` : le temps entre deux lignes."""
    stop, sent = threading.Event(), []

    def pour() -> None:
        while not stop.wait(seconds):
            sent.append(f"Bob : {len(sent)}")
            server.send(f"{sent[-1]}\n")

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


NO_READLINE = "sys.modules['readline'] = None\n"


@pytest.mark.parametrize(
    ("typed", "row", "column", "rest", "sent", "before"),
    [
        ("été", "été", 3, "!", "été!", ""),
        ("abcd\x1b[D\x1b[D", "abcd", 2, "XY", "abXYcd", ""),
        ("naïf\x01", "naïf", 0, "Ô ", "Ô naïf", ""),
        ("日本", "日本", 4, "語", "日本語", ""),
        ("un deux\x17", "un", 3, "trois", "un trois", ""),
        ("abc", "abc", 3, "d", "abcd", NO_READLINE),
    ],
    ids=["accents", "milieu", "début", "caractères_doubles", "mot_effacé", "sans_readline"],
)
def test_une_ligne_arrive_au_dessus_de_ce_que_l_on_tape(
    conversation, typed, row, column, rest, sent, before
):
    alice, server = conversation(before=before)
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


@pytest.mark.parametrize(
    ("width", "new_width"), [(60, 60), (20, 20), (60, 30)], ids=["large", "étroit", "rétréci"]
)
def test_ce_qui_arrive_tient_dans_les_rangees_sans_couper_un_mot_qui_y_tient(
    conversation, width, new_width
):
    alice, server = conversation(width=width, height=60)
    alice.type("ab")
    alice.wait_for_rows(f"{PROMPT}ab")
    alice.resize(new_width, 60)
    alice.width = new_width
    room = new_width - 2
    whole = ["un", "a-" * (room // 2), "deux", "e\u0301" * room, "été", "語" * (room // 2), "trois", "👍🏽"]
    long = ["0123456789" * 8, "日本語" * 20, "e\u0301" * 65, "👩\u200d🚀" * 20, "🇫🇷" * 35]
    words = [word for pair in zip(whole, long) for word in pair] + whole[len(long) :]
    server.send(f"Bob :  {' '.join(words)} \t15\t1\n* fin\n")
    alice.wait_for_rows("* fin", f"{PROMPT}ab")
    rows = alice.rows()
    rows = rows[[row[:3] for row in rows].index("Bob") : -2]
    assert "".join("".join(rows).split()) == f"Bob:{''.join(words)}151"  # rien ne manque
    for word in whole:
        assert any(word in row for row in rows), (word, rows)
    alice.type("c\r")
    assert server.line() == "abc"


@pytest.mark.parametrize(
    "lines", [["0123456789" * 100], [f"Bob : {n}" for n in range(100)]], ids=["une", "cent"]
)
def test_plus_de_rangees_que_l_ecran_n_en_a_laissent_la_ligne_tapee(conversation, lines):
    alice, server = conversation(height=6)
    alice.type("abc")
    alice.wait_for_rows(f"{PROMPT}abc")
    server.send("".join(f"{line}\n" for line in [*lines, "* fin"]))
    alice.wait_for_rows("* fin", f"{PROMPT}abc")
    shown = alice.rows()[:-2]
    assert len(shown) == 4 and "".join(lines).endswith("".join(shown))
    alice.type("d\r")
    assert server.line() == "abcd"


def test_une_ligne_vide_ne_double_pas_l_invite(conversation):
    alice, server = conversation(TERM="dumb")
    server.send("\n")
    alice.wait_for(PROMPT, times=2)
    assert not [row for row in alice.rows() if row.count(PROMPT.rstrip()) > 1]


def test_un_terminal_qui_ne_dit_pas_sa_largeur_affiche_quand_meme(conversation):
    alice, server = conversation()
    alice.resize(0, 0)
    server.send("Bob : un\n")
    alice.wait_for("Bob : un")


def test_pendant_des_centaines_de_messages_ce_qui_part_est_ce_qui_est_tape(conversation):
    alice, server = conversation()
    with pouring(server, 0.001):
        for number in range(60):
            alice.wait_for(PROMPT, times=number + 1)
            for key in ["n", "o", "x", "é", "\x1b[D", "\x7f", "ë", *str(number), "\r"]:
                alice.type(key)
            assert server.line() == f"noë{number}é"


@pytest.mark.parametrize(
    ("setting", "keys"),
    [
        ("", "un\rdeux\r\rtrois\rexit\r"),
        ("set enable-bracketed-paste on\n", "\x1b[200~un\rdeux\r\rtrois\rexit\rfin\x1b[201~\r"),
    ],
    ids=["simple", "entre_crochets"],
)
def test_un_collage_part_ligne_par_ligne(conversation, tmp_path, setting, keys):
    inputrc = tmp_path / "inputrc"
    inputrc.write_text(setting)
    alice, server = conversation(INPUTRC=str(inputrc))
    alice.type(keys)
    assert [server.line() for _ in range(6)] == ["un", "deux", "", "trois", "", "exit"]
    server.close()
    alice.wait_for(PARTED)
    assert alice.end() == 0


def test_tab_complete_une_commande_et_reste_sinon_une_tabulation(conversation):
    alice, server = conversation()
    for times, (keys, sent) in enumerate(
        [
            ("/l\t", "/liste "),
            ("/pr\t Bob", "/privé  Bob"),
            ("/privé B\t", "/privé B\t"),
            ("a /l\t", "a /l\t"),
            ("Léa\t15\t1", "Léa\t15\t1"),
            ("\t15", "\t15"),
            ("/zut\t", "/zut\t"),
        ]
    ):
        alice.wait_for(PROMPT, times=times + 1)
        alice.type(f"{keys}\r")
        assert server.line() == sent


LIBEDIT = """
import types
class Libedit(types.ModuleType):
    def __getattr__(self, name):
        return print if name == "parse_and_bind" else lambda *_: 0
about = "Importing this module enables command line editing using libedit readline."
sys.modules["readline"] = Libedit("readline", about)
"""


def test_libedit_recoit_sa_propre_syntaxe(conversation):
    """macOS : le module readline y est le plus souvent libedit. Ici, il est imité."""
    alice, server = conversation(before=LIBEDIT)
    assert alice.rows()[0] == "bind ^I rl_complete"
    alice.type("Bonjour\r")
    assert server.line() == "Bonjour"
    assert "tab:" not in alice.seen  # la syntaxe de GNU readline


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"PYTHONUNBUFFERED": "1"}], ids=["dumb", "python_u"]
)
def test_un_terminal_sans_codes_montre_la_ligne_puis_l_invite(conversation, environment):
    alice, server = conversation(**environment)
    alice.type("abc")
    alice.wait_for(f"{PROMPT}abc")
    server.send("Bob : un\n")
    alice.wait_for(f"Bob : un\r\n{PROMPT}")
    alice.type("d\r")
    assert server.line() == "abcd"
    assert "\x1b" not in alice.seen.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")


LATE_READING = """
import builtins, time
read = builtins.input
def read_late(*prompt):
    print("(prêt)", file=sys.stderr, flush=True)
    time.sleep(0.5)  # la ligne arrive pendant ce temps
    print("(lit)", end="", file=sys.stderr, flush=True)
    return read(*prompt)
builtins.input = read_late
"""


@pytest.mark.parametrize("code", ["dumb", "xterm"])
def test_une_ligne_recue_avant_que_l_invite_soit_ecrite_ne_la_double_pas(fake_server, terminal, code):
    alice = terminal("--port", fake_server.port, "--nom", "Alice", before=LATE_READING, TERM=code)
    server = fake_server.admit()
    alice.wait_for("(prêt)")
    server.send("Bob : Salut\n")
    alice.wait_for(f"(lit){PROMPT}")
    alice.type("abc\r")
    assert server.line() == "abc"
    alice.wait_for("Bob : Salut")
    alice.wait_for("(prêt)", times=2)
    assert not [row for row in alice.rows() if row.count(PROMPT) > 1]
    server.close()


# --- Ce que l'on tape se relit en entier ---------------------------------------------


@pytest.mark.parametrize(
    "environment", [{}, {"TERM": "dumb"}, {"PYTHONUNBUFFERED": "1"}], ids=["codes", "dumb", "python_u"]
)
def test_une_longue_ligne_se_relit_en_entier_apres_entree(conversation, environment):
    alice, server = conversation(height=60, patch="c.RECENT_SECONDS = 0", **environment)
    # De quoi remplir la rangée, à une case près ; un peu plus ; beaucoup de cases, peu de touches.
    texts = ["x" * (alice.width - len(PROMPT) - missing - 3) + "fin" for missing in (2, 1, 0)]
    texts += ["un message plus long qu'une rangée de cet écran, mot à mot ou non.", "12\t" * 10 + "3"]
    for text in texts:
        alice.type(f"{text}\r")
        assert server.line() == text
        shown = f"{PROMPT}{text}".expandtabs()
        rows = [shown[start : start + alice.width] for start in range(0, len(shown), alice.width)]
        alice.wait_for_rows(*(row.rstrip() for row in [*rows, PROMPT]))
    if not environment:  # la rangée où l'on tapait n'est plus là
        assert not [row for row in alice.rows() if row.startswith("<")]


def test_une_longue_ligne_ne_cache_aucune_ligne_recue(conversation):
    """Des centaines de lignes par seconde arrivent pendant que l'on tape."""
    alice, server = conversation(height=1000)
    texts = [f"{'x' * 70}{number}" for number in range(9)]
    with pouring(server, 0.002) as sent:
        for text in texts:
            alice.wait_for_rows(PROMPT.rstrip())
            alice.type(f"{text}\r")
            assert server.line() == text
            alice.wait_for(f"{PROMPT}{text}")
    server.send("* fin\n")
    alice.wait_for("* fin")
    rows = alice.rows()
    assert [row for row in rows if row.startswith("Bob")] == sent
    for text in texts:
        assert f"{PROMPT}{text}" in "".join(row.ljust(alice.width) for row in rows)


# --- Ce qui diffère ailleurs ---------------------------------------------------------


def test_sans_horloge_de_signaux_une_perte_finit_le_client_quand_meme(conversation):
    """Windows : rien n'y interrompt une lecture du clavier."""
    alice, server = conversation(before="import signal; del signal.setitimer")
    server.close()
    alice.wait_for(LOST)
    assert alice.process.wait(PATIENCE) == 1


def test_deux_threads_suffisent(conversation):
    alice, _ = conversation()
    assert len(list((proc(alice.process) / "task").iterdir())) == 2


# --- Fenêtres, tubes gardés ouverts, sessions qui continuent ----------------------------

@pytest.mark.parametrize(
    "environment", [{}, {"TERM": "", "PYTHONUNBUFFERED": "1"}], ids=["codes", "sans_codes"]
)
def test_dans_une_fenetre_on_parle_on_recoit_on_part_deux_fois(lobby, environment):
    bob = lobby.connect("Bob")
    window = Window("--port", str(lobby.port), times=2, **environment)
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


def test_dans_idle_une_touche_entree_montre_tout_avant_l_invite_suivante(fake_server):
    window = Window("--port", fake_server.port, "--nom", "Alice", in_idle=True)
    peer = fake_server.admit()
    window.wait_for(PROMPT)
    window.type("/liste\n")
    assert peer.line() == "/liste"
    peer.send("* Connectés (1) : Alice\n")
    window.wait_for(f"* Connectés (1) : Alice\n{PROMPT}")
    peer.send("".join(f"Bob : {number}\n" for number in range(4)))
    peer.close()
    window.wait_for("(attend)")
    window.type("\n")
    window.wait_for(f"\nBob : 0\nBob : 1\nBob : 2\nBob : 3\n{PROMPT}\n{LOST}")
    window.wait_for("main renvoie 1\n")
    window.end()


def test_trois_tubes_gardes_ouverts_sont_une_personne(lobby):
    """L'onglet Run de PyCharm : pas de terminal, mais quelqu'un y tape."""
    bob = lobby.connect("Bob")
    environment = {**os.environ, "PYCHARM_HOSTED": "1", "PYTHONUNBUFFERED": "1"}
    robot = start_client("--port", str(lobby.port), env=environment)

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
{beginning}
readline.add_history("avant")
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGALRM)
handlers = [signal.getsignal(number) for number in numbers]
import client_exo
for _ in range(2):
    print("main renvoie", client_exo.main(), flush=True)
length = readline.get_current_history_length()
assert [readline.get_history_item(n + 1) for n in range(length)] == ["avant"], length
assert handlers == [signal.getsignal(number) for number in numbers]
assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
print("intact", flush=True)
"""


@pytest.mark.parametrize("beginning", ["", "sys.ps1 = '>>> '"], ids=["programme", "session"])
def test_qui_appelle_main_retrouve_son_historique_et_ses_signaux(lobby, terminal, beginning):
    program = SESSION.format(beginning=beginning)
    alice = terminal("--port", str(lobby.port), "--nom", "Alice", program=program)
    for times in (1, 2):
        alice.wait_for(PROMPT, times=2 * times - 1)
        alice.type("Bonjour\r")
        alice.wait_for(PROMPT, times=2 * times)
        alice.type("exit\r")
        alice.wait_for("main renvoie 0", times=times)
    alice.wait_for("intact")
    assert alice.end() == 0


# --- Le réseau -----------------------------------------------------------------------


def patched(function: str, body: str) -> str:
    """Renvoie de quoi remplacer cette fonction du module socket par `body`."""
    code = f"def {function}(*_, **__):\n{body}\nsocket.{function} = {function}\n"
    return f"import socket, threading\n{code}"


NEVER_ENDS = """
    while True:  # du code en C : aucune exception ne l'interrompt
        try:
            print("(attend)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
"""
FAILS = "    raise socket.gaierror(socket.{}, '')"
SOON = "c.CONNECT_SECONDS = 0.2"
CHECK_SERVER = "Le serveur est-il lancé ? Son pare-feu bloque-t-il ce port ?"
CHECK_NAME = "L'adresse est-elle bien écrite ? Le réseau fonctionne-t-il ?"
UNKNOWN = f"adresse inconnue. {CHECK_NAME}"
NOT_LOOKED_UP = f"ce nom n'a pas pu être cherché. {CHECK_NAME}"


@pytest.mark.parametrize(
    ("host", "patch", "reason"),
    [
        ("127.0.0.1", "", f"connexion refusée. {CHECK_SERVER}"),
        ("..", "", UNKNOWN),
        ("chat.example", patched("getaddrinfo", FAILS.format("EAI_NONAME")), UNKNOWN),
        ("chat.example", patched("getaddrinfo", FAILS.format("EAI_AGAIN")), NOT_LOOKED_UP),
        ("chat.example", patched("getaddrinfo", NEVER_ENDS) + SOON, NOT_LOOKED_UP),
    ],
    ids=["aucun_serveur", "mal_écrite", "inconnue", "sans_réseau", "sans_serveur_de_noms"],
)
def test_une_connexion_impossible_renvoie_1_et_dit_pourquoi(host, patch, reason):
    result = run_client("--hote", host, "--port", "1", "--nom", "Alice", patch=patch)
    assert result.returncode == 1
    assert result.stderr.decode() == f"Connexion impossible à {host}:1 : {reason}\n"


@pytest.mark.parametrize("function", ["getaddrinfo", "create_connection"])
def test_ctrl_c_est_vu_pendant_que_l_on_se_connecte(terminal, function):
    patch = f"{patched(function, NEVER_ENDS)}c.CONNECT_SECONDS = {10 * PATIENCE}"
    alice = terminal("--nom", "Alice", patch=patch)
    alice.wait_for("(attend)")
    alice.type("\x03")
    alice.wait_for(PARTED)
    assert alice.end() == 0
    assert "Traceback" not in alice.seen


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
    result = run_client("--nom", "A", "--port", str(black_hole), patch=SOON)
    assert result.returncode == 1
    assert result.stderr.decode() == (
        f"Connexion impossible à 127.0.0.1:{black_hole} : pas de réponse. {CHECK_SERVER}\n"
    )


def test_une_adresse_qui_ne_repond_pas_laisse_du_temps_a_la_suivante(black_hole, fake_server):
    patch = (
        "import socket\n"
        "tcp = socket.AF_INET, socket.SOCK_STREAM, 0, ''\n"
        f"ports = {black_hole}, {black_hole}, {fake_server.port}\n"
        "found = [(*tcp, ('127.0.0.1', port)) for port in ports]\n"
        "socket.getaddrinfo = lambda *_, **__: found\n"
        "c.CONNECT_SECONDS = 3\n"
    )
    robot = start_client("--hote", "trois", "--nom", "Alice", patch=patch)
    fake_server.admit().close()
    finish(robot)


def test_la_limite_de_la_connexion_ne_vaut_pas_pour_la_suite(fake_server):
    """create_connection laisse au socket sa limite : elle couperait un salon silencieux."""
    patch = (
        "import socket\n"
        "connect = socket.create_connection\n"
        "def limited(*rest):\n"
        "    sock = connect(*rest)\n"
        "    sock.settimeout(0.05)\n"
        "    return sock\n"
        "socket.create_connection = limited\n"
    )
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=patch)
    peer = fake_server.admit()
    assert robot.stdout.readline() == b"* Bienvenue, Alice !\n"
    time.sleep(0.5)  # plus long que la limite : c'est ce silence que l'on essaie
    peer.send("* fin\n")
    assert robot.stdout.readline() == b"* fin\n"
    peer.close()
    finish(robot)


def test_un_serveur_qui_prend_son_temps_n_est_pas_perdu(fake_server):
    """Il ne lit plus pendant plus longtemps que la limite, ici raccourcie."""
    quick = "import chat_protocol; chat_protocol.SOCKET_OPTIONS |= {'TCP_USER_TIMEOUT': 100}\n"
    quick += "c.MAX_RETRIES = 1"
    robot = start_client("--port", fake_server.port, "--nom", "Alice", patch=quick)
    peer = fake_server.admit()
    lines = (b"x" * 999 + b"\n") * 8000  # plus que le système n'en garde
    thread = threading.Thread(target=lambda: (robot.stdin.write(lines), robot.stdin.close()))
    thread.start()
    assert peer.line() == "x" * 999
    time.sleep(1.5)  # plus long que la limite : c'est cette attente que l'on essaie
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


@pytest.mark.parametrize("typed", ["Tu es là ?\n", ""], ids=["une_ligne_part", "silence"])
def test_un_cable_debranche_se_voit(start_server, terminal, cable, typed):
    """Les délais sont plus courts que les vrais : 100 s pour une ligne, 120 s de silence."""
    ours, theirs, unplug = cable
    server = start_server("--hote", "192.0.2.1", patch=ours)
    options = "{'TCP_KEEPIDLE': 1, 'TCP_KEEPINTVL': 1, 'TCP_KEEPCNT': 2}"
    quick = f"import chat_protocol; chat_protocol.SOCKET_OPTIONS |= {options}"
    patch = f"{theirs}\n{'c.MAX_RETRIES = 3' if typed else quick}"
    address = ("--hote", "192.0.2.1", "--port", str(server.port), "--nom")
    alice = terminal(*address, "Alice", patch=patch)
    alice.wait_for(PROMPT)
    robot = start_client(*address, "Robot", patch=patch)
    assert robot.stdout.readline().startswith(b"* Bienvenue")
    alice.wait_for("* Robot a rejoint le chat.")
    unplug()
    alice.type(typed.replace("\n", "\r"))
    robot.stdin.write(typed.encode())
    robot.stdin.flush()
    alice.wait_for(LOST)
    assert alice.end() == 1
    assert finish(robot) == (1, f"{LOST}\n")
    server.process.kill()  # il attendrait la réponse des clients débranchés


def test_un_serveur_qui_freine_n_est_pas_perdu_non_plus_sur_un_reseau(start_server, cable):
    """Il ne prend plus rien pendant plus longtemps que la limite de ses propres envois, ici 0,5 s."""
    ours, theirs, _ = cable
    server = start_server("--hote", "192.0.2.1", patch=ours)
    quick = "import chat_protocol; chat_protocol.SOCKET_OPTIONS |= {'TCP_USER_TIMEOUT': 500}"
    address = ("--hote", "192.0.2.1", "--port", str(server.port), "--nom", "Robot")
    robot = start_client(*address, patch=f"{theirs}\n{quick}\nc.MAX_RETRIES = 3")
    os.set_blocking(robot.stdin.fileno(), False)
    while select.select([], [robot.stdin], [], 3)[1]:
        with contextlib.suppress(BlockingIOError):
            os.write(robot.stdin.fileno(), b"x" * 999 + b"\n")
    assert robot.poll() is None
    robot.kill()
    finish(robot)
