"""Les pièges d'un chat à threads : ce que fait la solution habituelle, et ce que fait celle-ci.

Une épreuve joue la même scène deux fois : avec `serveur_naif.py` (ou `client_naif.py`), qui
doit y tomber, et avec ce dépôt, qui ne le doit pas. Sous l'explication, « Garde » nomme
l'endroit du code qui répond ; `python3 tests/sans_gardes.py` l'enlève et vérifie que l'épreuve
échoue alors.
"""

import contextlib
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import serveur_exo
from conftest import PATIENCE, Peer, postman_with
from terminal import Typist

HERE = Path(__file__).parent
NAIVE_SERVER = (HERE / "serveur_naif.py").read_text(encoding="utf-8")
NAIVE_CLIENT = (HERE / "client_naif.py").read_text(encoding="utf-8")

SILENCE_SECONDS = 1.5  # s sans rien, là où le naïf ne dira jamais plus rien
MANY_LINES = 4000  # lignes de 1000 octets : assez pour que deux threads se croisent
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
def naif():
    """Rend une fonction qui lance un serveur naïf ; tous sont tués à la fin."""
    servers = []

    def launch(change: dict[str, str] = {}, prelude: str = "", **popen) -> Naive:
        servers.append(Naive(change, prelude, **popen))
        return servers[-1]

    yield launch
    for server in servers:
        server.end()


def gather(server, *names: str) -> list[Peer]:
    """Fait entrer un témoin, puis ces clients un par un ; rend le témoin et ces clients.

    Chacun est inscrit quand le témoin l'apprend : le naïf ne dit rien à qui entre, mais ne
    laisse entrer personne avant d'avoir inscrit le précédent.
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
    """Rend la prochaine ligne qui contient `word`."""
    while word not in (line := peer.line()):
        assert line, f"fin du flux avant {word!r}"
    return line


def line_heard(server, text: str, word: str) -> str:
    """Fait envoyer `text` d'un coup à Alice ; rend la ligne avec `word` que Bob reçoit."""
    _, alice, bob = gather(server, "Alice", "Bob")
    alice.send(text)
    return line_with(bob, word)


def enter(client: Typist) -> None:
    """Tape un nom, et attend d'être accueilli et de pouvoir écrire."""
    client.wait_for("Entrez votre nom : ")
    client.type("Alice\r")
    client.wait_for("Bienvenue")
    client.wait_for("Votre message : ")


def hears_nothing(peer: Peer) -> bool:
    """Dit que rien n'arrive pendant un moment ; à ne croire que du naïf, bloqué pour toujours."""
    return not select.select([peer.sock], [], [], SILENCE_SECONDS)[0]


