"""Le vrai serveur, sur la boucle locale, et les règles du salon sans socket ni thread."""

import contextlib
import errno
import io
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import serveur_exo
from conftest import PATIENCE, ROOT, Peer, Server, peak_kilobytes
from serveur_exo import Client, Room

FULL = "! Le serveur est complet, réessayez plus tard."


# --- Le salon : les règles, sans socket ni thread ---------------------------------


def room_of(*names: str) -> tuple:
    """Renvoie un salon où ces clients sont entrés, avec des outbox vides, et ces clients."""
    room = Room()
    clients = [Client(None, "127.0.0.1") for _ in names]
    for client, name in zip(clients, names):
        room.receive(client, [name.encode()])
    for client in clients:
        client.outbox.clear()
    room.start_round("")
    return room, *clients


def lines_for(client: Client) -> list[str]:
    lines = b"".join(client.outbox).decode().splitlines()
    client.outbox.clear()
    return lines


def test_un_message_va_a_tous_les_autres_et_a_la_console():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, ["  Bonjour !\u00a0 ".encode()])
    assert lines_for(bob) == ["Alice :   Bonjour !\u00a0 "]
    assert lines_for(alice) == []
    assert room.console_lines == ["Alice :   Bonjour !\u00a0 "]


def test_une_ligne_vide_ou_blanche_est_ignoree_meme_a_la_place_du_nom():
    room, alice, bob = room_of("Alice", "")
    room.receive(alice, [b"", b" \t ", "\u00a0\u200b\ufeff".encode()])
    room.receive(bob, [b"", b" \t ", "\u00a0\u200b\ufeff".encode()])
    assert lines_for(alice) == lines_for(bob) == [] and bob.refusals == 0


def test_une_arrivee_salue_l_un_et_previent_les_autres():
    room, alice, bob = room_of("Alice", "")
    room.receive(bob, [b" Bob\t"])
    assert [line.partition(" !")[0] for line in lines_for(bob)] == ["* Bienvenue, Bob"]
    assert lines_for(alice) == ["* Bob a rejoint le chat."]
    assert room.console_lines == ["Bob (127.0.0.1) a rejoint le chat."]


@pytest.mark.parametrize(("first", "second"), [("Élise", "E\u0301LISE"), ("O'Brien", "O’Brien")])
def test_un_nom_deja_pris_sous_une_autre_ecriture_est_refuse(first, second):
    room, _, other = room_of(first, "")
    room.receive(other, [second.encode()])
    assert lines_for(other)[0].startswith("! Le nom ")
    assert other.name is None


def test_cinq_refus_ferment():
    room, client = room_of("")
    room.receive(client, [b"*", b"\xfe", b"a b", b"!"])
    assert not client.leaving
    room.receive(client, [b"x" * 5000, b"Alice"])
    assert client.leaving and client.name is None
    assert [line[:2] for line in lines_for(client)] == ["! "] * 5


@pytest.mark.parametrize("word", ["exit", " EXIT\u00a0", "/quitter", "/exit maintenant", "/QUIT"])
def test_partir_sans_avoir_donne_de_nom_ne_laisse_aucune_trace(word):
    room, alice, other = room_of("Alice", "")
    room.receive(other, [word.encode(), b"Bob"])
    assert other.leaving
    assert lines_for(alice) == lines_for(other) == room.console_lines == []


def test_les_departs_s_annoncent_une_fois():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(bob, [b"exit", b"encore"])
    room.leave(bob)
    assert lines_for(bob) == ["* Au revoir, Bob."]
    assert lines_for(alice) == ["* Bob a quitté le chat."]
    assert room.console_lines == ["Bob a quitté le chat."]


@pytest.mark.parametrize("word", ["/privé", "/prive", "/MP", "/prive\u0301", "\u00a0/privé\u2003"])
def test_un_message_prive_ne_va_qu_a_un_seul(word):
    room, alice, bob, eve = room_of("Alice", "Bob", "Eve")
    room.receive(alice, [f"{word} BOB //à toi ".encode()])
    assert lines_for(bob) == ["Alice (privé) : //à toi "]
    assert lines_for(alice) == ["* Message privé envoyé à Bob."]
    assert lines_for(eve) == room.console_lines == []


@pytest.mark.parametrize("line", ["/privé", "/privé Bob", "/privé Zoé salut", "/privé Alice moi"])
def test_un_message_prive_impossible_donne_une_seule_erreur(line):
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [line.encode()])
    assert [answer[:2] for answer in lines_for(alice)] == ["! "]
    assert lines_for(bob) == []


def test_la_liste_est_alphabetique():
    room, *members = room_of("Zoé", "alice", "Élise")
    room.receive(members[0], [b"/liste"])
    assert lines_for(members[0]) == ["* Connectés (3) : alice, Élise, Zoé"]


