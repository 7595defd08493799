"""Le vrai serveur, sur la boucle locale, dans l'ordre du README : entrer, parler, partir…

Un test connaît du serveur ce qu'on en voit par un socket, et ses limites (noms en majuscules). Là
où il faut forcer un croisement rare, `patch` enveloppe s.send_now, une fonction du protocole ou du
système ; il y dispose de send et recv, les originaux, et de tell, qui écrit une ligne sur stderr.
"""

import ast
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import serveur_exo
from conftest import (
    HAS, IS_WINDOWS, PATIENCE, ROOT, Peer, Server, needs, peak_kilobytes, proc, wait_until,
)  # fmt: skip

FULL = "! Le serveur est complet, réessayez plus tard."
GONE = "le programme qui lisait s'est arrêté"  # un autre programme lisait notre sortie


# --- Le salon : les règles ------------------------------------------------------------


def test_un_message_va_a_tous_les_autres_avec_ses_blancs(lobby):
    alice, bob, eve = lobby.room("Alice", "Bob", "Eve")
    alice.send("  Bonjour !\u00a0 \n")
    assert bob.line() == eve.line() == "Alice :   Bonjour !\u00a0 "
    assert alice.barrier() == "* Connectés (3) : Alice, Bob, Eve"


def test_une_ligne_blanche_a_la_place_du_nom_n_est_pas_un_refus(lobby):
    other = lobby.connect()
    other.send("\n \t \n\u00a0\u200b\ufeff\n" * 5)
    other.join("Bob")


@pytest.mark.parametrize(("first", "second"), [("Élise", "E\u0301LISE"), ("O'Brien", "O’Brien")])
def test_un_nom_deja_pris_sous_une_autre_ecriture_est_refuse(lobby, first, second):
    lobby.connect(first)
    other = lobby.connect()
    other.send(f"{second}\n")
    assert other.line().startswith("! Le nom ")
    other.join("Zoé")


def test_cinq_refus_ferment(lobby):
    alice, other = lobby.connect("Alice"), lobby.connect()
    other.send(b"*\n\xfe\na b\n!\n" + b"x" * 5000 + b"\nBob\n")
    assert [line[:2] for line in iter(other.line, "")] == ["! "] * 5
    assert alice.barrier() == "* Connectés (1) : Alice"


@pytest.mark.parametrize("word", ["exit", " EXIT\u00a0", "/quitter", "/exit maintenant", "/QUIT"])
def test_partir_sans_avoir_donne_de_nom_ne_laisse_aucune_trace(lobby, word):
    alice, other = lobby.connect("Alice"), lobby.connect()
    other.send(f"{word}\nBob\n")
    assert other.line() == ""
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_un_message_prive_ne_va_qu_a_un_seul_ni_a_la_console_ni_au_journal(start_server, tmp_path):
    log = tmp_path / "journal.txt"
    server = start_server("--journal", str(log))
    alice, bob, eve = server.room("Alice", "Bob", "Eve")
    alice.send("/MP BOB //secret \n/privé Zoé secret\n/privé Alice secret\nfin\n")
    assert [bob.line(), bob.line()] == ["Alice (privé) : //secret ", "Alice : fin"]
    assert eve.line() == "Alice : fin"
    assert alice.line() == "* Message privé envoyé à Bob."
    assert server.stop() == 0
    shown = "\n".join(server.console_lines()) + log.read_text(encoding="utf-8")
    assert shown.count("Alice : fin") == 2 and "secret" not in shown
    assert [server.error(), server.error()] == ["Serveur arrêté.", ""]  # ni sur stderr


def test_l_aide_donne_une_commande_par_avis(lobby):
    alice = lobby.connect("Alice")
    alice.send("/help\n/liste\n")
    lines = alice.lines_until("* Connectés (1) : Alice")
    assert all(line.startswith("* ") for line in lines)
    for word in ("/liste", "/privé NOM message", "/quitter", "exit", "/aide", "//texte"):
        assert any(word in line for line in lines)


def test_des_messages_gardent_leur_place_autour_d_une_commande(lobby):
    alice, bob = lobby.room("Alice", "Bob")
    alice.send("avant\n//liste\n/privé Bob Psst\naprès\n")
    assert [bob.line() for _ in range(4)] == [
        "Alice : avant", "Alice : /liste", "Alice (privé) : Psst", "Alice : après",
    ]  # fmt: skip


@pytest.mark.parametrize("line", [b"\xfe\xfe", b"x" * 4097], ids=["pas_utf8", "trop_longue"])
def test_une_mauvaise_ligne_ne_derange_que_son_auteur(lobby, line):
    alice, bob = lobby.room("Alice", "Bob")
    alice.send(line + b"\nsuite\n")
    assert alice.line().startswith("! ")
    assert bob.line() == "Alice : suite"
    assert alice.barrier() == "* Connectés (2) : Alice, Bob"


def test_seuls_les_messages_les_arrivees_et_les_departs_sont_horodates(start_server):
    server = start_server("--horodatage")
    bob, alice = server.connect("Bob"), server.connect("Alice")
    alice.send("Bonjour\n/privé Bob Psst\n/liste\n/danse\nexit\n")
    stamped = [re.fullmatch(r"\[\d\d:\d\d\] (.*)", bob.line())[1] for _ in range(4)]
    assert stamped == [
        "* Alice a rejoint le chat.", "Alice : Bonjour", "Alice (privé) : Psst",
        "* Alice a quitté le chat.",
    ]  # fmt: skip
    assert [line.split()[1] for line in iter(alice.line, "")] == [
        "Message", "Connectés", "Commande", "Au",
    ]  # fmt: skip


# --- Entrer ------------------------------------------------------------------------


