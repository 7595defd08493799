"""Le vrai serveur, sur la boucle locale, et les règles du salon sans socket ni thread."""

import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import serveur_exo
from serveur_exo import Client, Room


def enter(room: Room, name: str) -> Client:
    client = Client(None, "127.0.0.1")
    room.receive(client, [name.encode()])
    client.outbox.clear()
    return client


def mail_of(client: Client) -> list[str]:
    lines = b"".join(client.outbox).decode().splitlines()
    client.outbox.clear()
    return lines


def test_un_message_va_a_tous_les_autres_et_a_la_console():
    room = Room()
    alice, bob = enter(room, "Alice"), enter(room, "Bob")
    alice.outbox.clear()
    room.receive(alice, [b"  Bonjour ! "])
    assert mail_of(bob) == ["Alice :   Bonjour ! "]
    assert mail_of(alice) == []
    assert room.news[-1] == "Alice :   Bonjour ! "


def test_un_nom_deja_pris_a_la_casse_pres_est_refuse():
    room = Room()
    enter(room, "Élise")
    other = enter(room, "")
    room.receive(other, ["E\u0301LISE".encode()])
    assert mail_of(other)[0].startswith("! Le nom ")
    assert other.name is None


def test_cinq_refus_ferment():
    room = Room()
    client = Client(None, "127.0.0.1")
    room.receive(client, [b"*", b"\xff", b"a b", b"!"])
    assert not client.leaving
    room.receive(client, [b"x" * 5000, b"Alice"])
    assert client.leaving and client.name is None
    assert len(mail_of(client)) == 5


def test_les_departs_s_annoncent_une_fois():
    room = Room()
    alice, bob = enter(room, "Alice"), enter(room, "Bob")
    alice.outbox.clear()
    room.receive(bob, [b"exit", b"encore"])
    room.leave(bob)
    assert mail_of(bob) == ["* Au revoir, Bob."]
    assert mail_of(alice) == ["* Bob a quitté le chat."]


@pytest.mark.parametrize("word", ["/privé", "/prive", "/MP", "/prive\u0301"])
def test_un_message_prive_ne_va_qu_a_un_seul(word):
    room = Room()
    alice, bob, eve = enter(room, "Alice"), enter(room, "Bob"), enter(room, "Eve")
    for client in (alice, bob):
        client.outbox.clear()
    seen = list(room.news)
    room.receive(alice, [f"{word} BOB //à toi ".encode()])
    assert mail_of(bob) == ["Alice (privé) : //à toi "]
    assert mail_of(alice) == ["* Message privé envoyé à Bob."]
    assert mail_of(eve) == [] and room.news == seen


@pytest.mark.parametrize("line", ["/privé", "/privé Bob", "/privé Zoé salut", "/privé Alice moi"])
def test_un_message_prive_impossible_donne_une_seule_erreur(line):
    room = Room()
    alice = enter(room, "Alice")
    enter(room, "Bob")
    alice.outbox.clear()
    room.receive(alice, [line.encode()])
    assert [answer[:2] for answer in mail_of(alice)] == ["! "]


def test_la_session_de_l_exercice(serveur):
    server = serveur()
    assert server.listening == f"Écoute sur 127.0.0.1:{server.port} (Ctrl+C pour arrêter)."
    alice = server.connect("Alice")
    bob = server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    alice.send("Bonjour !\nexit\n")
    assert alice.line() == "* Au revoir, Alice."
    assert alice.line() == ""
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


def test_qui_ferme_sa_moitie_recoit_encore_ses_reponses(serveur):
    server = serveur()
    alice = server.connect("Alice")
    alice.send("/liste")
    alice.sock.shutdown(socket.SHUT_WR)
    assert alice.line() == "* Connectés (1) : Alice"
    assert alice.line() == ""


def test_tous_voient_les_lignes_dans_le_meme_ordre(serveur):
    server = serveur("--debit", "0")
    listeners = [server.connect(f"ecoute{n}") for n in range(2)]
    talkers = [server.connect(f"parle{n}") for n in range(5)]
    for talker in talkers:
        talker.send("".join(f"{n}\n" for n in range(200)) + "exit\n")
    seen = []
    for listener in listeners:
        lines = []
        while sum(line.endswith("a quitté le chat.") for line in lines) < 5:
            lines.append(listener.line())
            assert lines[-1]
        seen.append([line for line in lines if " : " in line])
    assert len(seen[0]) == 1000
    assert seen[0] == seen[1]
    assert server.stop() == 0
    assert [line for line in server.console_lines() if " : " in line] == seen[0]


