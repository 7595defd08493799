"""Les pièges d'un chat à threads : ce que fait la solution habituelle, et ce que fait celle-ci.

Un test joue la même scène deux fois : avec `serveur_naif.py` (ou `client_naif.py`), qui doit
échouer, et avec ce dépôt, qui doit réussir. Si le naïf n'échouait que de temps en temps, le test
y met une pause qui rend l'échec certain. Sous l'explication, « Protection » nomme l'endroit du
code qui l'évite ; `python3 tests/lecon/sans_gardes.py` le retire et vérifie que le test échoue.
"""

import contextlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE, Peer, wait_in_recv
from terminal import Session

LESSON = Path(__file__).parent / "lecon"
NAIVE_SERVER = (LESSON / "serveur_naif.py").read_text(encoding="utf-8")
NAIVE_CLIENT = (LESSON / "client_naif.py").read_text(encoding="utf-8")

SILENCE_SECONDS = 1.5  # s sans rien recevoir : le serveur naïf est alors tenu pour bloqué
MANY_BYTES = 32 * 1024 * 1024  # octets : plus que tous les tampons du système ensemble


class Naive:
    """Un serveur_naif.py dans son processus ; `change` en remplace des mots."""

    def __init__(self, change: dict[str, str], prelude: str, **popen) -> None:
        text = NAIVE_SERVER
        for old, new in change.items():
            assert old in text
            text = text.replace(old, new)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\n{text}", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen,
        )  # fmt: skip
        self.port = int(self.process.stdout.readline().split()[-1])
        self.peers: list[Peer] = []

    def connect(self) -> Peer:
        self.peers.append(Peer(socket.create_connection(("127.0.0.1", self.port))))
        return self.peers[-1]

    def read_console(self) -> None:
        """Lit la console au fur et à mesure : un tube plein bloquerait le serveur."""
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def error_with(self, word: str) -> None:
        """Lit stderr jusqu'à une ligne qui contient `word`."""
        while word not in (line := self.process.stderr.readline().decode()):
            assert line, f"{word} n'est pas venu"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for peer in self.peers:
            peer.close()
        self.process.stderr.close()
        with contextlib.suppress(RuntimeError):  # un thread la lit encore
            self.process.stdout.close()


@pytest.fixture
def naive_server():
    """Renvoie une fonction qui lance un serveur naïf ; tous sont tués à la fin."""
    servers = []

    def launch(change: dict[str, str] = {}, prelude: str = "", **popen) -> Naive:
        servers.append(Naive(change, prelude, **popen))
        return servers[-1]

    yield launch
    for server in servers:
        server.end()


def gather(server, *names: str) -> list[Peer]:
    """Fait entrer un témoin, puis ces clients un par un ; renvoie le témoin et ces clients.

    Un client est inscrit quand le témoin apprend son arrivée : le serveur naïf n'envoie rien au
    client qui entre, mais n'accepte personne avant d'avoir inscrit le précédent.
    """
    witness = server.connect()
    witness.send("Temoin\n")
    if not isinstance(server, Naive):
        line_with(witness, "Bienvenue")
    peers = []
    for name in names:
        peers.append(server.connect())
        peers[-1].send(f"{name}\n")
        line_with(witness, f"{name} a rejoint le chat.")
    return [witness, *peers]


def line_with(peer: Peer, word: str) -> str:
    """Renvoie la prochaine ligne qui contient `word`."""
    while word not in (line := peer.line()):
        assert line, f"fin du flux avant {word!r}"
    return line


def line_heard(server, text: str, word: str) -> str:
    """Fait envoyer `text` en une fois à Alice ; renvoie la ligne avec `word` que Bob reçoit."""
    _, alice, bob = gather(server, "Alice", "Bob")
    alice.send(text)
    return line_with(bob, word)


def enter(client: Session) -> None:
    """Tape un nom, et attend d'être accueilli et de pouvoir écrire."""
    client.wait_for("Entrez votre nom : ")
    client.type("Alice\r")
    client.wait_for("Bienvenue")
    client.wait_for("Votre message : ")


def hears_nothing(peer: Peer) -> bool:
    """Renvoie True si rien n'arrive un moment ; cela ne prouve un blocage que du serveur naïf."""
    return not select.select([peer.sock], [], [], SILENCE_SECONDS)[0]