def test_la_session_de_l_exercice(start_server):
    server = start_server()
    assert server.listening == f"Écoute sur 127.0.0.1:{server.port} (Ctrl+C pour arrêter)."
    alice, bob = server.room("Alice", "Bob")
    visitor = server.connect()
    visitor.send("exit\n")
    assert visitor.line() == ""
    visitor.close()
    alice.send("Bonjour !\nexit\nencore\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]
    alice.close()
    assert bob.line() == "Alice : Bonjour !"
    assert bob.line() == "* Alice a quitté le chat."
    assert bob.barrier() == "* Connectés (1) : Bob"
    assert server.stop(signal.SIGINT) == 0
    assert bob.line() == "* Le serveur s'arrête."
    assert server.console_lines() == [
        "Serveur en attente de connexions...",
        "Alice (127.0.0.1) a rejoint le chat.",
        "Bob (127.0.0.1) a rejoint le chat.",
        "Alice : Bonjour !",
        "Alice a quitté le chat.",
    ]
    assert server.error() == "Serveur arrêté."


def test_un_client_sans_nom_a_temps_est_ferme(start_server):
    patch = "now = s.time.monotonic; s.time.monotonic = lambda: 60 * now(); s.IDLE_SECONDS = 0.1"
    mute = start_server(patch=patch).connect()
    mute.send("Al")
    assert [mute.line(), mute.line()] == ["! Aucun nom admis en 60 s : connexion fermée.", ""]


@pytest.mark.parametrize("drip", ["x", "\n", " \n"], ids=["sans_fin", "vides", "blanches"])
def test_un_client_qui_envoie_sans_cesse_sauf_un_nom_est_ferme_aussi(start_server, drip):
    server = start_server(patch="s.STATE_SECONDS['naming'] = 0.5")
    mute = server.connect()
    with pouring(drip * 1000, mute):
        *_, last = iter(mute.line, "")
    assert last == "! Aucun nom admis en 0.5 s : connexion fermée."


@contextlib.contextmanager
def pouring(text: str, *peers: Peer):
    """Pendant ce bloc, chaque client envoie ce texte sans cesse."""

    def pour(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.send(text)

    threads = [threading.Thread(target=pour, args=[peer]) for peer in peers]
    for thread in threads:
        thread.start()
    yield
    for peer, thread in zip(peers, threads):
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_RDWR)  # son envoi, peut-être bloqué, se termine
        thread.join()


def test_un_nom_donne_a_temps_n_a_plus_de_delai(start_server):
    server = start_server(patch="s.STATE_SECONDS['naming'] = 1")
    alice = enter_when_there_is_room(server, "Alice")  # une machine lente peut la refuser d'abord
    mute = server.connect()
    assert mute.line().startswith("! Aucun nom admis")
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_un_nom_refuse_donne_une_minute_de_plus(start_server):
    """Ici, quelqu'un réfléchit cinquante secondes avant chaque essai."""
    patch = """
now, normalize = [0], s.protocol.normalize_name
def think(text):
    now[0] += 50
    return normalize(text)
s.time.monotonic, s.protocol.normalize_name = lambda: now[0], think
"""
    undecided = start_server(patch=patch).connect()
    for _ in range(3):
        undecided.send("*\n")
        assert undecided.line().startswith("! Nom refusé")
    undecided.join("Alice")


def test_un_client_parti_qui_ne_ferme_pas_rend_sa_place(start_server):
    server = start_server("--max-clients", "1", patch="s.STATE_SECONDS['leaving'] = 0.2")
    alice = server.connect("Alice")
    alice.send("exit\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]
    enter_when_there_is_room(server, "Bob")


def test_un_serveur_complet_refuse_puis_accepte_de_nouveau(start_server):
    """Le nom de celui qu'on refuse est déjà là : fermer sans le lire peut détruire la réponse."""
    patch = """
accept, close = s.socket.socket.accept, s.socket.socket.close
def accept_when_the_name_is_there(listener):
    sock, address = accept(listener)
    s.select.select([sock], [], [])
    return sock, address
def close_what_is_read(sock):
    with s.contextlib.suppress(OSError, ValueError):
        if s.select.select([sock], [], [], 0)[0] and sock.recv(1, s.socket.MSG_PEEK):
            tell("des octets non lus")
    close(sock)
s.socket.socket.accept, s.socket.socket.close = accept_when_the_name_is_there, close_what_is_read
"""
    server = start_server("--max-clients", "1", patch=patch)
    alice, other = server.connect("Alice"), server.connect()
    other.send("Bob\n")
    assert [other.line(), other.line()] == [FULL, ""]
    assert server.error() == "Le serveur est complet : 127.0.0.1 refusé."
    alice.send("exit\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]
    alice.close()
    late = enter_when_there_is_room(server, "Bob")
    assert late.barrier() == "* Connectés (1) : Bob"


def enter_when_there_is_room(server: Server, name: str) -> Peer:
    while True:
        peer = server.connect()
        peer.send(f"{name}\n")
        if peer.line().startswith(f"* Bienvenue, {name}"):
            return peer
        peer.close()


def test_quand_les_threads_manquent_le_serveur_refuse_et_le_chat_continue(start_server):
    patch = """
start = s.threading.Thread.start
def start_some(thread):
    if thread.name == "lecteur" and sum(t.name == "lecteur" for t in s.threading.enumerate()) > 1:
        raise RuntimeError("can't start new thread")
    start(thread)
s.threading.Thread.start = start_some
"""
    server = start_server(patch=patch)
    alice, bob = server.room("Alice", "Bob")
    other = server.connect()
    assert [other.line(), other.line()] == [FULL, ""]
    assert server.error() == "Impossible de créer un thread de plus : 127.0.0.1 refusé."
    bob.close()
    assert alice.line() == "* Bob a quitté le chat."
    enter_when_there_is_room(server, "Carole")


def test_quand_les_fichiers_manquent_un_client_de_trop_est_refuse(start_server):
    needs("des limites (resource)")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))"
    answers = [peer.line() for peer in crowd(start_server(patch=limit), 50)]
    admitted = 50 - serveur_exo.SPARE_FILES
    assert [answer.partition(",")[0] for answer in answers[:admitted]] == ["* Bienvenue"] * admitted
    assert answers[admitted:] == [FULL] * (50 - admitted)


def crowd(server: Server, count: int) -> list[Peer]:
    """Renvoie des clients qui entrent tous à la fois : u0, u1…"""
    peers = [server.connect() for _ in range(count)]
    for number, peer in enumerate(peers):
        with contextlib.suppress(ConnectionError):  # il est déjà refusé
            peer.send(f"u{number}\n")
    return peers


def test_la_limite_de_fichiers_est_relevee_sans_un_mot(start_server):
    needs("des limites (resource)")
    limit = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (30, hard))
"""
    server = start_server(patch=limit)
    assert {peer.line().partition(",")[0] for peer in crowd(server, 100)} == {"* Bienvenue"}
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_accept_qui_echoue_est_signale_une_fois_et_marque_une_pause(start_server):
    """Sans pause, accept échouerait sans fin, à 100 % de processeur : ici, jusqu'à trois pauses."""
    patch = """
import errno
accept, sleep, pauses = s.socket.socket.accept, s.time.sleep, []
def fail(listener):
    if len(pauses) < 3:
        raise OSError(errno.ENFILE, "File table overflow")
    return accept(listener)
def pause(seconds):
    pauses.extend([seconds] if seconds == s.ACCEPT_SECONDS else [])
    sleep(seconds)
s.ACCEPT_SECONDS, s.socket.socket.accept, s.time.sleep = 0.123, fail, pause
"""
    server = start_server(patch=patch)
    server.connect("Alice").close()
    assert server.error().startswith("Impossible d'accepter un client : ")
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_mille_clients_entrent_et_s_entendent(start_server):
    with contextlib.suppress(ImportError):  # Windows n'a pas cette limite
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= hard < 1100:  # -1 : aucune limite
            pytest.skip("demande mille fichiers ouverts")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))  # ceux du test, ici
    server = start_server()
    peers = crowd(server, 1000)
    for number, peer in enumerate(peers):
        assert peer.line().startswith(f"* Bienvenue, u{number} !")
    peers[0].send("Bonjour\n")
    for peer in peers[1:]:
        while (line := peer.line()) != "u0 : Bonjour":
            assert line.endswith(" a rejoint le chat.")
    if HAS["/proc"]:
        assert len(list((proc(server.process) / "task").iterdir())) <= 1 + 1000 + 3
    assert server.stop() == 0


# --- Parler ------------------------------------------------------------------------


def test_tous_la_console_et_le_journal_ont_le_meme_ordre(start_server, tmp_path):
    """Messages, arrivées et départs se croisent ; personne ne les voit dans un autre ordre."""
    log = tmp_path / "journal.txt"
    server = start_server("--debit", "0", "--journal", str(log))
    listeners = server.room("oreille0", "oreille1")
    talkers = [server.connect() for _ in range(5)]
    for number, talker in enumerate(talkers):
        text = f"parle{number}\n" + "".join(f"{n}\n" for n in range(200)) + "exit\n"
        threading.Thread(target=talker.send, args=[text]).start()
    seen = [[peer.line() for _ in range(5 * (1 + 200 + 1))] for peer in listeners]
    assert seen[0] == seen[1]
    for number in range(5):
        name = f"parle{number}"
        assert [line for line in seen[0] if line.removeprefix("* ").startswith(f"{name} ")] == [
            f"* {name} a rejoint le chat.",
            *(f"{name} : {n}" for n in range(200)),
            f"* {name} a quitté le chat.",
        ]
    for talker in talkers:
        talker.close()
    assert server.stop() == 0
    shown = [line.replace(" (127.0.0.1)", "") for line in server.console_lines()[3:]]
    assert shown == [line.removeprefix("* ") for line in seen[0]]
    logged = log.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in logged] == server.console_lines()[1:]


def test_mille_lignes_en_un_envoi_arrivent_toutes(start_server):
    server = start_server("--debit", "0")
    alice, bob = server.connect("Alice"), server.connect()
    bob.send("Bob\r\n" + "".join(f"{n}\r\n" for n in range(1000)) + "fin")
    bob.sock.shutdown(socket.SHUT_WR)
    assert alice.line() == "* Bob a rejoint le chat."
    assert alice.lines_until("* Bob a quitté le chat.") == [
        *(f"Bob : {n}" for n in range(1000)), "Bob : fin",
    ]  # fmt: skip