def send_much(peer: Peer, line: bytes = b"x" * 1000 + b"\n") -> None:
    """Envoie MANY_BYTES dans un thread de plus, qui s'arrête avec la connexion."""

    def run() -> None:
        with contextlib.suppress(OSError):
            peer.sock.sendall(line * (MANY_BYTES // len(line)))

    threading.Thread(target=run, daemon=True).start()


def throw_away(peer: Peer) -> None:
    """Lit et jette, dans un thread de plus : qui ne lirait pas serait déconnecté."""

    def run() -> None:
        with contextlib.suppress(OSError):
            while peer.sock.recv(1 << 20):
                pass

    threading.Thread(target=run, daemon=True).start()


def reset(peer: Peer) -> None:
    """Coupe net : le système envoie un reset au lieu d'une fin de flux."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# --- Recevoir ------------------------------------------------------------------


def test_un_recv_n_est_pas_un_message(naif, serveur):
    """TCP transporte un flux d'octets : deux messages envoyés peuvent n'en faire qu'un à recv.

    Le naïf colle son « Nom : » devant le tout, et la deuxième ligne n'a pas d'auteur.
    Garde : LineBuffer.take coupe les octets reçus sur les fins de ligne.
    """

    assert line_heard(naif(), "un\ndeux\n", "deux") == "deux"
    assert line_heard(serveur(), "un\ndeux\n", "deux") == "Alice : deux"


def test_le_nom_ne_se_colle_pas_au_premier_message(naif, serveur):
    """Un client rapide envoie son nom et un message d'un coup : recv rend les deux.

    Le naïf prend le tout pour un nom, de deux lignes.
    Garde : Room.receive traite les lignes une à une, la première étant le nom.
    """

    def scene(server) -> str:
        witness, _ = gather(server, "Bob")
        server.connect().send("Alice\nBonjour\n")
        return line_with(witness, "Bonjour")

    assert scene(naif()) == "Bonjour a rejoint le chat."
    assert scene(serveur()) == "Alice : Bonjour"


def test_un_caractere_coupe_par_recv_ne_tue_pas_le_thread(naif, serveur):
    """« é » fait deux octets : recv(1024) peut n'en rendre qu'un, que decode refuse.

    Le thread du naïf meurt d'une UnicodeDecodeError et son client n'est plus jamais lu.
    Garde : read_client garde des octets dans LineBuffer, et decode_line ne voit qu'une ligne
    entière.
    """
    message = "x" * 1023 + "é" * 1000 + "\n"  # coupé à 1024 octets comme à 2048
    server = naif()
    _, alice, _ = gather(server, "Alice", "Bob")
    alice.send(message)
    server.error_with("UnicodeDecodeError")

    assert line_heard(serveur(), message, "xxx") == f"Alice : {message.strip()}"


def test_une_fin_de_flux_n_est_pas_un_message_vide(naif, serveur):
    """Quand l'autre ferme, recv rend b"" aussitôt, et encore à chaque appel.

    Le naïf y voit un message vide : il le diffuse sans fin, à 100 % du processeur, et personne
    n'apprend le départ.
    Garde : read_client s'arrête à la première réponse vide de recv.
    """

    def scene(server) -> Peer:
        _, alice, bob = gather(server, "Alice", "Bob")
        line_with(alice, "Bob a rejoint")
        bob.sock.shutdown(socket.SHUT_WR)
        return alice

    alice = scene(naif())
    assert alice.file.read(24) == b"Bob : Bob : Bob : Bob : "
    assert scene(serveur()).line() == "* Bob a quitté le chat."


# --- Accueillir ----------------------------------------------------------------


def test_un_client_muet_n_empeche_pas_les_autres_d_entrer(naif, serveur):
    """Le naïf attend le nom dans la boucle d'accept : tant qu'un client se tait, nul n'entre.

    Garde : Acceptor.start_reader donne à chacun un thread, qui attend son nom à lui.
    """

    def scene(server) -> Peer:
        witness, _ = gather(server, "Bob")
        server.connect()
        server.connect().send("Alice\n")
        return witness

    assert hears_nothing(scene(naif()))
    assert scene(serveur()).line() == "* Alice a rejoint le chat."


def test_un_client_qui_coupe_net_n_arrete_pas_l_accueil(naif, serveur):
    """Un reset fait lever ConnectionResetError à recv.

    Chez le naïf, c'est dans la boucle d'accept : le serveur entier s'arrête.
    Garde : read_client rattrape OSError, pour ce client seul.
    """

    def scene(server) -> None:
        reset(server.connect())

    server = naif()
    scene(server)
    assert server.process.wait(PATIENCE) == 1
    server = serveur()
    scene(server)
    assert server.connect("Alice").barrier() == "* Connectés (1) : Alice"


def test_un_client_est_inscrit_avant_que_son_thread_demarre(naif, serveur):
    """Dès start(), le thread court : ce qu'on écrit après peut venir trop tard.

    Le naïf lance le thread, puis range le nom : un message déjà là lève KeyError. La fenêtre
    est étroite ; on l'élargit ici en faisant durer start().
    Garde : Acceptor.start_reader poste CONNECTED avant start(). Dans l'ordre inverse, un client
    nommé passerait pour un client dont on attend le nom, et serait déconnecté.
    """
    slow_start = (
        "import threading\n"
        "start = threading.Thread.start\n"
        "def slow_start(self):\n"
        "    start(self)\n"
        "    if self.name not in ('greffier', 'facteur'):\n"
        "        self.join({seconds})\n"
        "threading.Thread.start = slow_start\n"
    )
    glued = f"{'Alice':1023}\nBonjour\n"  # recv(1024) s'arrête juste après le nom
    server = naif(prelude=slow_start.format(seconds=PATIENCE))
    server.connect().send(glued)
    server.error_with("KeyError")

    server = serveur(patch=slow_start.format(seconds=1) + "s.NAME_SECONDS = 2")
    alice = server.connect()
    alice.send(glued)
    assert alice.line().startswith("* Bienvenue, Alice !")
    # Entré après elle et sans nom : quand vient son tour d'être déconnecté, le sien serait passé.
    assert server.connect().line().startswith("! Pas de nom en ")
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_deux_clients_n_ont_pas_le_meme_nom(naif, serveur):
    """Sans vérification, qui dit quoi ? « Alice : j'accepte » vient de l'une ou de l'autre.

    Garde : Room.join refuse un nom dont name_key est déjà prise.
    """

    def scene(server) -> str:
        witness, _ = gather(server, "Alice")
        double = server.connect()
        double.send("ALICE\n")
        double.send("Bob\n")
        return witness.line()

    assert scene(naif()).startswith("ALICE")
    assert scene(serveur()) == "* Bob a rejoint le chat."


def test_un_nom_n_imite_pas_la_ligne_d_un_autre(naif, serveur):
    """Un nom est recopié devant chaque message : « Alice : oui, et » en fait un faux.

    Garde : normalize_name n'admet ni blanc, ni « : », ni parenthèse.
    """

    def scene(server) -> Peer:
        witness, _ = gather(server, "Alice")
        liar = server.connect()
        liar.send("Alice : oui, et personne\n")
        return witness if isinstance(server, Naive) else liar

    assert scene(naif()).line().startswith("Alice : oui")
    assert scene(serveur()).line().startswith("! Nom refusé")


def test_le_serveur_ne_s_ouvre_pas_au_reseau_sans_le_dire(naif, serveur):
    """L'adresse "" veut dire « toutes » : toute la salle, tout le wifi peut entrer.

    127.0.0.2 joue ici une autre adresse de la machine.
    Garde : DEFAULT_HOST, cette machine seule ; s'ouvrir se demande avec --hote.
    """
    socket.create_connection(("127.0.0.2", naif().port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", serveur().port))


# --- Envoyer --------------------------------------------------------------------


def test_la_liste_ne_change_pas_pendant_qu_on_la_parcourt(naif):
    """Retirer un élément avance les suivants d'une place : la boucle en saute un.

    Chez le naïf, le thread d'un client qui part retire son socket de la liste que celui d'un
    autre parcourt : quelqu'un ne reçoit pas le message. (Avec un dictionnaire, la boucle lève
    RuntimeError.) De faux sockets rejouent ici cet entrelacement à coup sûr.
    Garde : Postman.deliver parcourt une copie, et un départ n'est qu'un courrier de plus.
    """
    received = []
    naive = {}
    exec(NAIVE_SERVER.partition("\nserver = ")[0], naive)

    class Door:
        def __init__(self, name: str) -> None:
            self.name = name

        def sendall(self, data: bytes) -> None:
            received.append(self.name)
            if self.name == "Bob":
                naive["clients"].remove(doors[0])  # ce que ferait le thread d'Alice

    doors = [Door("Alice"), Door("Bob"), Door("Chloé")]
    naive["clients"] += doors
    naive["broadcast"]("Bonjour\n")
    assert received == ["Alice", "Bob"]

    with contextlib.ExitStack() as stack:
        postman, peers = postman_with(stack, "Alice", "Bob", "Chloé", "David")
        clients = {client.name: client for client in postman.clients}
        for mail in (
            serveur_exo.Mail(serveur_exo.Event.LINES, clients["David"], [b"Bonjour"]),
            serveur_exo.Mail(serveur_exo.Event.GONE, clients["Alice"]),
        ):
            postman.inbox.put(mail)
        postman.make_round(postman.wait_for_mail(0), more=1)
        for peer in peers[1:3]:
            assert line_with(peer, "Bonjour") == "David : Bonjour"
            assert peer.line() == "* Alice a quitté le chat."


def test_send_peut_n_envoyer_que_le_debut(naif, serveur):
    """send rend le nombre d'octets pris ; le reste est à envoyer ensuite, ou il est perdu.

    C'est rare avec un socket qui bloque, et courant dès qu'on lui donne un délai : on le fait
    ici au naïf, avec de petits tampons, et un client qui lit lentement reçoit des lignes
    amputées.
    Garde : Postman.send_to garde dans l'outbox ce que le système n'a pas pris.
    """
    small = "setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)"

    def torn_line(server) -> str:
        _, slow, alice = gather(server, "Lent", "Alice")
        line_with(slow, "Alice a rejoint")
        alice.send("".join(f"{'x' * 900}{n:04}\n" for n in range(3000)) + "fin\n")
        while "fin" not in (line := slow.line()):
            if not re.fullmatch(r"(Alice : )?x{900}(Alice : )?\d{4}|.* a quitté le chat\.", line):
                return line
        return ""

    change = {
        ".sendall(": ".send(",
        "client, address = server.accept()": "client, address = server.accept()\n"
        f"    client.settimeout({PATIENCE}); client.{small}",
    }
    server = naif(change)
    server.read_console()
    assert torn_line(server)
    patch = f"prepare = s.prepare\ns.prepare = lambda sock: (prepare(sock), sock.{small})"
    assert not torn_line(serveur("--debit", "0", patch=f"import socket\n{patch}"))


def test_deux_threads_n_envoient_pas_sur_le_meme_socket(naif, serveur):
    """sendall envoie en plusieurs fois : deux threads qui s'en servent ensemble mêlent leurs lignes.

    Garde : une tournée à la fois, sous Postman.round_lock, et elle seule envoie.
    """

    def torn_line(server) -> str:
        _, reader, alice, bob = gather(server, "Lecteur", "Alice", "Bob")
        line_with(reader, "Bob a rejoint")
        for talker, letter in ((alice, b"a"), (bob, b"b")):
            throw_away(talker)
            send_much(talker, letter * 1000 + b"\n")
        for _ in range(2 * (MANY_BYTES // 1001)):
            line = reader.line()
            if not re.fullmatch(r"(Alice : )?a*(Alice : )?a*|(Bob : )?b*(Bob : )?b*|.*quitté.*", line):
                return line
        return ""

    server = naif()
    server.read_console()
    assert torn_line(server)
    assert not torn_line(serveur("--debit", "0"))


def test_tous_voient_les_messages_dans_le_meme_ordre(naif, serveur):
    """Deux threads qui envoient chacun à tous peuvent se doubler en chemin.

    Celui d'Alice a servi Chloé, pas encore David ; celui de Bob sert alors les deux : David lit
    la réponse avant la question.
    Garde : Postman.run, sous round_lock : une tournée sert tout le monde avant que la suivante
    commence.
    """

    def orders(server) -> list[list[str]]:
        witness, chloe, david, alice, bob = gather(server, "Chloé", "David", "Alice", "Bob")
        throw_away(witness)
        for peer in (chloe, david):
            line_with(peer, "Bob a rejoint")
        for talker, letter in ((alice, b"a"), (bob, b"b")):
            throw_away(talker)
            send_much(talker, letter * 1000 + b"\n")
        with ThreadPoolExecutor() as pool:  # tous deux lisent : qui ne lit pas serait déconnecté
            return list(pool.map(lambda peer: [peer.line() for _ in range(MANY_LINES)], (chloe, david)))

    server = naif()
    server.read_console()
    chloe, david = orders(server)
    assert chloe != david
    patience = f"s.CATCH_UP_SECONDS = {PATIENCE}"  # une machine chargée peut lire lentement
    chloe, david = orders(serveur("--debit", "0", patch=patience))
    assert chloe == david


def test_un_client_mort_ne_fait_pas_taire_un_innocent(naif, serveur):
    """Écrire à un client parti lève une exception... dans le thread de celui qui parle.

    Celui du naïf en meurt : Alice ne sera plus jamais lue, sans le savoir.
    Garde : Postman.send_to rattrape OSError pour ce destinataire, et continue.
    """

    def scene(server) -> Peer:
        # Le mort avait beaucoup dit : le lecteur de notre serveur, freiné par le débit, ne sait
        # pas encore qu'il est mort quand Alice parle.
        _, dead, alice, bob = gather(server, "Mort", "Alice", "Bob")
        dead.send("x\n" * 500)
        reset(dead)
        alice.send("Bonjour\n")
        return bob

    server = naif()
    scene(server)
    server.error_with("in broadcast")
    assert line_with(scene(serveur()), "Bonjour") == "Alice : Bonjour"


def test_qui_ne_lit_plus_ne_bloque_pas_les_autres(naif, serveur):
    """Quand les tampons d'un client sont pleins, sendall attend qu'il lise, peut-être toujours.

    Chez le naïf, tous ceux qui parlent finissent par attendre avec lui : le chat est gelé.
    Garde : send_now n'attend jamais ; Postman.watch_delay renvoie le retardataire après une
    seconde.
    """

    def scene(server) -> Peer:
        _, stuck, alice, bob = gather(server, "Fige", "Alice", "Bob")
        send_much(alice)
        return bob

    server = naif()
    server.read_console()
    bob = scene(server)
    while not hears_nothing(bob):
        bob.sock.recv(1 << 20)
    bob = scene(serveur("--debit", "0"))
    received = 0
    while received < MANY_BYTES:
        received += len(bob.sock.recv(1 << 20))


def test_une_console_que_personne_ne_lit_n_arrete_pas_le_chat(naif, serveur):
    """print attend comme sendall : un Ctrl+S, un tube plein, et le serveur est gelé.

    Garde : Output.put confie les lignes à un greffier, et n'attend pas.
    """

    def scene(server) -> Peer:
        _, alice, bob = gather(server, "Alice", "Bob")
        alice.send(("x" * 1000 + "\n") * 1000 + "fin\n")
        return bob

    bob = scene(naif())
    while not hears_nothing(bob):
        assert b"fin" not in bob.sock.recv(65536)
    server = serveur("--debit", "0", stdout=subprocess.PIPE)
    assert line_with(scene(server), "fin") == "Alice : fin"


# --- Ce que l'on voit -------------------------------------------------------------


def test_un_message_ne_pilote_pas_le_terminal_des_autres(naif, serveur):
    """Un terminal obéit aux codes qu'on lui écrit : effacer l'écran, changer le titre, pire.

    Garde : clean, au serveur pour tous et au client avant d'afficher.
    """

    erase = "\x1b[2Jcoucou\n"
    assert line_heard(naif(), erase, "coucou") == "Alice : \x1b[2Jcoucou"
    assert line_heard(serveur(), erase, "coucou") == "Alice : \ufffd[2Jcoucou"


def test_une_ligne_qui_arrive_ne_coupe_pas_celle_que_l_on_tape(serveur, taper):
    """Deux threads écrivent sur un seul écran : ce qui arrive se colle à ce que l'on tape.

    Garde : Terminal.frame insère une rangée au-dessus, et le curseur revient où il était.
    """

    def rows(*options: str, program: str = "") -> list[str]:
        server = serveur()
        alice = taper(*options, str(server.port), program=program)
        enter(alice)
        alice.type("à moitié")
        alice.wait_for("à moitié")
        server.connect("Bob").send("Salut\n")
        alice.wait_for("Bob : Salut")
        return alice.complete_rows()

    naive_rows = rows(program=NAIVE_CLIENT)
    assert any(row.endswith("à moitié* Bob a rejoint le chat.") for row in naive_rows)
    assert rows("--port")[-2:] == ["Bob : Salut", "Votre message : à moitié"]


def test_la_fin_du_serveur_se_voit_sans_toucher_au_clavier(serveur, taper):
    """input() attend une touche, quoi qu'il arrive au réseau.

    Le client naïf offre encore d'écrire à un serveur mort, et le premier envoi paraît réussir.
    Garde : call_keyboard interrompt input() par un signal, répété jusqu'à ce qu'il passe.
    """

    def orphan(*options: str, program: str = "") -> Typist:
        server = serveur()
        alice = taper(*options, str(server.port), program=program)
        enter(alice)
        server.stop(signal.SIGKILL)
        return alice

    alice = orphan(program=NAIVE_CLIENT)
    alice.type("il y a quelqu'un ?\r")
    alice.wait_for("Votre message : ", times=2)
    alice = orphan("--port")
    assert alice.end() == 1
    assert "Connexion au serveur perdue." in alice.seen


def test_close_ne_reveille_pas_le_thread_qui_recoit(serveur, taper):
    """close rend le numéro du socket ; un thread déjà dans recv y reste, et la connexion aussi.

    Face à un serveur qui ne ferme pas, le client naïf est encore là après « exit » : un programme
    ne finit qu'avec tous ses threads. Au serveur, le thread et la place d'un client déconnecté
    seraient perdus.
    Garde : shutdown, dans talk pour le client et dans Postman.close_when_done pour le serveur.
    """

    def leave(*options: str, program: str = "") -> Typist:
        alice = taper(*options, port, program=program)
        alice.wait_for("Entrez votre nom : ")
        alice.type("Alice\r")
        peers.append(listener.accept()[0])
        peers[-1].sendall(b"* Bienvenue, Alice !\n")
        alice.wait_for("Votre message : ")
        alice.wait_for("Bienvenue")
        alice.type("exit\r")
        return alice

    def hangs(alice: Typist) -> bool:
        try:
            alice.process.wait(SILENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return True
        return False

    peers = []
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        stack.callback(lambda: [peer.close() for peer in peers])
        port = str(listener.getsockname()[1])
        # Plusieurs fois, car close passe s'il devance le retour du thread dans recv.
        assert any(hangs(leave(program=NAIVE_CLIENT)) for _ in range(5))
        assert leave("--port").end() == 0

    server = serveur("--max-clients", "1", patch="s.FAREWELL_SECONDS = 0.2")
    refused = server.connect()
    refused.send("?\n" * 5)  # déconnecté, mais il ne ferme pas
    answer = ""
    while not answer.startswith("* Bienvenue, Alice !"):
        newcomer = server.connect()
        newcomer.send("Alice\n")
        answer = newcomer.line()