def test_l_aide_donne_une_commande_par_avis():
    room, alice = room_of("Alice")
    room.receive(alice, [b"/help"])
    lines = lines_for(alice)
    assert all(line.startswith("* ") for line in lines)
    for word in ("/liste", "/privé NOM message", "/quitter", "exit", "/aide", "//texte"):
        assert any(word in line for line in lines)


def test_deux_barres_obliques_disent_un_message_qui_commence_par_une():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [b"avant", b"//liste", "après".encode()])
    assert lines_for(bob) == ["Alice : avant", "Alice : /liste", "Alice : après"]
    assert lines_for(alice) == []


def test_une_commande_inconnue_est_recopiee_sans_danger():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [b"/dan\x1bse vite"])
    assert lines_for(alice) == ["! Commande inconnue : /dan\ufffdse (tapez /aide)."]
    assert lines_for(bob) == room.console_lines == []


@pytest.mark.parametrize("line", [b"\xfe\xfe", b"x" * 4097], ids=["pas_utf8", "trop_longue"])
def test_une_mauvaise_ligne_ne_derange_que_son_auteur(line):
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [line, b"suite"])
    assert [answer[:2] for answer in lines_for(alice)] == ["! "]
    assert lines_for(bob) == ["Alice : suite"]


def test_seuls_les_messages_les_arrivees_et_les_departs_sont_horodates():
    room, alice, bob, other = room_of("Alice", "Bob", "")
    room.start_round("[12:34] ")
    room.receive(other, [b"*", "Élise".encode()])
    room.receive(alice, [b"Bonjour", "/privé Bob Psst".encode(), b"/liste", b"/danse"])
    room.receive(other, [b"/quitter"])
    assert lines_for(bob) == [
        "[12:34] * Élise a rejoint le chat.",
        "[12:34] Alice : Bonjour",
        "[12:34] Alice (privé) : Psst",
        "[12:34] * Élise a quitté le chat.",
    ]
    bare = [line for line in lines_for(alice) + lines_for(other) if not line.startswith("[12:34] ")]
    assert [line.split()[1] for line in bare] == [
        "Message", "Connectés", "Commande", "Nom", "Bienvenue,", "Au",
    ]  # fmt: skip


# --- Entrer ------------------------------------------------------------------------


def test_la_session_de_l_exercice(start_server):
    server = start_server()
    assert server.listening == f"Écoute sur 127.0.0.1:{server.port} (Ctrl+C pour arrêter)."
    alice, bob = server.room("Alice", "Bob")
    alice.send("Bonjour !\nexit\n")
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
    server = start_server(patch="s.NAME_SECONDS = 0.2")
    mute = server.connect()
    mute.send("Al")
    assert [mute.line(), mute.line()] == ["! Aucun nom reçu en 0.2 s : connexion fermée.", ""]


@pytest.mark.parametrize("drip", ["x", "\n", " \n"], ids=["sans_fin", "vides", "blanches"])
def test_un_client_qui_envoie_sans_cesse_sauf_un_nom_est_ferme_aussi(start_server, drip):
    server = start_server(patch="s.NAME_SECONDS = 0.5")
    mute = server.connect()

    def pour() -> None:
        with contextlib.suppress(OSError):
            while True:
                mute.send(drip * 1000)

    thread = threading.Thread(target=pour)
    thread.start()
    lines = []
    while line := mute.line():
        lines.append(line)
    assert lines[-1] == "! Aucun nom reçu en 0.5 s : connexion fermée."
    mute.reset()
    thread.join()


def test_un_nom_donne_a_temps_n_a_plus_de_delai(start_server):
    server = start_server(patch="s.NAME_SECONDS = 1")
    alice, mute = server.connect("Alice"), server.connect()
    assert mute.line().startswith("! Aucun nom reçu")
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_une_pause_du_serveur_n_est_pas_comptee_dans_les_delais(inside):
    """Ctrl+Z pendant une heure : un client qui a encore dix secondes les a toujours après."""
    room = inside("")
    hour = 3600
    room.clients[0].deadline += 10 - serveur_exo.NAME_SECONDS - hour
    room.broadcaster.last_round_at -= hour
    room.broadcaster.try_round()
    assert room.clients[0].outbox == [] and not room.clients[0].leaving
    room.say(room.clients[0], "Alice")
    assert room.peers[0].line().startswith("* Bienvenue, Alice !")


def test_un_serveur_complet_refuse_puis_accepte_de_nouveau(start_server):
    server = start_server("--max-clients", "1")
    alice = server.connect("Alice")
    other = server.connect()
    other.send("Bob\n")
    assert other.line() == FULL
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
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))"
    server = start_server(patch=limit)
    peers = [server.connect() for _ in range(50)]
    for number, peer in enumerate(peers):
        with contextlib.suppress(ConnectionError):
            peer.send(f"u{number}\n")
    answers = [peer.line() for peer in peers]
    admitted = 50 - serveur_exo.SPARE_FILES
    assert [answer.partition(",")[0] for answer in answers[:admitted]] == ["* Bienvenue"] * admitted
    assert answers[admitted:] == [FULL] * (50 - admitted)