def test_une_ligne_deposee_pendant_une_tournee_n_attend_pas(start_server):
    """Le veilleur doit être réveillé, même pendant sa propre tournée : ici, sans réveil, il dormirait
    dix minutes. Bob parle pendant la tournée d'Alice, Chloé pendant celle du veilleur."""
    patch = """
def slow(sock, data):
    sent = send(sock, data)
    s.time.sleep(0.3 if b"pendant" in data else 0)
    return sent
s.send_now, s.IDLE_SECONDS = slow, 600
"""
    alice, bob, chloe = start_server(patch=patch).room("Alice", "Bob", "Chloé")
    alice.send("pendant 1\n")
    assert bob.line() == "Alice : pendant 1"
    bob.send("pendant 2\n")
    assert alice.line() == "Bob : pendant 2"
    chloe.send("fin\n")
    assert alice.line() == "Chloé : fin"


def test_une_tournee_qui_dure_ne_fait_pas_lire_d_avance(start_server):
    """Un client a un dépôt au plus en attente : TCP le freine, la mémoire ne grandit pas."""
    patch = """
calls = 0
def counted(sock, size):
    global calls
    calls += 1
    return recv(sock, size)
def slow(sock, data):
    sent, before = send(sock, data), calls
    if b"attends" in data:
        s.time.sleep(0.5)
        tell("lu d'avance" if calls > before + 5 else "peu lu")
    return sent
s.socket.socket.recv, s.send_now = counted, slow
"""
    server = start_server("--debit", "0", patch=patch)
    alice, bob = server.room("Alice", "Bob")
    alice.send("attends\n")
    assert bob.line() == "Alice : attends"
    threading.Thread(target=bob.send, args=[f"{'x' * 1000}\n" * 5000 + "exit\n"]).start()
    assert len(alice.lines_until("* Bob a quitté le chat.")) == 5000
    assert server.error() == "peu lu"


# Écrit sur stderr, à la fin, le plus grand nombre d'octets qu'une tournée a destinés à un client.
MEASURE_ROUNDS = """
import atexit
left, added = {}, [0]
def measure(sock, data):
    added.append(len(data) - left.get(sock, 0))
    sent = send(sock, data)
    left[sock] = len(data) - sent
    return sent
s.send_now = measure
atexit.register(lambda: tell(max(added)))
"""


def largest_round(server: Server) -> int:
    """Arrête un serveur lancé avec MEASURE_ROUNDS ; renvoie ce qu'il a mesuré."""
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."
    return int(server.error())


def test_une_tournee_n_envoie_pas_tout_ce_que_les_clients_ont_depose(start_server):
    """Un client lent en garde une copie à lui : cent clients lents, cent copies de la tournée."""
    patch = """
def pause_once(sock, data):
    if b"xxx" in data:
        s.send_now = measure
        s.time.sleep(0.5)  # les autres déposent
    return measure(sock, data)
s.send_now = pause_once
"""
    server = start_server("--debit", "0", patch=MEASURE_ROUNDS + patch)
    listener, talkers = server.connect("Oreille"), [server.connect() for _ in range(12)]
    for number, talker in enumerate(talkers):
        talker.send(f"u{number}\n" + f"{'x' * 4000}\n" * 20)
    said = 0
    while said < 12 * 20:
        said += " : " in listener.line()
    assert largest_round(server) <= 1.5 * serveur_exo.ROUND_BYTES


def test_une_avalanche_de_petites_lignes_n_emplit_pas_une_tournee(start_server):
    """Deux octets reçus en font 133 : sans borne par dépôt, 64 Kio en feraient 4 Mio par client."""
    server = start_server("--debit", "0", patch=MEASURE_ROUNDS)
    name = "𐌰" * 32  # quatre octets par lettre
    talker, listener = server.room(name, "Bob")
    threading.Thread(target=talker.send, args=["a\n" * 100_000 + "exit\n"]).start()
    assert len(listener.lines_until(f"* {name} a quitté le chat.")) == 100_000
    assert largest_round(server) <= serveur_exo.ROUND_BYTES


def test_un_client_bavard_est_freine_sans_rien_perdre_ni_gener_les_autres(start_server):
    server = start_server(patch="s.BURST_LINES = 5")
    alice, bob = server.room("Alice", "Bob")
    bob.send("".join(f"{n}\n" for n in range(30)))
    seen = [alice.line()]
    alice.send("/liste\n")
    seen += [alice.line() for _ in range(30)]
    answer = seen.index("* Connectés (2) : Alice, Bob")
    assert answer < 30  # Alice n'a pas attendu que Bob ait fini
    del seen[answer]
    assert seen == [f"Bob : {n}" for n in range(30)]


def test_ce_qui_reste_d_un_client_bavard_et_coupe_est_jete(start_server):
    server = start_server("--debit", "5", patch="s.BURST_LINES = 5")
    alice, bob = server.room("Alice", "Bob")
    bob.send("a\n" * 5000)
    assert alice.line() == "Bob : a"
    bob.reset()
    assert len(alice.lines_until("* Bob a quitté le chat.")) < 100


def test_cent_lignes_passent_d_avance_puis_vingt_par_seconde(start_server):
    """Ici, l'heure avance des pauses des lecteurs seuls, et d'une heure au mot « repos »."""
    patch = """
now, sleep = [0], s.time.sleep
def rest(seconds):
    if s.threading.current_thread().name == "lecteur":
        now[0] += seconds
    else:
        sleep(seconds)
def show_time(sock, data):
    now[0] += 3600 * (b"repos" in data)
    if b"fin" in data:
        tell(now[0])
    return send(sock, data)
s.time.monotonic, s.time.sleep, s.send_now = lambda: now[0], rest, show_time
"""
    server = start_server(patch=patch)
    alice, bob = server.room("Alice", "Bob")
    times = []
    for count in (298, 299):  # le nom de Bob est la première de ses trois cents lignes
        bob.send("a\n" * count + "fin\n")
        assert alice.lines_until("Bob : fin") == ["Bob : a"] * count
        times.append(float(server.error()))
        bob.send("repos\n")
        assert alice.line() == "Bob : repos"
    assert times[0] == pytest.approx(200 / 20, abs=0.2)
    assert times[1] - times[0] - 3600 == pytest.approx(200 / 20, abs=0.2)


# --- Partir ------------------------------------------------------------------------


