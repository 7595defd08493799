"""Le vrai serveur, sur la boucle locale, et les règles du salon sans socket ni thread."""

import signal
import socket
import threading

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