def test_la_limite_de_fichiers_est_relevee_sans_un_mot(start_server):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (30, {hard}))"
    server = start_server(patch=limit)
    peers = [server.connect() for _ in range(100)]
    for number, peer in enumerate(peers):
        peer.join(f"u{number}") if not number else peer.send(f"u{number}\n")
    for peer in peers[1:]:
        assert peer.line().startswith("* Bienvenue")
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_accept_qui_echoue_est_signale_une_fois_et_marque_une_pause(inside, monkeypatch):
    """Sans pause, accept échouerait sans fin, à 100 % de processeur."""
    pauses, signals = [], []
    monkeypatch.setattr(serveur_exo.time, "sleep", pauses.append)

    class FullListener:
        def settimeout(self, seconds: float) -> None:
            pass

        def accept(self) -> None:
            if len(pauses) == 3:
                signals.append(signal.SIGINT)
            raise OSError(errno.ENFILE, "File table overflow")

    class Options:
        max_clients, debit = 10, 20

    broadcaster = inside().broadcaster
    reports = []
    broadcaster.errors.put = reports.append
    serveur_exo.accept_clients(FullListener(), broadcaster, Options, signals)
    assert pauses == [serveur_exo.PAUSE_SECONDS] * 4
    assert len(reports) == 1 and reports[0].startswith("Impossible d'accepter un client : ")


def test_mille_clients_entrent_et_s_entendent(start_server):
    server = start_server()
    peers = [server.connect() for _ in range(1000)]
    for number, peer in enumerate(peers):
        peer.send(f"u{number}\n")
    for number, peer in enumerate(peers):
        assert peer.line().startswith(f"* Bienvenue, u{number} !")
    peers[0].send("Bonjour\n")
    for peer in peers[1:]:
        while (line := peer.line()) != "u0 : Bonjour":
            assert line.endswith(" a rejoint le chat.")
    threads = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
    assert threads <= 1 + 1000 + 3
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


def test_un_caractere_coupe_entre_deux_envois_arrive_entier(start_server):
    alice, bob = start_server().room("Alice", "Bob")
    start, end = "é\n".encode()[:1], "é\n".encode()[1:]
    bob.send(b"/liste\n" + start)
    assert bob.line() == "* Connectés (2) : Alice, Bob"  # le début est donc lu
    bob.send(end)
    assert alice.line() == "Bob : é"


def test_un_depot_fait_pendant_une_tournee_reveille_le_veilleur(inside):
    """Le lecteur de Bob a trouvé le verrou pris : sans réveil, son dépôt attendrait une seconde."""
    room = inside("Alice", "Bob")
    broadcaster, (alice, bob) = room.broadcaster, room.clients
    make_round = broadcaster.make_round

    def round_with_a_late_deposit() -> bool:
        result = make_round()
        room.say(bob, "Bonjour")
        return result

    broadcaster.make_round = round_with_a_late_deposit
    broadcaster.bell.clear()
    room.say(alice, "Salut")
    assert broadcaster.bell.is_set()
    broadcaster.make_round = make_round
    broadcaster.try_round()
    room.peers[0].lines_until("Bob : Bonjour")


def test_le_veilleur_n_est_reveille_qu_au_changement(inside):
    """Un réveil à chaque tournée ajouterait un changement de thread par message."""
    room = inside("Alice", "Bob")
    room.clients[1].outbox.append(b"x" * 900_000)  # plus que le système n'en prend ici
    room.broadcaster.bell.clear()
    room.say(room.clients[0], "un")
    assert room.broadcaster.bell.is_set()
    room.broadcaster.bell.clear()
    room.say(room.clients[0], "deux")
    assert not room.broadcaster.bell.is_set()


def test_un_client_a_au_plus_un_depot_en_attente(start_server):
    """Sa place est prise : son lecteur attend, et l'inbox reste petite quoi qu'il envoie."""
    patch = """
import threading
class Slot:
    def __init__(self):
        self.lock = threading.Lock()
        self.release = self.lock.release
    def acquire(self):
        if not self.lock.acquire(blocking=False):
            print(len(inbox), flush=True)
            s.os._exit(0)
new_client, post = s.Client.__init__, s.Hub.post
def new_client_with_slot(self, *arguments):
    new_client(self, *arguments)
    self.deposit_slot = Slot()
def post_and_hold(self, client, lines):
    global inbox
    inbox = self.inbox
    if lines and lines[0].startswith(b"x"):
        self.round_lock.acquire(blocking=False)
    post(self, client, lines)
s.Client.__init__, s.Hub.post = new_client_with_slot, post_and_hold
"""
    server = start_server("--debit", "0", patch=patch)
    bob = server.connect("Bob")
    with contextlib.suppress(OSError):
        bob.send("x\n" * 100_000)
    assert server.process.wait(PATIENCE) == 0
    assert server.console_lines()[-1] == "1"


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