def test_l_au_revoir_est_suivi_de_la_fermeture_sans_que_le_client_ferme(start_server):
    server = start_server(patch=f"s.STATE_SECONDS['leaving'] = {10 * PATIENCE}")
    alice = server.connect("Alice")
    alice.send("exit\nencore\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]


def test_un_client_coupe_au_milieu_d_une_ligne_part_comme_un_autre(start_server):
    alice, bob = start_server().room("Alice", "Bob")
    bob.send("une moitié de li")
    bob.reset()
    assert alice.line() == "* Bob a quitté le chat."
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_une_faute_imprevue_dans_un_lecteur_ne_laisse_pas_de_fantome():
    """`finally` : son client quitte le chat, et la trace de la faute est sur stderr."""
    patch = """
feed = s.protocol.LineBuffer.feed
def fail(buffer, data):
    if b"faute" in data:
        raise MemoryError
    return feed(buffer, data)
s.protocol.LineBuffer.feed = fail
"""
    server = Server(patch=patch)
    try:
        alice, bob = server.room("Alice", "Bob")
        bob.send("faute\n")
        assert alice.line() == "* Bob a quitté le chat."
        while server.error() != "MemoryError":  # à la fin de la trace, qui suit le départ
            assert server.process.poll() is None
    finally:
        server.end()


def test_cinq_cents_passages_ne_laissent_rien(start_server):
    server = start_server()
    alice = server.connect("Alice")

    def kept() -> tuple[int, int]:
        return tuple(len(list((proc(server.process) / what).iterdir())) for what in ("fd", "task"))

    before = kept()
    for number in range(500):
        visitor = server.connect()
        visitor.send(f"v{number}\nexit\n" if number % 2 else f"v{number}\n")
        visitor.reset() if number % 3 == 0 else visitor.close()
    server.connect("Fin").close()  # tous sont donc acceptés
    alice.lines_until("* Fin a quitté le chat.")
    wait_until(lambda: kept() == before, "il reste des fichiers ouverts ou des threads")
    alice.send("/liste\n")
    alice.lines_until("* Connectés (1) : Alice")


# Écrit sur stderr les options d'un socket accepté, au premier envoi (l'accueil du client).
SHOW_OPTIONS = """
NAMES = ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
def show_options(sock, data):
    found = {name: sock.getsockopt(6, getattr(s.socket, name)) for name in NAMES}
    found["SO_KEEPALIVE"] = sock.getsockopt(s.socket.SOL_SOCKET, s.socket.SO_KEEPALIVE)
    tell(found)
    return send(sock, data)
s.send_now = show_options
"""


def options_of(server: Server) -> dict[str, int]:
    """Renvoie les options du socket que le serveur a pour un nouveau client."""
    needs("TCP_USER_TIMEOUT")
    server.connect("Alice")
    return ast.literal_eval(server.error())


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.7"], ids=["ici", "ailleurs"])
def test_un_socket_accepte_est_sonde_et_envoie_sans_attendre(start_server, host):
    """Sur cette machine personne ne disparaît : un client lent n'y est jamais tenu pour disparu."""
    elsewhere = f"""
accept = s.socket.socket.accept
s.socket.socket.accept = lambda listener: (accept(listener)[0], ({host!r}, 5000))
s.socket.socket.getpeername = lambda sock: ({host!r}, 5000)
"""
    found = options_of(start_server(patch=SHOW_OPTIONS + elsewhere))
    assert found["TCP_NODELAY"] and found["SO_KEEPALIVE"]
    assert found["TCP_KEEPIDLE"] + found["TCP_KEEPINTVL"] * found["TCP_KEEPCNT"] == 120
    assert found["TCP_USER_TIMEOUT"] == (0 if host == "127.0.0.1" else 120_000)


def test_un_client_qui_envoie_vite_n_obtient_pas_un_plus_grand_tampon(start_server):
    """Sans limite, Linux l'agrandit jusqu'à 6 Mio : autant de lignes freinées y attendraient."""
    patch = """
def show_size(sock, data):
    if b"Au revoir" in data:
        tell(sock.getsockopt(s.socket.SOL_SOCKET, s.socket.SO_RCVBUF))
    return send(sock, data)
s.send_now = show_size
"""
    server = start_server("--debit", "0", patch=patch)
    server.connect("Alice").send(b"x" * 20_000_000 + b"\nexit\n")
    assert int(server.error()) in (64 * 1024, 2 * 64 * 1024)  # Linux en montre le double


@pytest.mark.parametrize("accepted", ["TCP_NODELAY", "TCP_KEEPCNT"])
def test_une_option_que_le_systeme_refuse_n_empeche_pas_les_autres(start_server, accepted):
    refuse = f"""
import errno
setsockopt = s.socket.socket.setsockopt
def refuse(sock, level, option, value):
    if level == 6 and option != s.socket.{accepted} or option == s.socket.SO_KEEPALIVE:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")
    setsockopt(sock, level, option, value)
s.socket.socket.setsockopt = refuse
"""
    found = options_of(start_server(patch=SHOW_OPTIONS + refuse))
    assert found[accepted] == {"TCP_NODELAY": 1, "TCP_KEEPCNT": 4}[accepted]


# --- Des clients lents, hostiles ---------------------------------------------------


def test_un_client_qui_ne_lit_plus_est_deconnecte_et_les_autres_ne_perdent_rien(start_server):
    """Pendant la seconde où il est attendu, l'inbox est fermée et le veilleur ne s'emballe pas."""
    patch = """
refused = 0
def counted(sock, data):
    global refused
    sent = send(sock, data)
    refused += not sent
    if refused == 2000:
        tell("deux mille envois pour rien")
    return sent
s.send_now = counted
"""
    server = start_server("--debit", "0", patch=patch)
    stuck, alice, bob = server.room("Bloque", "Alice", "Bob")
    sent = [f"{number} {'x' * 3000}" for number in range(4000)]  # 12 Mo : plus que le système
    threading.Thread(target=bob.send, args=["\n".join(sent) + "\nexit\n"]).start()
    got = alice.lines_until("* Bob a quitté le chat.")
    assert [line for line in got if " : " in line] == [f"Bob : {line}" for line in sent]
    assert [line for line in got if " : " not in line] == ["* Bloque a quitté le chat."]
    report = r"Bloque \(127.0.0.1\) : connexion coupée.*\((\d+) octets.*"
    waiting = int(re.fullmatch(report, server.error())[1])
    assert waiting < 2 * 1024 * 1024
    assert stuck.line()


# Écrit « en retard » sur stderr quand un client a trop d'octets à recevoir.
SHOW_LATENESS = """
is_seen = False
def show_lateness(sock, data):
    global is_seen
    sent = send(sock, data)
    if len(data) - sent > s.LATE_BYTES and not is_seen:
        is_seen = True
        tell("en retard")
    return sent
s.send_now = show_lateness
"""
LONG_LINES = f"{'x' * 4000}\n" * 3000  # 12 Mo : plus que le système n'en garde


def late_room(start_server, seconds: int, patch: str = "") -> tuple[Server, list[Peer]]:
    """Renvoie un serveur, qui attend un retard `seconds` secondes au plus, et trois clients ; Bob
    a envoyé LONG_LINES, Alice ne lit pas."""
    patch += f"s.STATE_SECONDS['late'] = {seconds}"
    server = start_server("--debit", "0", patch=SHOW_LATENESS + patch)
    peers = server.room("Alice", "Bob", "Chloé")
    threading.Thread(target=peers[1].send, args=[LONG_LINES + "fin\n"]).start()
    return server, peers


def test_un_client_qui_rattrape_tout_son_retard_reste_et_l_inbox_se_rouvre(start_server):
    """Il reste même une heure après, qui passe ici en un instant."""
    patch = """
monotonic, decode, hours = s.time.monotonic, s.protocol.decode_line, []
def pass_an_hour(line):
    hours.extend([1] if line == b"une heure passe" else [])
    return decode(line)
s.protocol.decode_line = pass_an_hour
s.time.monotonic = lambda: monotonic() + 3600 * len(hours)
"""
    server, (alice, _, chloe) = late_room(start_server, 10 * PATIENCE, patch)
    assert server.error() == "en retard"
    other = threading.Thread(target=chloe.lines_until, args=["Bob : fin"])
    other.start()
    assert len([line for line in alice.lines_until("Bob : fin") if " : " in line]) == 3000
    other.join()
    chloe.send("une heure passe\n")
    assert alice.line() == "Chloé : une heure passe"
    assert alice.barrier() == "* Connectés (3) : Alice, Bob, Chloé"


def test_un_client_qui_part_en_retard_n_est_plus_attendu(start_server):
    """Sinon les lignes de tous les clients attendraient sans fin."""
    needs("une coupure brutale")
    server, (alice, _, chloe) = late_room(start_server, 10 * PATIENCE)
    assert server.error() == "en retard"
    alice.reset()
    assert "* Alice a quitté le chat." in chloe.lines_until("Bob : fin")


def test_un_client_en_retard_doit_tout_lire(start_server):
    """S'il pouvait n'en lire qu'un peu à la fois, il ferait attendre tout le monde sans fin.

    Le système en accepte ici 2 000 octets toutes les 5 ms : moins de 1 Mio attend bientôt.
    """
    patch = """
slow = None
def drip(sock, data):
    global slow
    if b"Bienvenue, Alice" in data:
        slow = sock
    return send(sock, data[:2000] if sock is slow else data)
s.send_now = drip
"""
    server = start_server("--debit", "0", patch=patch)
    _, bob, chloe = server.room("Alice", "Bob", "Chloé")
    bob.send(f"{'x' * 4000}\n" * 300)
    assert len(chloe.lines_until("* Alice a quitté le chat.")) <= 300
    assert server.error().startswith("Alice (127.0.0.1) : connexion coupée")


def test_deux_cents_mega_sans_fin_de_ligne_ne_gonflent_pas_le_serveur(start_server):
    server = start_server()
    alice = server.connect("Alice")
    before = peak_kilobytes(server.process)
    piece = b"x" * 1_000_000
    for _ in range(200):
        alice.send(piece)
    alice.send("\n")
    assert alice.line().startswith("! Ligne trop longue")
    assert alice.barrier() == "* Connectés (1) : Alice"
    assert peak_kilobytes(server.process) - before < 10_000


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\n\xfe\xfe\n", bytes(range(256)) + b"\n"],
    ids=["http", "tls", "octets"],
)
def test_un_autre_protocole_ne_gene_personne(lobby, noise):
    alice, stranger = lobby.connect("Alice"), lobby.connect()
    stranger.send(noise)
    assert stranger.line().startswith("! ")
    assert alice.barrier() == "* Connectés (1) : Alice"