def test_un_bavard_est_freine_sans_rien_perdre(serveur):
    server = serveur(patch="s.BURST_LINES = 5")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    bob.send("".join(f"{n}\n" for n in range(30)))
    assert [alice.line() for _ in range(30)] == [f"Bob : {n}" for n in range(30)]


def test_qui_ne_lit_plus_est_renvoye_et_les_autres_ne_perdent_rien(serveur):
    server = serveur("--debit", "0")
    stuck, alice, bob = (server.connect(name) for name in ("Bloque", "Alice", "Bob"))
    assert alice.line() == "* Bob a rejoint le chat."
    sent = [f"{number} {'x' * 3000}" for number in range(4000)]  # 12 Mo : plus que le système
    threading.Thread(target=bob.send, args=["\n".join(sent) + "\nexit\n"]).start()
    got = alice.lines_until("* Bob a quitté le chat.")
    assert [line for line in got if " : " in line] == [f"Bob : {line}" for line in sent]
    assert [line for line in got if " : " not in line] == ["* Bloque a quitté le chat."]
    assert server.error().startswith("Bloque (127.0.0.1) renvoyé")
    assert stuck.line()


@pytest.mark.parametrize("option", [["--port", "70000"], ["--debit", "-1"], ["--hote", ""], ["-x"]])
def test_une_mauvaise_option_rend_2_et_une_seule_ligne(option, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", *option])
    assert serveur_exo.main() == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_un_port_pris_rend_1_et_dit_quoi_faire(serveur, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--port", str(serveur().port)])
    assert serveur_exo.main() == 1
    assert "ce port est déjà pris" in capfd.readouterr().err


def test_le_journal_continue_un_fichier_laisse_inacheve(serveur, tmp_path):
    log = tmp_path / "journal.txt"
    log.write_bytes("une ligne coup".encode())
    server = serveur("--journal", str(log), "--horodatage")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line().endswith("] * Bob a rejoint le chat.")
    alice.send("/privé Bob secret\nBonjour\n")
    assert bob.line().endswith("] Alice (privé) : secret")
    assert bob.line().endswith("] Alice : Bonjour")
    assert server.stop() == 0
    first, *others = log.read_text(encoding="utf-8").splitlines()
    assert first == "une ligne coup"
    assert [line[:4] for line in others] == [others[0][:4]] * 3
    assert [line.split(" ", 1)[1] for line in others] == [
        "Alice (127.0.0.1) a rejoint le chat.",
        "Bob (127.0.0.1) a rejoint le chat.",
        "Alice : Bonjour",
    ]
    assert all(line[0] == "[" for line in server.console_lines()[1:])


def test_un_journal_qui_ne_s_ecrit_plus_est_signale_une_fois(serveur):
    server = serveur("--journal", "/dev/full")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert server.error().startswith("Plus rien ne s'écrit dans le journal")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_journal_impossible_rend_1(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--port", "0", "--journal", str(tmp_path)])
    assert serveur_exo.main() == 1
    assert "journal" in capfd.readouterr().err


def test_une_console_que_personne_ne_lit_n_arrete_ni_le_chat_ni_la_fin(serveur):
    server = serveur("--debit", "0", stdout=subprocess.PIPE, patch="s.OUTPUT_BYTES = 100_000")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send(f"{'x' * 1000}\n" * 500 + "exit\n")
    assert alice.line() == "* Bob a rejoint le chat."
    assert len(alice.lines_until("* Bob a quitté le chat.")) == 500
    # On se met à lire : la ligne qui dit ce qui manque vient d'elle-même.
    shown = skipped = 0
    while shown + skipped < 1 + 2 + 500 + 1:  # l'accueil, deux arrivées, les messages, un départ
        line = server.process.stdout.readline().decode()
        assert line
        if found := re.fullmatch(r"… (\d+) lignes non affichées\.\n", line):
            skipped += int(found[1])
        else:
            shown += 1
    assert skipped
    assert server.stop() == 0


def test_un_tube_plein_n_empeche_pas_de_finir(serveur):
    server = serveur("--debit", "0", stdout=subprocess.PIPE)
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send(f"{'x' * 1000}\n" * 500 + "exit\n")
    assert len(alice.lines_until("* Bob a quitté le chat.")) == 501
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_une_console_fermee_est_signalee_une_fois(serveur):
    server = serveur(stdout=subprocess.PIPE)
    server.process.stdout.close()
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert server.error().startswith("Plus rien ne s'écrit dans la console")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_qui_ne_donne_pas_de_nom_a_temps_est_ferme(serveur):
    server = serveur(patch="s.NAME_SECONDS = 0.2")
    mute = server.connect()
    mute.send("Al")
    assert mute.line().startswith("! Pas de nom")
    assert mute.line() == ""


def test_un_nom_donne_a_temps_n_est_plus_presse(serveur):
    server = serveur(patch="s.NAME_SECONDS = 0.2")
    mute, alice = server.connect(), server.connect("Alice")
    assert mute.line().startswith("! Pas de nom")
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_un_serveur_complet_refuse_puis_accepte_de_nouveau(serveur):
    server = serveur("--max-clients", "1")
    alice = server.connect("Alice")
    other = server.connect()
    other.send("Bob\n")
    assert other.line() == "! Le serveur est complet, réessayez plus tard."
    assert server.error() == "Le serveur est complet : 127.0.0.1 refusé."
    alice.send("exit\n")
    assert alice.line() == "* Au revoir, Alice." and alice.line() == ""
    alice.close()
    while True:
        late = server.connect()
        late.send("Bob\n")
        if late.line().startswith("* Bienvenue"):
            break
    assert late.barrier() == "* Connectés (1) : Bob"


def test_deux_cents_mega_sans_fin_de_ligne_ne_gonflent_pas_le_serveur(serveur):
    server = serveur()
    alice = server.connect("Alice")
    before = resident_kilobytes(server)
    piece = b"x" * 1_000_000
    for _ in range(200):
        alice.send(piece)
    alice.send("\n")
    assert alice.line().startswith("! Ligne trop longue")
    assert alice.barrier() == "* Connectés (1) : Alice"
    assert resident_kilobytes(server) - before < 10_000


def resident_kilobytes(server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_cinq_cents_passages_ne_laissent_rien(serveur):
    server = serveur()
    alice = server.connect("Alice")

    def kept() -> tuple[int, int]:
        process = Path(f"/proc/{server.process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    before = kept()
    for number in range(500):
        visitor = server.connect()
        visitor.send(f"v{number}\nexit\n" if number % 2 else f"v{number}\n")
        if number % 3 == 0:
            visitor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        visitor.close()
    while alice.barrier() != "* Connectés (1) : Alice":
        pass
    while kept() != before:  # un thread qui finit se voit encore un instant
        assert alice.barrier()


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\n\xff\xfe\n", bytes(range(256))],
    ids=["http", "tls", "octets"],
)
def test_un_autre_protocole_ne_gene_personne(serveur, noise):
    server = serveur()
    alice, stranger = server.connect("Alice"), server.connect()
    stranger.send(noise)
    assert stranger.line().startswith("! ")
    assert alice.barrier() == "* Connectés (1) : Alice"
    assert server.stop() == 0


def test_sans_msg_dontwait_le_chat_marche_aussi(serveur):
    server = serveur(patch="s.DONT_WAIT = None")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"


def test_un_facteur_qui_meurt_arrete_le_serveur():
    program = "import sys, serveur_exo as s\ns.Room.join = None\nsys.exit(s.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--port", "0"],
        cwd=Path(serveur_exo.__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    port = int(process.stderr.readline().decode().split(" (")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"Alice\n")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" in errors


def test_ipv6_marche(serveur):
    server = serveur("--hote", "::1")
    assert server.listening.startswith("Écoute sur [::1]:")


def test_la_limite_de_fichiers_borne_les_clients_et_le_dit(serveur):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))"
    server = serveur(patch=limit)
    assert server.error().startswith("18 clients au plus")
    peers = [server.connect() for _ in range(20)]
    for number, peer in enumerate(peers):
        peer.send(f"u{number}\n")
    answers = [peer.line() for peer in peers]
    assert [answer.startswith("* Bienvenue") for answer in answers] == [True] * 18 + [False] * 2
    assert answers[-1] == "! Le serveur est complet, réessayez plus tard."