def test_le_seau_a_jetons_laisse_passer_l_avance_puis_le_debit(monkeypatch):
    now, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds + 1e-6  # une vraie pause dure toujours un peu plus

    monkeypatch.setattr(serveur_exo.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(serveur_exo.time, "sleep", sleep)
    bucket = serveur_exo.TokenBucket(20)
    assert bucket.take(250) == serveur_exo.BURST_LINES and pauses == []
    assert bucket.take(250) == 1 and sum(pauses) == pytest.approx(0.05)
    now[0] += 1
    assert bucket.take(250) == 20
    now[0] += 3600
    assert bucket.take(250) == serveur_exo.BURST_LINES
    assert serveur_exo.TokenBucket(0).take(250) == 250


# --- Partir ------------------------------------------------------------------------


def test_un_client_qui_ferme_sa_moitie_recoit_encore_ses_reponses(start_server):
    alice = start_server().connect("Alice")
    alice.send("/liste")
    alice.sock.shutdown(socket.SHUT_WR)
    assert [alice.line(), alice.line()] == ["* Connectés (1) : Alice", ""]


def test_l_au_revoir_est_suivi_de_la_fermeture_sans_que_le_client_ferme(start_server):
    server = start_server(patch=f"s.FAREWELL_SECONDS = {10 * PATIENCE}")
    alice = server.connect("Alice")
    alice.send("exit\nencore\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]


def test_un_client_coupe_au_milieu_d_une_ligne_part_comme_un_autre(start_server):
    alice, bob = start_server().room("Alice", "Bob")
    bob.send("une moitié de li")
    bob.reset()
    assert alice.line() == "* Bob a quitté le chat."
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_cinq_cents_passages_ne_laissent_rien(start_server):
    server = start_server()
    alice = server.connect("Alice")

    def kept() -> tuple[int, int]:
        process = Path(f"/proc/{server.process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    before = kept()
    for number in range(500):
        visitor = server.connect()
        visitor.send(f"v{number}\nexit\n" if number % 2 else f"v{number}\n")
        visitor.reset() if number % 3 == 0 else visitor.close()
    while alice.barrier() != "* Connectés (1) : Alice":
        pass
    while kept() != before:  # un thread qui finit se voit encore un instant
        assert alice.barrier()


def test_un_socket_accepte_est_sonde_et_envoie_sans_attendre(inside):
    broadcaster = inside().broadcaster
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()):
            sock, _ = listener.accept()
            assert serveur_exo.start_reader(sock, "127.0.0.1", broadcaster, 20) == ""
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes == 120
        while broadcaster.clients:
            broadcaster.try_round()


# --- Des clients lents, hostiles ---------------------------------------------------


def test_un_client_qui_ne_lit_plus_est_deconnecte_et_les_autres_ne_perdent_rien(start_server):
    server = start_server("--debit", "0")
    stuck, alice, bob = server.room("Bloque", "Alice", "Bob")
    sent = [f"{number} {'x' * 3000}" for number in range(4000)]  # 12 Mo : plus que le système
    threading.Thread(target=bob.send, args=["\n".join(sent) + "\nexit\n"]).start()
    got = alice.lines_until("* Bob a quitté le chat.")
    assert [line for line in got if " : " in line] == [f"Bob : {line}" for line in sent]
    assert [line for line in got if " : " not in line] == ["* Bloque a quitté le chat."]
    report = server.error()
    assert report.startswith("Bloque (127.0.0.1) : connexion coupée, ne lit plus ses messages (")
    assert stuck.line()


def test_un_client_qui_rattrape_tout_son_retard_reste_et_l_inbox_se_rouvre(inside, monkeypatch):
    monkeypatch.setattr(serveur_exo, "CATCH_UP_SECONDS", PATIENCE)  # une machine peut être lente
    room = inside("Alice", "Bob")
    broadcaster, (late, bob) = room.broadcaster, room.clients
    late.outbox.append(b"x" * 8_000_000 + b"\n")
    room.say(bob, "Bonjour")
    assert broadcaster.late == {late}
    room.say(bob, "Tu lis ?")  # ce dépôt attend
    while late.outbox:
        assert broadcaster.late == {late}  # en lire une partie ne suffit pas
        assert room.peers[0].sock.recv(1 << 20)
        broadcaster.try_round()
    broadcaster.try_round()
    assert broadcaster.late == set() and not late.leaving and not broadcaster.inbox
    room.peers[0].lines_until("Bob : Tu lis ?")


def test_un_client_qui_part_en_retard_n_est_plus_attendu(inside):
    """Sinon les lignes de tous les clients attendraient sans fin."""
    room = inside("Alice", "Bob")
    broadcaster, (late, bob) = room.broadcaster, room.clients
    late.outbox.append(b"x" * 8_000_000)
    broadcaster.try_round()
    assert broadcaster.late == {late}
    late.gone = True
    broadcaster.room.leave(late)
    broadcaster.try_round()
    assert broadcaster.late == set()


def test_tant_qu_un_client_est_en_retard_les_depots_attendent(inside):
    room = inside("Alice", "Bob", "Chloé")
    broadcaster, (late, bob, _) = room.broadcaster, room.clients
    late.outbox.append(b"x" * 8_000_000)
    broadcaster.try_round()
    room.say(bob, "Bonjour")
    assert len(broadcaster.inbox) == 1
    late.deadline = 0  # la seconde est passée
    broadcaster.try_round()
    assert late.leaving and broadcaster.late == set()
    broadcaster.try_round()
    assert len(broadcaster.inbox) == 0
    assert room.peers[2].lines_until("Bob : Bonjour")[1:] == ["* Alice a quitté le chat."]


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


def test_une_avalanche_de_petites_lignes_ne_gonfle_pas_le_serveur(start_server):
    """Deux octets reçus en donnent cent trente : sans borne par dépôt, 64 Kio en feraient 4 Mio."""
    server = start_server("--debit", "0")
    name = "é" * 32
    talker, listener = server.room(name, "Bob")
    before = peak_kilobytes(server.process)
    threading.Thread(target=talker.send, args=["a\n" * 400_000 + "exit\n"]).start()
    assert len(listener.lines_until(f"* {name} a quitté le chat.")) == 400_000
    assert peak_kilobytes(server.process) - before < 6_000


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\n\xfe\xfe\n", bytes(range(256))],
    ids=["http", "tls", "octets"],
)
def test_un_autre_protocole_ne_gene_personne(start_server, noise):
    server = start_server()
    alice, stranger = server.connect("Alice"), server.connect()
    stranger.send(noise)
    assert stranger.line().startswith("! ")
    assert alice.barrier() == "* Connectés (1) : Alice"
    assert server.stop() == 0


# --- La console et stderr ----------------------------------------------------------


def test_stderr_ecrit_avant_la_console():
    process = subprocess.Popen(
        [sys.executable, "serveur_exo.py", "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with process.stdout as both:
        assert both.readline().decode().startswith("Écoute sur ")
        assert both.readline().decode() == "Serveur en attente de connexions...\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_une_console_que_personne_ne_lit_n_arrete_ni_le_chat_ni_la_fin(start_server):
    patch = "s.WAITING_CHARS = 1_000_000"
    server = start_server("--debit", "0", stdout=subprocess.PIPE, patch=patch)
    alice, bob = server.room("Alice", "Bob")
    bob.send(f"{'x' * 1000}\n" * 3000 + "exit\n")
    assert len(alice.lines_until("* Bob a quitté le chat.")) == 3000
    # On se met à lire : la ligne qui dit ce qui manque vient d'elle-même.
    shown = skipped = notices = 0
    while shown + skipped < 1 + 2 + 3000 + 1:  # l'accueil, deux arrivées, les messages, un départ
        line = server.process.stdout.readline().decode()
        assert line
        if found := re.fullmatch(r"… (\d+) lignes non affichées\.\n", line):
            skipped += int(found[1])
            notices += 1
        else:
            shown += 1
    assert skipped and notices == 1
    assert server.stop() == 0


def test_une_seule_ligne_non_affichee_se_dit_au_singulier(start_server):
    """L'avis s'affiche même si aucune ligne ne vient après celle que l'on n'a pas affichée."""
    server = start_server(stdout=subprocess.PIPE, patch="s.WAITING_CHARS = 200")
    alice = server.connect("Alice")
    assert server.process.stdout.readline() == b"Serveur en attente de connexions...\n"
    assert server.process.stdout.readline() == b"Alice (127.0.0.1) a rejoint le chat.\n"
    alice.send("x" * 1000 + "\n")
    assert server.process.stdout.readline().decode() == "… 1 ligne non affichée.\n"


def test_un_tube_plein_n_empeche_pas_de_finir(start_server):
    server = start_server("--debit", "0", "--max-clients", "2", stdout=subprocess.PIPE)
    alice, bob = server.room("Alice", "Bob")
    bob.send(f"{'x' * 1000}\n" * 500)
    for _ in range(500):
        assert alice.line()
    server.connect()
    assert server.error() == "Le serveur est complet : 127.0.0.1 refusé."
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_terminal_arrete_par_ctrl_s_n_arrete_ni_le_chat_ni_la_fin(start_server):
    master, slave = pty.openpty()
    server = start_server(stdout=slave)
    alice, bob = server.room("Alice", "Bob")
    termios.tcflow(slave, termios.TCOOFF)
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."
    os.close(slave)
    os.close(master)


def test_une_console_fermee_est_signalee_une_fois_et_le_serveur_finit_bien(start_server):
    server = start_server(stdout=subprocess.PIPE)
    server.process.stdout.close()
    alice, bob = server.room("Alice", "Bob")
    assert server.error() == (
        "Impossible d'écrire dans la console (le programme qui lisait s'est arrêté). "
        "Le chat continue."
    )
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


@pytest.mark.parametrize("closed", [1, 2])
def test_une_sortie_fermee_des_le_depart_ne_gene_pas(closed):
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


def test_un_flux_qui_ne_connait_pas_un_caractere_montre_un_point_d_interrogation(inside):
    """Une ancienne console de Windows : les accents y passent par le flux, pas par ses octets."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp850")
    writer = serveur_exo.Writer(console)
    writer.put("Élise : œuf 👍")
    assert writer.finish()
    assert console.buffer.getvalue() == "Élise : ?uf ?\n".encode("cp850")


def test_stderr_ecrit_dans_l_encodage_du_terminal():
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


def test_dans_une_session_qui_continue_on_peut_lancer_et_arreter_deux_fois():
    """%run d'IPython, python3 -i : le second lancement s'arrête aussi, et Ctrl+C marche ensuite."""
    program = (
        "import os, signal, sys\n"
        "import serveur_exo\n"
        "sys.ps1, sys.argv = '>>> ', ['serveur_exo.py', '--port', sys.argv[1]]\n"
        "for _ in range(2):\n"
        "    print('main renvoie', serveur_exo.main(), flush=True)\n"
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


def test_le_journal_continue_un_fichier_laisse_inacheve(start_server, tmp_path):
    log = tmp_path / "journal.txt"
    log.write_bytes("une ligne coup".encode())
    server = start_server("--journal", str(log), "--horodatage")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line().endswith("] * Bob a rejoint le chat.")
    alice.send("/privé Bob secret\nBonjour\n")
    assert bob.line().endswith("] Alice (privé) : secret")
    assert bob.line().endswith("] Alice : Bonjour")
    assert server.stop() == 0
    first, *others = log.read_text(encoding="utf-8").splitlines()
    assert first == "une ligne coup"
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d (.*)"
    assert [re.fullmatch(pattern, line)[1] for line in others] == [
        "Alice (127.0.0.1) a rejoint le chat.",
        "Bob (127.0.0.1) a rejoint le chat.",
        "Alice : Bonjour",
    ]
    assert all(line[0] == "[" for line in server.console_lines()[1:])


def test_aucune_ligne_ne_manque_au_journal_meme_si_personne_ne_lit_la_console(
    start_server, tmp_path
):
    log = tmp_path / "journal.txt"
    server = start_server("--debit", "0", "--journal", str(log), stdout=subprocess.PIPE)
    bob = server.connect("Bob")
    bob.send("".join(f"{number} {'x' * 3990}\n" for number in range(3000)) + "exit\n")
    assert [bob.line(), bob.line()] == ["* Au revoir, Bob.", ""]
    bob.close()
    assert server.stop() == 0  # la tournée de l'au revoir est finie, donc écrite
    logged = log.read_text(encoding="utf-8").splitlines()
    assert [int(line.split()[3]) for line in logged[1:-1]] == list(range(3000))


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
    log = tmp_path / "journal.txt"
    server = start_server("--journal", str(log))
    alice, bob = server.room("Alice", "Bob")

    def limit(size: int) -> None:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def say(text: str) -> None:
        alice.send(f"{text}\n")
        assert bob.line() == f"Alice : {text}"
        bob.barrier()  # la tournée qui l'a dit est finie : le journal est écrit

    for missing, notice in ((["deux", "trois"], "… 2 lignes manquent."), (["x"], "… 1 ligne manque.")):
        say("avant")
        limit(log.stat().st_size + 10)
        say(missing[0])
        assert server.error() == (
            "Impossible d'écrire dans le journal (fichier trop gros). Le chat continue."
        )
        for text in missing[1:]:
            say(text)
        limit(resource.RLIM_INFINITY)
        say("après")
        assert server.error() == "Le journal s'écrit de nouveau."
        lines = [line.split(" ", 1)[1] for line in log.read_text(encoding="utf-8").splitlines()]
        assert [line for line in lines[-3:] if line != "Alice : après"] == ["Alice : avant", notice]
    assert server.stop() == 0


def test_un_journal_qui_ne_s_ecrit_plus_est_reessaye_sans_que_personne_ne_parle(tmp_path):
    """Une tournée écrite en partie ne laisse pas non plus de ligne coupée."""
    reports = []

    class Errors:
        put = staticmethod(reports.append)

    class FullDisk(io.FileIO):
        room = 30

        def write(self, data) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            size = min(self.room, len(data))
            self.room -= size
            return super().write(data[:size])

    path = tmp_path / "journal.txt"
    log = serveur_exo.Log(str(path))
    log.file.close()
    log.file = FullDisk(str(path), "ab+")
    log.append(["un", "deux"], Errors)
    assert path.read_bytes() == b"" and log.missing_lines == 2
    log.append([], Errors)
    assert len(reports) == 1 and "disque plein" in reports[0]
    log.file.room = 10_000
    log.append([], Errors)
    assert path.read_text(encoding="utf-8").endswith(" … 2 lignes manquent.\n")
    assert len(reports) == 2 and log.missing_lines == 0

    def refuse(size: int) -> None:  # un fichier que l'on ne peut qu'allonger (chattr +a)
        raise OSError(errno.EPERM, "Operation not permitted")

    log.file.room, log.file.truncate = 30, refuse
    log.append(["trois"], Errors)
    assert len(reports) == 3 and log.missing_lines == 1
    log.file.close()


def test_un_disque_plein_des_le_depart_est_signale_une_fois(start_server):
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
    server.process.send_signal(number)
    server.process.send_signal(number)  # un second Ctrl+C ne gêne pas
    for peer in (alice, bob, mute):
        assert [peer.line(), peer.line()] == ["* Le serveur s'arrête.", ""]
    assert server.process.wait(PATIENCE) == 0
    assert server.error() == "Serveur arrêté."
    assert server.console_lines()[-1] == "Bob (127.0.0.1) a rejoint le chat."


def test_un_second_ctrl_c_au_dernier_instant_ne_gene_pas(start_server):
    server = start_server()
    server.process.send_signal(signal.SIGINT)
    assert server.error() == "Serveur arrêté."
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0


def test_ce_qui_etait_depose_est_traite_avant_l_annonce_de_l_arret(inside):
    room = inside("Alice", "Bob")
    alice, bob = room.clients
    room.broadcaster.round_lock.acquire()
    for client in (alice, bob):
        room.say(client, "dernier mot")
    room.broadcaster.round_lock.release()
    room.broadcaster.is_stopping = True
    room.broadcaster.try_round()
    for peer, other in zip(room.peers, ("Bob", "Alice")):
        peer.lines_until(f"{other} : dernier mot")
        assert peer.line() == "* Le serveur s'arrête."


def test_les_clients_qui_ne_ferment_pas_ne_retardent_pas_la_fin(start_server):
    ours = serveur_exo  # les quatre attentes de l'arrêt, l'une après l'autre
    assert ours.ACCEPT_SECONDS + ours.STOP_SECONDS + 2 * ours.OUTPUT_SECONDS <= 5
    server = start_server()
    peers = server.room("Alice", "Bob")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5
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
def test_une_tournee_qui_echoue_arrete_le_serveur(error):
    server = Server(patch=f"def enter(*_):\n    raise {error}\ns.Room.enter = enter")
    server.connect().send("Alice\n")
    assert server.process.wait(PATIENCE) == 1
    assert "Traceback" in server.end()


def test_un_serveur_au_repos_ne_se_reveille_presque_pas(start_server):
    server = start_server(patch=f"s.ACCEPT_SECONDS = {serveur_exo.ACCEPT_SECONDS}")
    server.room("Alice", "Bob")

    def wake_ups() -> int:
        tasks = Path(f"/proc/{server.process.pid}/task").glob("*/status")
        found = [re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", path.read_text()) for path in tasks]
        return sum(int(match[1]) for match in found)

    def is_at_rest() -> bool:
        before, started = wake_ups(), time.monotonic()
        time.sleep(2)
        return wake_ups() - before <= 3 * (time.monotonic() - started) + 1

    assert any(is_at_rest() for _ in range(5))  # la première fois, Bob vient peut-être d'entrer


# --- Les adresses et les options -----------------------------------------------------


def run_main(monkeypatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", *options])
    return serveur_exo.main()


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
def test_une_mauvaise_option_renvoie_2_et_une_ligne_qui_la_nomme(options, named, capfd, monkeypatch):
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
        (["--journal", "/"], "c'est un dossier"),
        (["--journal", "/nulle/part"], "ce fichier ou son dossier n'existe pas"),
        (["--journal", "/dev/null/x"], "journal"),
    ],
)
def test_ce_qui_ne_peut_pas_marcher_renvoie_1_et_dit_quoi_faire(options, advice, capfd, monkeypatch):
    assert run_main(monkeypatch, "--port", "0", *options) == 1
    errors = capfd.readouterr().err
    assert advice in errors and errors.count("\n") == 1


def test_un_tube_donne_comme_journal_est_refuse(capfd, monkeypatch, tmp_path):
    os.mkfifo(tmp_path / "tube")
    assert run_main(monkeypatch, "--port", "0", "--journal", str(tmp_path / "tube")) == 1
    assert "tube" in capfd.readouterr().err


def test_un_port_pris_renvoie_1_et_dit_quoi_faire(start_server, capfd, monkeypatch):
    assert run_main(monkeypatch, "--port", str(start_server().port)) == 1
    assert "ce port est déjà pris" in capfd.readouterr().err


def test_un_port_reserve_renvoie_1_et_dit_quoi_faire(capfd, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serveur_exo.socket, "create_server", refuse)
    assert run_main(monkeypatch, "--port", "80") == 1
    assert "un autre --port, à partir de 1024." in capfd.readouterr().err


def test_ipv6_marche(start_server):
    server = start_server("--hote", "[::1]")
    assert server.listening == f"Écoute sur [::1]:{server.port} (Ctrl+C pour arrêter)."
    Peer(socket.create_connection(("::1", server.port))).join("Alice").close()


def test_ouvert_a_tous_en_ipv6_ipv4_entre_aussi(start_server):
    server = start_server("--hote", "::")
    server.connect("Alice")
    assert server.stop() == 0
    assert server.console_lines()[1] == "Alice (127.0.0.1) a rejoint le chat."


def test_un_nom_qui_a_deux_adresses_veut_dire_celle_d_ipv4(monkeypatch):
    """Sinon, si ::1 vient d'abord, le client et le serveur n'auraient pas la même adresse."""
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(serveur_exo.socket, "getaddrinfo", lambda *_, **__: both)
    with serveur_exo.open_listener("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_une_adresse_locale_ipv6_garde_son_interface(monkeypatch):
    asked = []

    def remember(address, **_):
        asked.append(address)
        raise OSError(errno.EADDRNOTAVAIL, "")

    monkeypatch.setattr(serveur_exo.socket, "create_server", remember)
    with pytest.raises(serveur_exo.Refused):
        serveur_exo.open_listener("fe80::1%lo", 12345)
    assert asked == [("fe80::1", 12345, 0, socket.if_nametoindex("lo"))]


class NetworkOf:
    """Imite le module socket d'une machine qui a ces adresses."""

    AF_INET, AF_INET6, SOCK_DGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses

    def socket(self, family, kind):
        @contextlib.contextmanager
        def opened():
            yield self

        self.found = self.addresses.get("v4" if family == socket.AF_INET else "v6")
        return opened()

    def connect(self, address: tuple) -> None:
        if not self.found:
            raise OSError(errno.ENETUNREACH, "")

    def getsockname(self) -> tuple:
        return self.found, 0


@pytest.mark.parametrize(
    ("network", "bound", "command"),
    [
        ({"v4": "192.168.1.23", "v6": "fd00::2"}, ("0.0.0.0", 12345), "--hote 192.168.1.23"),
        ({"v4": "192.168.1.23"}, ("::", 5555, 0, 0), "--hote 192.168.1.23 --port 5555"),
        ({"v6": "fd00::2"}, ("::", 12345, 0, 0), "--hote fd00::2"),
        ({}, ("0.0.0.0", 12345), None),
        ({"v4": "192.168.1.23"}, ("127.0.0.1", 12345), None),
    ],
)
def test_un_serveur_ouvert_dit_quoi_taper_sur_les_autres_machines(
    monkeypatch, network, bound, command
):
    monkeypatch.setattr(serveur_exo, "socket", NetworkOf(**network))

    class Listener:
        getsockname = staticmethod(lambda: bound)

    _, *others = serveur_exo.greeting(Listener).splitlines()
    wanted = f"Sur les autres machines : python3 client_exo.py {command}"
    assert others == ([wanted] if command else [])


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


@pytest.mark.parametrize("name", ["", "Alice"], ids=["muet", "qui_ne_lit_pas"])
def test_la_ou_shutdown_ne_reveille_pas_recv_le_socket_est_ferme_aussi(inside, monkeypatch, name):
    monkeypatch.setattr(serveur_exo, "CLOSE_WAKES_RECV", True)
    room = inside(name)
    (client,) = room.clients
    room.broadcaster.late.add(client)
    client.outbox = [b"x"]
    client.deadline = 0
    room.broadcaster.disconnect(client)  # un premier avertissement, ou la coupure
    if not name:
        client.deadline = 0
        room.broadcaster.disconnect(client)
    assert client.sock.fileno() == -1


def test_ctrl_pause_arrete_comme_ctrl_c(start_server):
    server = start_server(patch="s.signal.SIGBREAK = s.signal.SIGUSR1")
    alice = server.connect("Alice")
    assert server.stop(signal.SIGUSR1) == 0
    assert alice.line() == "* Le serveur s'arrête."


# --- Le banc d'essai -----------------------------------------------------------------


def test_le_banc_d_essai_rapide_trouve_tout_juste():
    result = subprocess.run(
        [sys.executable, "tests/banc_essai.py", "--rapide"],
        cwd=ROOT, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, b"juste\n", b"")