# --- La console et stderr ----------------------------------------------------------


def test_stderr_ecrit_avant_la_console():
    process = subprocess.Popen(
        [sys.executable, "serveur_exo.py", "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    with process.stdout as both:
        assert both.readline().startswith("Écoute sur ")
        assert both.readline() == "Serveur en attente de connexions...\n"
        process.terminate()
        process.wait(PATIENCE)


def test_une_console_que_personne_ne_lit_garde_huit_mio_puis_dit_ce_qui_manque_a_sa_place(
    start_server, tmp_path
):
    log = tmp_path / "journal.txt"
    server = start_server("--debit", "0", "--journal", str(log), stdout=subprocess.PIPE)
    alice, bob = server.room("Alice", "Bob")
    lines = "".join(f"{n} {'x' * 4000}\n" for n in range(5000))  # 20 Mo
    threading.Thread(target=bob.send, args=[lines]).start()
    while not alice.line().startswith("Bob : 4999 "):
        pass
    bob.send("court\n")  # il y aurait de la place pour cette ligne, mais pas avant l'avis
    assert alice.line() == "Bob : court"
    assert alice.barrier() == "* Connectés (2) : Alice, Bob"  # la tournée est donc finie
    console = server.process.stdout
    for expected in ("Serveur en attente", "Alice (127.0.0.1) a", "Bob (127.0.0.1) a"):
        assert console.readline().decode().startswith(expected)
    shown = chars = 0
    while (line := console.readline().decode()).startswith(f"Bob : {shown} "):
        shown += 1
        chars += len(line)
    assert line == f"… {5000 + 1 - shown} lignes non affichées.\n"
    assert chars > 7.5 * 1024 * 1024
    bob.send("après\n")
    assert console.readline().decode() == "Bob : après\n"
    assert server.stop() == 0
    logged = log.read_text(encoding="utf-8").splitlines()[2:]  # rien, lui, n'y manque
    assert [line.split()[3] for line in logged] == [*map(str, range(5000)), "court", "après"]


def test_une_seule_ligne_non_affichee_se_dit_au_singulier(start_server):
    """L'avis s'affiche même si aucune ligne ne vient après celle que l'on n'a pas affichée."""
    server = start_server(stdout=subprocess.PIPE, patch="s.WAITING_CHARS = 200")
    alice = server.connect("Alice")
    assert server.process.stdout.readline() == b"Serveur en attente de connexions...\n"
    assert server.process.stdout.readline() == b"Alice (127.0.0.1) a rejoint le chat.\n"
    alice.send("x" * 1000 + "\n")
    assert server.process.stdout.readline().decode() == "… 1 ligne non affichée.\n"


@pytest.mark.parametrize("is_pipe", [True, False], ids=["tube_plein", "ctrl_s"])
def test_une_console_bloquee_n_empeche_pas_de_finir_en_cinq_secondes(start_server, is_pipe):
    with contextlib.ExitStack() as to_close:
        console = subprocess.PIPE
        if not is_pipe:
            needs("un pty")
            import termios

            master, console = os.openpty()
            to_close.callback(os.close, master)
            to_close.callback(os.close, console)
        server = start_server("--debit", "0", "--max-clients", "2", stdout=console)
        alice, bob = server.room("Alice", "Bob")
        if not is_pipe:
            termios.tcflow(console, termios.TCOOFF)
        bob.send(f"{'x' * 1000}\n" * 500)
        for _ in range(500):
            assert alice.line()
        server.connect()
        assert server.error() == "Le serveur est complet : 127.0.0.1 refusé."
        stop_in_five_seconds(server)


def stop_in_five_seconds(server: Server) -> None:
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5
    assert server.error() == "Serveur arrêté."


def test_une_console_qu_un_programme_a_rendue_non_bloquante_est_lente_pas_perdue(start_server):
    needs("un fichier non bloquant")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    patch = f"s.OUTPUT_SECONDS = {PATIENCE}"
    server = start_server("--debit", "0", stdout=writing, patch=patch)
    os.close(writing)
    alice, bob = server.room("Alice", "Bob")
    bob.send(f"{'x' * 100}\n" * 2000)
    for _ in range(2000):
        assert alice.line()
    server.send_signal(signal.SIGTERM)
    with open(reading, encoding="utf-8") as console:
        assert console.read().splitlines()[3:] == [f"Bob : {'x' * 100}"] * 2000
    assert server.process.wait(PATIENCE) == 0


def test_une_console_fermee_est_signalee_une_fois_et_le_serveur_finit_bien(start_server):
    server = start_server(stdout=subprocess.PIPE)
    server.process.stdout.close()
    alice, bob = server.room("Alice", "Bob")
    assert server.error() == f"Impossible d'écrire dans la console ({GONE}). Le chat continue."
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


@pytest.mark.parametrize("system", sorted({"nt", os.name}))
def test_einval_ne_veut_dire_que_sous_windows_que_personne_ne_lit_plus(start_server, system):
    reason = GONE if system == "nt" else "erreur EINVAL du système"
    patch = f"""
import errno
class Broken:
    def write(self, text):
        s.os.name = {system!r}
        raise OSError(errno.EINVAL, "Invalid argument")
    def flush(self):
        pass
sys.stdout = Broken()
"""
    error = start_server(patch=patch).error()
    assert error == f"Impossible d'écrire dans la console ({reason}). Le chat continue."


@pytest.mark.parametrize("closed", [1, 2])
def test_une_sortie_fermee_des_le_depart_ne_gene_pas(closed):
    needs("des fichiers dont un autre programme hérite")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "serveur_exo.py", "--port", str(port)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(closed),
    )  # fmt: skip
    with process.stdout as console, process.stderr as errors:
        open_one = errors if closed == 1 else console
        assert open_one.readline()
        alice = Peer(socket.create_connection(("127.0.0.1", port))).join("Alice")
        assert alice.barrier() == "* Connectés (1) : Alice"
        alice.close()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert b"Traceback" not in errors.read()


def test_une_console_qui_ne_connait_pas_un_caractere_montre_un_point_d_interrogation(start_server):
    """Une ancienne console de Windows : les accents y passent par le flux, pas par ses octets."""
    server = start_server(patch="sys.stdout.reconfigure(encoding='cp850')")
    alice, bob = server.room("Alice", "Bob")
    alice.send("Élise : œuf 👍\n")
    assert bob.line() == "Alice : Élise : œuf 👍"
    assert server.stop() == 0
    server.console.seek(0)
    assert server.console.read().splitlines()[-1] == "Alice : Élise : ?uf ?".encode("cp850")


def test_stderr_ecrit_dans_l_encodage_du_terminal():
    needs("LC_ALL")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "serveur_exo.py", "--journal", "/nulle/part/é"],
        cwd=ROOT, capture_output=True, env=environment, timeout=PATIENCE,
    )  # fmt: skip
    assert result.returncode == 1 and result.stderr.isascii()
    assert result.stderr.startswith(b"Impossible d'?crire le journal")