def send_much(peer: Peer, line: bytes = b"x" * 1000 + b"\n") -> None:
    """Envoie MANY_BYTES dans un thread de plus, qui s'arrête avec la connexion."""

    def run() -> None:
        with contextlib.suppress(OSError):
            peer.sock.sendall(line * (MANY_BYTES // len(line)))

    threading.Thread(target=run, daemon=True).start()


# --- Recevoir ------------------------------------------------------------------


def test_un_recv_n_est_pas_un_message(naive_server, start_server):
    """TCP transporte un flux d'octets : deux messages envoyés peuvent n'en faire qu'un à recv.

    Le naïf colle son « Nom : » devant le tout, et la deuxième ligne n'a pas d'auteur.
    Protection : LineBuffer.feed coupe les octets reçus sur les fins de ligne.
    """

    assert line_heard(naive_server(), "un\ndeux\n", "deux") == "deux"
    assert line_heard(start_server(), "un\ndeux\n", "deux") == "Alice : deux"


def test_le_nom_ne_se_colle_pas_au_premier_message(naive_server, start_server):
    """Un client rapide envoie son nom et un message en une fois : recv renvoie les deux.

    Le serveur naïf prend le tout pour un nom de deux lignes.
    Protection : Room.receive traite les lignes une à une, la première étant le nom.
    """

    def scene(server) -> str:
        witness, _ = gather(server, "Bob")
        server.connect().send("Alice\nBonjour\n")
        return line_with(witness, "Bonjour")

    assert scene(naive_server()) == "Bonjour a rejoint le chat."
    assert scene(start_server()) == "Alice : Bonjour"


def test_un_caractere_coupe_par_recv_ne_tue_pas_le_thread(naive_server, start_server):
    """« é » fait deux octets : recv(1024) peut n'en renvoyer qu'un, et decode échoue.

    Ce thread du serveur naïf s'arrête (UnicodeDecodeError), et son client n'est plus lu.
    Protection : read_client garde des octets dans LineBuffer, et decode_line ne voit qu'une ligne
    entière.
    """
    message = "x" * 1023 + "é" * 1000 + "\n"  # coupé à 1024 octets comme à 2048
    server = naive_server()
    _, alice, _ = gather(server, "Alice", "Bob")
    alice.send(message)
    server.error_with("UnicodeDecodeError")

    assert line_heard(start_server(), message, "xxx") == f"Alice : {message.strip()}"


def test_une_fin_de_flux_n_est_pas_un_message_vide(naive_server, start_server):
    """Quand l'autre ferme, recv renvoie b"" aussitôt, et encore à chaque appel.

    Le naïf y voit un message vide : il le diffuse sans fin, à 100 % du processeur, et personne
    n'apprend le départ.
    Protection : read_client s'arrête à la première réponse vide de recv.
    """

    def scene(server) -> Peer:
        _, alice, bob = gather(server, "Alice", "Bob")
        line_with(alice, "Bob a rejoint")
        bob.sock.shutdown(socket.SHUT_WR)
        return alice

    alice = scene(naive_server())
    assert alice.file.read(24) == b"Bob : Bob : Bob : Bob : "
    assert scene(start_server()).line() == "* Bob a quitté le chat."


# --- Accueillir ----------------------------------------------------------------


def test_un_client_muet_n_empeche_pas_les_autres_d_entrer(naive_server, start_server):
    """Le naïf attend le nom dans la boucle d'accept : un client sans nom arrête les autres.

    Protection : start_reader donne à chaque client un thread, qui attend le nom de ce client.
    """

    def scene(server) -> Peer:
        witness, _ = gather(server, "Bob")
        server.connect()
        server.connect().send("Alice\n")
        return witness

    assert hears_nothing(scene(naive_server()))
    assert scene(start_server()).line() == "* Alice a rejoint le chat."


def test_un_client_qui_coupe_net_n_arrete_pas_l_accueil(naive_server, start_server):
    """Un reset fait lever ConnectionResetError à recv.

    Chez le naïf, c'est dans la boucle d'accept : le serveur entier s'arrête.
    Protection : read_client rattrape OSError, pour ce client seul.
    """

    def scene(server) -> None:
        server.connect().reset()

    server = naive_server()
    scene(server)
    assert server.process.wait(PATIENCE) == 1
    server = start_server()
    scene(server)
    assert server.connect("Alice").barrier() == "* Connectés (1) : Alice"


def test_un_client_est_inscrit_avant_que_son_thread_demarre(naive_server, start_server):
    """Dès start(), le thread s'exécute : ce que l'on prépare après peut arriver trop tard.

    Le naïf lance le thread, puis range le nom : un message déjà là lève KeyError. La fenêtre
    est étroite ; on l'élargit ici en faisant durer start().
    Protection : start_reader inscrit le client avant start().
    """
    slow_start = (
        "import threading\n"
        "start = threading.Thread.start\n"
        "def slow_start(self):\n"
        "    start(self)\n"
        "    if self.name not in ('écriture', 'veilleur'):\n"
        "        self.join({seconds})\n"
        "threading.Thread.start = slow_start\n"
    )
    glued = f"{'Alice':1023}\nBonjour\n"  # recv(1024) s'arrête juste après le nom
    server = naive_server(prelude=slow_start.format(seconds=PATIENCE))
    server.connect().send(glued)
    server.error_with("KeyError")

    server = start_server(patch=slow_start.format(seconds=1))
    alice = server.connect()
    alice.send(glued)
    assert alice.line().startswith("* Bienvenue, Alice !")
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_deux_clients_n_ont_pas_le_meme_nom(naive_server, start_server):
    """Sans vérification, on ne sait pas laquelle des deux a écrit « Alice : j'accepte ».

    Protection : Room.enter refuse un nom dont name_key est déjà prise.
    """

    def scene(server) -> str:
        witness, _ = gather(server, "Alice")
        double = server.connect()
        double.send("ALICE\n")
        double.send("Bob\n")
        return witness.line()

    assert scene(naive_server()).startswith("ALICE")
    assert scene(start_server()) == "* Bob a rejoint le chat."


def test_un_nom_n_imite_pas_la_ligne_d_un_autre(naive_server, start_server):
    """Un nom est recopié devant chaque message : « Alice : oui, et » imite ceux d'Alice.

    Protection : normalize_name n'admet ni blanc, ni « : », ni parenthèse.
    """

    def scene(server) -> Peer:
        witness, _ = gather(server, "Alice")
        liar = server.connect()
        liar.send("Alice : oui, et personne\n")
        return witness if isinstance(server, Naive) else liar

    assert scene(naive_server()).line().startswith("Alice : oui")
    assert scene(start_server()).line().startswith("! Nom refusé")


def test_le_serveur_ne_s_ouvre_pas_au_reseau_sans_le_dire(naive_server, start_server):
    """L'adresse "" veut dire « toutes » : toute la salle, tout le wifi peut entrer.

    127.0.0.2 joue ici une autre adresse de la machine.
    Protection : DEFAULT_HOST, cette machine seule ; s'ouvrir se demande avec --hote.
    """
    socket.create_connection(("127.0.0.2", naive_server().port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", start_server().port))


# --- Envoyer --------------------------------------------------------------------


def test_la_liste_ne_change_pas_pendant_qu_on_la_parcourt(inside):
    """Retirer un élément avance les suivants d'une place : la boucle en saute un.

    Chez le naïf, le thread d'un client qui part retire son socket de la liste que celui d'un
    autre parcourt : quelqu'un ne reçoit pas le message. (Avec un dictionnaire, la boucle lève
    RuntimeError.) De faux sockets rejouent ici cet entrelacement à coup sûr.
    Protection : make_round parcourt une copie, et un départ n'est qu'un dépôt de plus dans l'inbox.
    """
    received = []
    naive = {}
    exec(NAIVE_SERVER.partition("\nserver = ")[0], naive)

    class FakeListener:
        def __init__(self, name: str) -> None:
            self.name = name

        def sendall(self, data: bytes) -> None:
            received.append(self.name)
            if self.name == "Bob":
                naive["clients"].remove(listeners[0])  # ce que ferait le thread d'Alice

    listeners = [FakeListener("Alice"), FakeListener("Bob"), FakeListener("Chloé")]
    naive["clients"] += listeners
    naive["broadcast"]("Bonjour\n")
    assert received == ["Alice", "Bob"]

    room = inside("Alice", "Bob", "Chloé", "David")
    alice, _, _, david = room.clients
    room.broadcaster.inbox.append((alice, None))
    room.say(david, "Bonjour")
    for peer in room.peers[1:3]:
        assert line_with(peer, "Alice") == "* Alice a quitté le chat."
        assert line_with(peer, "Bonjour") == "David : Bonjour"


def test_send_peut_n_envoyer_que_le_debut(naive_server, start_server):
    """send renvoie le nombre d'octets pris ; le reste est à envoyer ensuite, ou il est perdu.

    C'est rare avec un socket qui bloque, et courant dès qu'on lui donne un délai : on le fait
    ici au naïf, avec de petits tampons, et un client qui lit lentement reçoit des lignes
    amputées.
    Protection : Hub.send garde dans l'outbox ce que le système n'a pas accepté.
    """
    small = "setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)"

    def torn_line(server) -> str:
        _, slow, alice = gather(server, "Lent", "Alice")
        line_with(slow, "Alice a rejoint")
        alice.send("".join(f"{'x' * 900}{n:04}\n" for n in range(3000)) + "fin\n")
        while "fin" not in (line := slow.line()):
            if not re.fullmatch(r"(Alice : )?x{900}(Alice : )?\d{4}|.* a quitté le chat\.", line):
                return line or "(fin du flux)"
        return ""

    change = {
        ".sendall(": ".send(",
        "client, address = server.accept()": "client, address = server.accept()\n"
        f"    client.settimeout({PATIENCE}); client.{small}",
    }
    server = naive_server(change)
    server.read_console()
    assert torn_line(server)
    patch = (
        "import socket\nstart = s.start_reader\n"
        f"s.start_reader = lambda sock, *rest: (sock.{small}, start(sock, *rest))[1]"
    )
    assert not torn_line(start_server("--debit", "0", patch=patch))


SLOW_SENDS = """
send_now = s.send_now
def send_in_two(sock, data):
    half = len(data) // 2
    sent = send_now(sock, data[:half])
    s.time.sleep(0.01)
    return sent + send_now(sock, data[half:])
s.send_now = send_in_two
"""


def talk_together(server, *others: str) -> tuple[list[Peer], int]:
    """Fait parler Alice et Bob en même temps, vingt fois ; renvoie les autres clients."""
    *listeners, alice, bob = gather(server, *others, "Alice", "Bob")[1:]
    for peer in listeners:
        line_with(peer, "Bob a rejoint")
    for number in range(20):
        alice.send(f"aaaa {number}\n")
        bob.send(f"bbbb {number}\n")
    return listeners, 40


def test_deux_threads_n_envoient_pas_sur_le_meme_socket(naive_server, start_server):
    """sendall envoie en plusieurs fois : deux threads qui s'en servent ensemble mêlent leurs lignes.

    Un petit tampon le ferait de temps en temps. Ici, le naïf envoie en deux fois, et attend entre
    les deux que l'autre thread ait envoyé sa première moitié.
    Protection : une tournée à la fois, sous Hub.round_lock, et elle seule envoie.
    """
    prelude = """
import threading
meeting = threading.Barrier(2)
def send_in_two(client, data):
    half = len(data) // 2
    client.sendall(data[:half])
    if b" : " in data:
        meeting.wait()
    client.sendall(data[half:])
"""
    server = naive_server({"client.sendall(message": "send_in_two(client, message"}, prelude)
    _, reader, alice, bob = gather(server, "Lecteur", "Alice", "Bob")
    line_with(reader, "Bob a rejoint")
    alice.send("aaaa\n")
    bob.send("bbbb\n")
    mixed = reader.file.read(len("Alice : aaaa\nBob : bbbb\n")).decode()
    assert "Alice : aaaa\n" not in mixed or "Bob : bbbb\n" not in mixed

    (reader,), count = talk_together(start_server(patch=SLOW_SENDS), "Lecteur")
    for _ in range(count):
        assert re.fullmatch(r"Alice : aaaa \d+|Bob : bbbb \d+", reader.line())


def test_tous_voient_les_messages_dans_le_meme_ordre(naive_server, start_server):
    """Deux threads qui envoient chacun à tous peuvent se doubler en chemin.

    Celui d'Alice a servi Chloé, pas encore David ; celui de Bob sert alors les deux : David lit
    la réponse avant la question. Ici, le naïf attend d'être dans ce cas.
    Protection : Hub.try_round, sous round_lock : une tournée sert tout le monde avant que
    la suivante commence.
    """
    prelude = """
import threading
chloe_has_alice, david_has_bob = threading.Event(), threading.Event()
def send(client, data):
    way = data.partition(b" : ")[0], names.get(client)
    if way == (b"Bob", "Chloé"):
        chloe_has_alice.wait()
    if way == (b"Alice", "David"):
        david_has_bob.wait()
    client.sendall(data)
    if way == (b"Alice", "Chloé"):
        chloe_has_alice.set()
    if way == (b"Bob", "David"):
        david_has_bob.set()
"""
    server = naive_server({"client.sendall(message": "send(client, message"}, prelude)
    _, chloe, david, alice, bob = gather(server, "Chloé", "David", "Alice", "Bob")
    alice.send("D'accord ?\n")
    bob.send("Oui.\n")
    for peer, first, second in ((chloe, "D'accord ?", "Oui."), (david, "Oui.", "D'accord ?")):
        line_with(peer, first)
        line_with(peer, second)

    (chloe, david), count = talk_together(start_server(patch=SLOW_SENDS), "Chloé", "David")
    assert [chloe.line() for _ in range(count)] == [david.line() for _ in range(count)]


def test_un_client_parti_n_empeche_pas_de_lire_les_autres(naive_server, start_server):
    """Envoyer à un client parti lève une exception, dans le thread d'un autre client.

    Ce thread du serveur naïf s'arrête : Alice n'est plus lue, et rien ne le lui indique.
    Protection : Hub.send rattrape OSError pour ce destinataire, et continue.
    """

    def scene(server) -> Peer:
        # Ce client avait beaucoup envoyé : son lecteur, freiné par le débit, ne sait pas encore
        # qu'il est parti quand Alice parle.
        _, gone, alice, bob = gather(server, "Parti", "Alice", "Bob")
        gone.send("x\n" * 500)
        gone.reset()
        alice.send("Bonjour\n")
        return bob

    server = naive_server()
    scene(server)
    server.error_with("in broadcast")
    assert line_with(scene(start_server()), "Bonjour") == "Alice : Bonjour"


def test_qui_ne_lit_plus_ne_bloque_pas_les_autres(naive_server, start_server):
    """Quand les tampons d'un client sont pleins, sendall attend qu'il lise, peut-être sans fin.

    Dans le serveur naïf, tous les threads finissent par attendre ce client : le chat est bloqué.
    Protection : send_now n'attend jamais ; une seconde après, Hub.disconnect le déconnecte.
    """

    def scene(server) -> Peer:
        _, stuck, alice, bob = gather(server, "Fige", "Alice", "Bob")
        send_much(alice)
        return bob

    server = naive_server()
    server.read_console()
    bob = scene(server)
    while not hears_nothing(bob):
        bob.sock.recv(1 << 20)
    bob = scene(start_server("--debit", "0"))
    received = 0
    while received < MANY_BYTES:
        data = bob.sock.recv(1 << 20)
        assert data, "Bob a été déconnecté"
        received += len(data)


def test_une_console_que_personne_ne_lit_n_arrete_pas_le_chat(naive_server, start_server):
    """print attend comme sendall : après un Ctrl+S, ou sur un tube plein, le serveur est bloqué.

    Protection : Writer.put confie les lignes à un thread d'écriture, et n'attend pas.
    """

    def scene(server) -> Peer:
        _, alice, bob = gather(server, "Alice", "Bob")
        alice.send(("x" * 1000 + "\n") * 1000 + "fin\n")
        return bob

    bob = scene(naive_server())
    while not hears_nothing(bob):
        assert b"fin" not in bob.sock.recv(65536)
    server = start_server("--debit", "0", stdout=subprocess.PIPE)
    assert line_with(scene(server), "fin") == "Alice : fin"


# --- Ce que l'on voit -------------------------------------------------------------


def test_un_message_ne_pilote_pas_le_terminal_des_autres(naive_server, start_server):
    """Un terminal exécute les codes qu'il reçoit : ils effacent l'écran, changent le titre.

    Protection : clean, au serveur pour tous et au client avant d'afficher.
    """

    erase = "\x1b[2Jcoucou\n"
    assert line_heard(naive_server(), erase, "coucou") == "Alice : \x1b[2Jcoucou"
    assert line_heard(start_server(), erase, "coucou") == "Alice : \ufffd[2Jcoucou"


def test_une_ligne_qui_arrive_ne_coupe_pas_celle_que_l_on_tape(start_server, terminal):
    """Deux threads écrivent sur un seul écran : ce qui arrive se colle à ce que l'on tape.

    Protection : Terminal.draw insère une rangée au-dessus, et le curseur revient où il était.
    """

    def rows(*options: str, program: str = "") -> list[str]:
        server = start_server()
        alice = terminal(*options, str(server.port), program=program)
        enter(alice)
        alice.type("à moitié")
        alice.wait_for("à moitié")
        server.connect("Bob").send("Salut\n")
        alice.wait_for("Bob : Salut")
        return alice.complete_rows()

    naive_rows = rows(program=NAIVE_CLIENT)
    assert any(row.endswith("à moitié* Bob a rejoint le chat.") for row in naive_rows)
    assert rows("--port")[-2:] == ["Bob : Salut", "Votre message : à moitié"]


def test_la_fin_du_serveur_se_voit_sans_toucher_au_clavier(start_server, terminal):
    """input() attend une touche, quoi qu'il arrive au réseau.

    Le client naïf affiche encore l'invite, et le premier envoi paraît réussir.
    Protection : note_signal fait sortir d'input(), au signal suivant de l'horloge.
    """

    def orphan(*options: str, program: str = "") -> Session:
        server = start_server()
        alice = terminal(*options, str(server.port), program=program)
        enter(alice)
        server.stop(signal.SIGKILL)
        return alice

    alice = orphan(program=NAIVE_CLIENT)
    alice.type("il y a quelqu'un ?\r")
    alice.wait_for("Votre message : ", times=2)
    alice = orphan("--port")
    assert alice.end() == 1
    assert "Connexion au serveur perdue." in alice.seen


def test_close_ne_reveille_pas_le_thread_qui_recoit(start_server, terminal):
    """close libère le numéro du socket ; un thread déjà dans recv y reste, et la connexion aussi.

    Face à un serveur qui ne ferme pas, le client naïf reçoit encore après « exit » et close : un
    programme ne finit qu'avec tous ses threads. Au serveur, le thread et la place d'un client déconnecté
    seraient perdus.
    Protection : shutdown, dans Connection.close (client) et dans Hub.disconnect (serveur).
    """

    def welcome(*options: str, program: str = "") -> tuple[Session, socket.socket]:
        alice = terminal(*options, str(listener.getsockname()[1]), program=program)
        alice.wait_for("Entrez votre nom : ")
        alice.type("Alice\r")
        peer = stack.enter_context(listener.accept()[0])
        peer.sendall(b"* Bienvenue, Alice !\n")
        alice.wait_for("Votre message : ")
        alice.wait_for("Bienvenue")
        return alice, peer

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        naive, peer = welcome(program=f"{NAIVE_CLIENT}\nprint('(fermé)', flush=True)")
        wait_in_recv(naive.process)
        naive.type("exit\r")
        naive.wait_for("(fermé)")
        peer.sendall(b"Bob : encore ?\n")
        naive.wait_for("Bob : encore ?")
        ours, _ = welcome("--port")
        ours.type("exit\r")
        assert ours.end() == 0

    server = start_server("--max-clients", "1", patch="s.STATE_SECONDS['leaving'] = 0.2")
    refused = server.connect()
    refused.send("?\n" * 5)  # déconnecté, mais il ne ferme pas
    answer = ""
    while not answer.startswith("* Bienvenue, Alice !"):
        newcomer = server.connect()
        newcomer.send("Alice\n")
        answer = newcomer.line()
        newcomer.close()