# --- Dans une fenêtre (IDLE, Thonny…) ou une session qui continue ------------------

BARE_STREAMS = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
class Bare:
    def __init__(self, label): self.label = label
    def write(self, text): os.write(7, (self.label + text).encode())
    def flush(self): pass
    def isatty(self): return True
sys.stdin, sys.stdout, sys.stderr = Bare(""), Bare("out:"), Bare("err:")
sys.argv = ["serveur_exo.py", "--port", "0", {option!r}]
import serveur_exo
handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
code = serveur_exo.main()
assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
os.write(7, b"main renvoie %d" % code)
"""


@contextlib.contextmanager
def bare_server(option: str):
    """Lance le serveur sous des flux qui n'ont que write, flush et isatty ; donne leur sortie."""
    needs("des fichiers dont un autre programme hérite")
    reading, writing = os.pipe()
    program = BARE_STREAMS.format(root=str(ROOT), option=option)
    process = subprocess.Popen(
        [sys.executable, "-c", program.replace("os.write(7,", f"os.write({writing},")],
        pass_fds=[writing], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writing)
    with open(reading, encoding="utf-8") as output:
        yield process, output
    assert process.wait(PATIENCE) == 0


def test_dans_une_fenetre_tout_passe_par_ses_flux_et_main_rend_la_main():
    with bare_server("--horodatage") as (process, output):
        assert (listening := output.readline()).startswith("err:Écoute sur 127.0.0.1:")
        assert output.readline() == "out:Serveur en attente de connexions...\n"
        port = int(re.search(r":(\d+) ", listening)[1])
        alice = Peer(socket.create_connection(("127.0.0.1", port))).join("Alice")
        assert output.readline().endswith("] Alice (127.0.0.1) a rejoint le chat.\n")
        process.send_signal(signal.SIGINT)
        assert alice.line() == "* Le serveur s'arrête."
        alice.close()
        assert output.read() == "err:Serveur arrêté.\nmain renvoie 0"


def test_dans_une_fenetre_une_mauvaise_option_se_voit_aussi():
    with bare_server("--vite") as (_, output):
        assert output.read().startswith("err:Option « --vite » inconnue")


@pytest.mark.parametrize("setting", ["sys.ps1 = '>>> '", ""], ids=["session", "script"])
def test_qui_appelle_main_peut_le_refaire_et_retrouve_ses_signaux(setting):
    """Dans une session (%run d'IPython, python3 -i) ou un script à soi, Ctrl+C marche ensuite."""
    needs("des signaux d'un programme à l'autre")
    program = (
        "import os, signal, sys\n"
        "import serveur_exo\n"
        f"{setting}\n"
        "sys.argv = ['serveur_exo.py', '--port', sys.argv[1]]\n"
        "for _ in range(2):\n"
        "    print('main renvoie', serveur_exo.main(), flush=True)\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('Ctrl+C marche', flush=True)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-c", program, port], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with process.stdout as output:
        for _ in range(2):
            assert output.readline().startswith("Écoute sur ")
            assert output.readline() == "Serveur en attente de connexions...\n"
            process.send_signal(signal.SIGINT)
            assert output.readline() == "Serveur arrêté.\n"
            assert output.readline() == "main renvoie 0\n"
        assert output.readline() == "Ctrl+C marche\n"
    assert process.wait(PATIENCE) == 0


# --- Le journal --------------------------------------------------------------------

LOGGED = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d (.*)"


def test_le_journal_continue_un_fichier_laisse_inacheve(start_server, tmp_path):
    log = tmp_path / "journal.txt"
    log.write_bytes("une ligne coup".encode())
    server = start_server("--journal", str(log), "--horodatage")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line().endswith("] * Bob a rejoint le chat.")
    alice.send("Bonjour\n")
    assert bob.line().endswith("] Alice : Bonjour")
    assert server.stop() == 0
    first, *others = log.read_text(encoding="utf-8").splitlines()
    assert first == "une ligne coup"
    assert [re.fullmatch(LOGGED, line)[1] for line in others] == [
        "Alice (127.0.0.1) a rejoint le chat.",
        "Bob (127.0.0.1) a rejoint le chat.",
        "Alice : Bonjour",
    ]
    assert all(line[0] == "[" for line in server.console_lines()[1:])


def test_une_ligne_est_dans_le_journal_avant_que_la_tournee_suivante_commence(
    start_server, tmp_path
):
    log = tmp_path / "journal.txt"
    alice, bob = start_server("--journal", str(log)).room("Alice", "Bob")
    for number in range(50):
        alice.send(f"{number}\n")
        assert bob.line() == f"Alice : {number}"
        bob.barrier()  # la réponse vient d'une tournée suivante
        assert log.read_text(encoding="utf-8").endswith(f" Alice : {number}\n")


def test_apres_un_kill_le_journal_a_ses_lignes_sans_trou_et_se_continue(start_server, tmp_path):
    log = tmp_path / "journal.txt"
    server = start_server("--journal", str(log), "--debit", "0")
    alice, bob = server.room("Alice", "Bob")
    bob.send("".join(f"{n} {'x' * 100}\n" for n in range(5000)))
    while log.stat().st_size < 20_000:
        alice.send("/liste\n")
        alice.lines_until("* Connectés (2) : Alice, Bob")
    server.process.kill()
    server.process.wait()
    *lines, rest = log.read_text(encoding="utf-8").split("\n")
    numbers = [int(line.split()[3]) for line in lines[2:]]
    assert numbers == list(range(len(numbers))) and numbers
    carole = start_server("--journal", str(log)).connect("Carole")
    assert carole.barrier()
    again = log.read_text(encoding="utf-8").splitlines()
    assert again[-1].endswith(" Carole (127.0.0.1) a rejoint le chat.")
    assert again[:-1] == lines + ([rest] if rest else [])


def test_un_journal_qui_ne_s_ecrit_plus_reprend_et_compte_ce_qui_manque(start_server, tmp_path):
    needs("prlimit")
    import resource

    log = tmp_path / "journal.txt"
    server = start_server("--journal", str(log))
    alice, bob = server.room("Alice", "Bob")

    def limit(size: int) -> None:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def say(text: str) -> None:
        alice.send(f"{text}\n")
        assert bob.line() == f"Alice : {text}"
        bob.barrier()  # la tournée qui l'a dit est finie : le journal est écrit

    for *missing, notice in (["2", "3", "… 2 lignes manquent."], ["x", "… 1 ligne manque."]):
        say("avant")
        limit(log.stat().st_size + 10)
        say(missing[0])
        assert server.error() == (
            "Impossible d'écrire dans le journal (fichier trop gros). Le chat continue."
        )
        for text in missing[1:]:
            say(text)
        limit(resource.RLIM_INFINITY)
        assert server.error() == "Le journal s'écrit de nouveau."  # sans que personne ne parle
        say("après")
        logged = log.read_text(encoding="utf-8").splitlines()
        lines = [re.fullmatch(LOGGED, line)[1] for line in logged]  # aucune n'est coupée
        assert [line for line in lines[-3:] if line != "Alice : après"] == ["Alice : avant", notice]
    assert server.stop() == 0


def test_l_arret_attend_une_tournee_qui_ecrit_encore_le_journal(start_server, tmp_path):
    """Un disque lent : fermer le fichier sous cette tournée perdrait sa dernière ligne."""
    patch = """
import io
class SlowFile(io.FileIO):
    def write(self, data):
        s.time.sleep(1 if b"Alice : fin" in data else 0)
        return super().write(data)
s.open = lambda path, mode, buffering: SlowFile(path, mode)
s.STOP_SECONDS, s.OUTPUT_SECONDS = 0.1, 60
"""
    log = tmp_path / "journal.txt"
    server = start_server("--journal", str(log), patch=patch)
    alice, bob = server.room("Alice", "Bob")
    alice.send("fin\n")
    assert bob.line() == "Alice : fin"
    assert server.stop() == 0
    assert log.read_text(encoding="utf-8").endswith(" Alice : fin\n")


def test_un_disque_plein_des_le_depart_est_signale_une_fois(start_server):
    needs("/dev/full")
    server = start_server("--journal", "/dev/full")
    alice, bob = server.room("Alice", "Bob")
    assert server.error().startswith("Impossible d'écrire dans le journal (disque plein)")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


# --- S'arrêter ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_l_arret_est_annonce_a_tous_sans_annoncer_de_departs(start_server, number):
    server = start_server()
    alice, bob = server.room("Alice", "Bob")
    mute = server.connect()
    mute.send("*\n")
    assert mute.line().startswith("! ")  # il est donc accepté
    server.send_signal(number)
    server.send_signal(number)  # un second Ctrl+C ne gêne pas
    for peer in (alice, bob, mute):
        assert [peer.line(), peer.line()] == ["* Le serveur s'arrête.", ""]
    assert server.process.wait(PATIENCE) == 0
    assert server.error() == "Serveur arrêté."
    assert server.console_lines()[-1] == "Bob (127.0.0.1) a rejoint le chat."


def test_un_second_ctrl_c_au_dernier_instant_ne_gene_pas(start_server):
    server = start_server()
    server.send_signal(signal.SIGINT)
    assert server.error() == "Serveur arrêté."
    with contextlib.suppress(OSError):  # sous Windows, il a peut-être déjà fermé son entrée
        server.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0


def test_ce_qui_etait_depose_est_traite_avant_l_annonce_de_l_arret(start_server):
    """La tournée d'Alice dure ; Bob parle, et l'arrêt est demandé quand son lecteur a déposé."""
    patch = """
words, is_asked = [], s.threading.Event()
def slow(sock, data):
    sent = send(sock, data)
    if b"Alice : un" in data and is_asked.wait(60):
        s.time.sleep(0.3)
    return sent
def ask_to_stop(sock, size):
    if words and not is_asked.is_set():
        s.signal.raise_signal(s.signal.SIGTERM)
        is_asked.set()
    data = recv(sock, size)
    words.extend([data] if b"dernier mot" in data else [])
    return data
s.send_now, s.socket.socket.recv = slow, ask_to_stop
"""
    alice, bob = start_server(patch=patch).room("Alice", "Bob")
    alice.send("un\n")
    assert bob.line() == "Alice : un"
    bob.send("dernier mot\n")
    assert [alice.line() for _ in range(3)] == ["Bob : dernier mot", "* Le serveur s'arrête.", ""]
    assert [bob.line() for _ in range(2)] == ["* Le serveur s'arrête.", ""]


def test_l_arret_est_annonce_meme_si_un_client_est_en_retard(start_server):
    """L'inbox est fermée une seconde : les autres attendent, et apprennent l'arrêt ensuite."""
    server, (_, _, chloe) = late_room(start_server, 1)
    assert server.error() == "en retard"
    server.send_signal(signal.SIGTERM)
    chloe.lines_until("* Le serveur s'arrête.")
    assert server.process.wait(PATIENCE) == 0


def test_l_arret_est_annonce_meme_si_des_clients_ne_cessent_pas_d_envoyer(start_server):
    """Leurs lignes sont vides, mais l'inbox ne l'est jamais : un dépôt par tournée, qui dure."""
    patch = """
decode = s.protocol.decode_line
def slow(line):
    s.time.sleep(0.0005)
    return decode(line)
s.protocol.decode_line, s.ROUND_BYTES, s.DEPOSIT_LINES = slow, 0, 32
s.STATE_SECONDS["leaving"], s.STOP_SECONDS = 1, 60
"""
    server = start_server("--debit", "0", patch=patch)
    alice, *others = server.room("Alice", "Bob", "Chloé", "David")
    with pouring("\n" * 10_000, *others):
        server.send_signal(signal.SIGTERM)
        assert alice.line() == "* Le serveur s'arrête."
        assert server.process.wait(PATIENCE) == 0


def test_qui_a_dit_exit_recoit_l_au_revoir_et_rien_ensuite(start_server):
    """Bob ne lit pas : l'arrêt vient avant que le système ait pu prendre son au revoir."""
    patch = "s.LATE_BYTES = 1 << 30; s.STATE_SECONDS['leaving'] = s.STOP_SECONDS = 60"
    server = start_server("--debit", "0", patch=patch)
    alice, bob = server.room("Alice", "Bob")
    alice.send(LONG_LINES + "/liste\n")
    assert alice.line() == "* Connectés (2) : Alice, Bob"
    bob.send("exit\n")
    assert alice.line() == "* Bob a quitté le chat."
    server.send_signal(signal.SIGTERM)
    assert [alice.line(), alice.line()] == ["* Le serveur s'arrête.", ""]
    bob.lines_until("* Au revoir, Bob.")
    assert bob.line() == ""


def test_les_clients_qui_ne_ferment_pas_ne_retardent_pas_la_fin(start_server):
    ours = serveur_exo  # les quatre attentes de l'arrêt, l'une après l'autre
    assert ours.ACCEPT_SECONDS + ours.STOP_SECONDS + 2 * ours.OUTPUT_SECONDS <= 5
    server = start_server()
    peers = server.room("Alice", "Bob")
    stop_in_five_seconds(server)
    for peer in peers:
        assert [peer.line(), peer.line()] == ["* Le serveur s'arrête.", ""]


def test_on_peut_relancer_aussitot_sur_le_meme_port(start_server):
    server = start_server()
    server.connect("Alice")
    assert server.stop() == 0
    again = start_server("--port", str(server.port))
    assert again.port == server.port
    again.connect("Alice")


@pytest.mark.parametrize(
    "error",
    ["ValueError", "OSError", "ValueError('x' * 1_000_000)"],
    ids=["défaut", "défaut_qui_ressemble_à_une_coupure", "trace_plus_grosse_qu_un_tube_non_lu"],
)
def test_une_tournee_qui_echoue_arrete_le_serveur_et_le_dit(error):
    if len(error) > 20:
        needs("un tube qui garde le début d'une longue écriture")
    server = Server(patch=f"def fail(_):\n    raise {error}\ns.protocol.normalize_name = fail")
    server.connect().send("Alice\n")
    assert server.process.wait(PATIENCE) == 1
    errors = server.end()
    assert errors.startswith("Traceback") and "Serveur arrêté." not in errors
    if len(error) < 20:  # un tube que personne ne lit ne prend pas plus de 64 Kio
        assert errors.endswith("\nLe serveur s'arrête : une tournée a échoué (voir ci-dessus).\n")


def test_un_serveur_au_repos_ne_se_reveille_presque_pas(start_server):
    server = start_server(patch=f"s.ACCEPT_SECONDS = {serveur_exo.ACCEPT_SECONDS}")
    server.room("Alice", "Bob")

    def wake_ups() -> int:
        tasks = proc(server.process).glob("task/*/status")
        counter = re.compile(r"\nvoluntary_ctxt_switches:\s+(\d+)")
        return sum(int(counter.search(path.read_text())[1]) for path in tasks)

    def is_at_rest() -> bool:  # à trois par seconde, les neuf suivants durent au moins 2,5 s
        before, started = wake_ups(), time.monotonic()
        wait_until(lambda: wake_ups() >= before + 9, "le serveur ne se réveille plus")
        return time.monotonic() - started >= 2.5

    # D'abord, Bob vient peut-être d'entrer.
    wait_until(is_at_rest, "le serveur se réveille plus de trois fois par seconde")


# --- Les adresses et les options -----------------------------------------------------


def run_main(monkeypatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", *options])
    return serveur_exo.main()


def test_sans_option_mille_clients_et_vingt_lignes_par_seconde(capfd, monkeypatch):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--help")
    shown = " ".join(capfd.readouterr().out.split())
    for option, default in ("--max-clients N", 1000), ("--debit N", 20), ("--port N", 12345):
        assert re.search(rf"{option} [^-]* \({default} par défaut\)", shown), shown


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--port", "70000"], "--port"),
        (["--debit", "-1"], "--debit"),
        (["--max-clients", "0"], "--max-clients"),
        (["--hote", ""], "--hote"),
        (["--hote", " [] "], "--hote"),
        (["--hote", "127.0.0.1:12345"], "--hote 127.0.0.1 --port 12345"),
        (["--hote", "[::1]:12345"], "--hote ::1 --port 12345"),
        (["--port"], "--port"),
        (["-x", "y"], "-x"),
        (["Alice"], "Alice"),
    ],
)
def test_une_mauvaise_option_renvoie_2_et_la_nomme(options, named, capfd, monkeypatch):
    assert run_main(monkeypatch, *options) == 2
    errors = capfd.readouterr().err
    assert named in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--hote", ".."], "Choisissez un autre --hote."),
        (["--hote", "é..b"], "Choisissez un autre --hote."),
        (["--hote", "nulle-part.invalid"], "Choisissez un autre --hote."),
        (["--hote", "203.0.113.1"], "Choisissez un autre --hote"),
        (["--journal", ""], "journal"),
        (["--journal", "/"], "accès réservé" if IS_WINDOWS else "c'est un dossier"),
        (["--journal", "/nulle/part"], "ce fichier ou son dossier n'existe pas"),
        (["--journal", "/dev/null/x"], "journal"),
    ],
)
def test_ce_qui_ne_peut_marcher_renvoie_1_et_un_conseil(options, advice, capfd, monkeypatch):
    assert run_main(monkeypatch, "--port", "0", *options) == 1
    errors = capfd.readouterr().err
    assert advice in errors and errors.count("\n") == 1


def test_un_tube_donne_comme_journal_est_refuse(capfd, monkeypatch, tmp_path):
    needs("mkfifo")
    os.mkfifo(tmp_path / "tube")
    assert run_main(monkeypatch, "--port", "0", "--journal", str(tmp_path / "tube")) == 1
    assert "tube" in capfd.readouterr().err


def test_un_port_pris_renvoie_1_et_dit_quoi_faire(start_server, capfd, monkeypatch):
    assert run_main(monkeypatch, "--port", str(start_server().port)) == 1
    assert "ce port est déjà pris" in capfd.readouterr().err


def test_un_port_reserve_renvoie_1_et_dit_quoi_faire(capfd, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert run_main(monkeypatch, "--port", "80") == 1
    assert "un autre --port, à partir de 1024." in capfd.readouterr().err


def test_ipv6_marche(start_server):
    needs("IPv6")
    server = start_server("--hote", "[::1]")
    assert server.listening == f"Écoute sur [::1]:{server.port} (Ctrl+C pour arrêter)."
    Peer(socket.create_connection(("::1", server.port))).join("Alice").close()


def test_ouvert_a_tous_en_ipv6_ipv4_entre_aussi(start_server):
    needs("IPv6")
    server = start_server("--hote", "::")
    server.connect("Alice")
    assert server.stop() == 0
    assert server.console_lines()[1] == "Alice (127.0.0.1) a rejoint le chat."


def asked_address(monkeypatch, host: str) -> tuple:
    """Renvoie l'adresse où le serveur demande au système d'écouter."""
    asked = []

    def remember(address, **_):
        asked.append(address)
        raise OSError(errno.EADDRNOTAVAIL, "")

    monkeypatch.setattr(socket, "create_server", remember)
    assert run_main(monkeypatch, "--hote", host) == 1
    return asked[0]


def test_un_nom_qui_a_deux_adresses_veut_dire_celle_d_ipv4(monkeypatch):
    """Sinon, si ::1 vient d'abord, le client et le serveur n'auraient pas la même adresse."""
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 12345, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 12345)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert asked_address(monkeypatch, "localhost") == ("127.0.0.1", 12345)


def test_une_adresse_locale_ipv6_garde_son_interface(monkeypatch):
    number, name = socket.if_nameindex()[0]
    host = f"fe80::1%{number if IS_WINDOWS else name}"
    assert asked_address(monkeypatch, host) == ("fe80::1", 12345, 0, number)


V4, V6 = {socket.AF_INET: "192.168.1.23"}, {socket.AF_INET6: "fd00::2"}


@pytest.mark.parametrize(
    ("networks", "bound", "command"),
    [
        (V4 | V6, ("0.0.0.0", 12345), "--hote 192.168.1.23"),
        (V4, ("::", 5555, 0, 0), "--hote 192.168.1.23 --port 5555"),
        (V6, ("::", 12345, 0, 0), "--hote fd00::2"),
        ({}, ("0.0.0.0", 12345), None),
        (V4, ("127.0.0.1", 12345), None),
    ],
)
def test_un_serveur_ouvert_dit_quoi_taper_sur_les_autres_machines(
    capfd, monkeypatch, networks, bound, command
):
    """La machine a les adresses de `networks`, et le serveur croit écouter à celle de `bound`."""

    def connect(sock, address) -> None:
        if sock.family not in networks:
            raise OSError(errno.ENETUNREACH, "")

    def getsockname(sock) -> tuple:
        return bound if sock.type == socket.SOCK_STREAM else (networks[sock.family], 0)

    def accept(listener):
        signal.raise_signal(signal.SIGTERM)
        raise TimeoutError

    for method in (connect, getsockname, accept):
        monkeypatch.setattr(socket.socket, method.__name__, method)
    assert run_main(monkeypatch, "--port", "0") == 0
    _, *others = capfd.readouterr().err.splitlines()
    wanted = f"Sur les autres machines : python3 client_exo.py {command}"
    assert others == [*([wanted] if command else []), "Serveur arrêté."]


# --- Ce qui diffère sous Windows, imité ici ------------------------------------------


def test_sans_msg_dontwait_un_client_qui_lit_bien_n_est_pas_deconnecte(start_server):
    """À 15,6 ms par réveil, un seul petit envoi par tournée ferait 1 Mo par seconde."""
    patch = "s.DONT_WAIT = None; s.TICK_SECONDS = 0.0156"
    server = start_server("--debit", "0", patch=patch)
    alice, bob = server.room("Alice", "Bob")
    sent = [f"{number} {'x' * 3000}" for number in range(3000)]
    threading.Thread(target=bob.send, args=["\n".join(sent) + "\nexit\n"]).start()
    assert alice.lines_until("* Bob a quitté le chat.") == [f"Bob : {line}" for line in sent]
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_la_ou_shutdown_ne_reveille_pas_recv_un_client_coupe_rend_sa_place(start_server):
    """Sous Windows, c'est close qui réveille recv, et shutdown qui ne le réveille pas."""
    patch = """
shutdown, close = s.socket.socket.shutdown, s.socket.socket.close
def wake_nobody(sock, how):
    if how == s.socket.SHUT_WR:
        shutdown(sock, how)
def close_and_wake(sock):
    with s.contextlib.suppress(OSError):
        shutdown(sock, s.socket.SHUT_RDWR)
    close(sock)
s.socket.socket.shutdown, s.socket.socket.close = wake_nobody, close_and_wake
s.STATE_SECONDS |= {"naming": 0.2, "leaving": 0.2}
s.CLOSE_WAKES_RECV, s.IDLE_SECONDS = True, 0.1
"""
    server = start_server("--max-clients", "1", patch=patch)
    mute = server.connect()
    assert mute.line().startswith("! Aucun nom admis")
    enter_when_there_is_room(server, "Bob")


def test_ctrl_pause_arrete_comme_ctrl_c(start_server):
    needs("des signaux d'un programme à l'autre")
    server = start_server(patch="s.signal.SIGBREAK = s.signal.SIGUSR1")
    alice = server.connect("Alice")
    assert server.stop(signal.SIGUSR1) == 0
    assert alice.line() == "* Le serveur s'arrête."


# --- Le banc d'essai -----------------------------------------------------------------


def test_le_banc_d_essai_rapide_trouve_tout_juste():
    needs("epoll")
    result = subprocess.run(
        [sys.executable, "tests/mesures/banc_essai.py", "--rapide"],
        cwd=ROOT, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, b"juste\n", b"")
