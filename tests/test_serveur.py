"""Le vrai serveur, sur la boucle locale, et les règles du salon sans socket ni thread."""

import contextlib
import errno
import os
import pty
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import types
from pathlib import Path

import pytest
import serveur_exo
from conftest import PATIENCE, ROOT, Peer, Server, postman_with
from serveur_exo import Client, Room


# --- Le salon : les règles, sans socket ni thread ---------------------------------


def room_of(*names: str) -> tuple:
    """Rend un salon où ces clients sont entrés, sans courrier en attente, et ces clients."""
    room = Room()
    clients = [Client(None, "127.0.0.1") for _ in names]
    for client, name in zip(clients, names):
        room.receive(client, [name.encode()])
    for client in clients:
        client.outbox.clear()
    room.start_round("")
    return room, *clients


def mail_of(client: Client) -> list[str]:
    lines = b"".join(client.outbox).decode().splitlines()
    client.outbox.clear()
    return lines


def test_un_message_va_a_tous_les_autres_et_a_la_console():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, ["  Bonjour !\u00a0 ".encode()])
    assert mail_of(bob) == ["Alice :   Bonjour !\u00a0 "]
    assert mail_of(alice) == []
    assert room.news == ["Alice :   Bonjour !\u00a0 "]


def test_une_ligne_vide_ou_blanche_est_ignoree_meme_a_la_place_du_nom():
    room, alice, bob = room_of("Alice", "")
    room.receive(alice, [b"", b" \t "])
    assert mail_of(alice) == mail_of(bob) == [] and bob.refusals == 0


def test_une_arrivee_salue_l_un_et_previent_les_autres():
    room, alice, bob = room_of("Alice", "")
    room.receive(bob, [b" Bob\t"])
    assert [line.partition(" !")[0] for line in mail_of(bob)] == ["* Bienvenue, Bob"]
    assert mail_of(alice) == ["* Bob a rejoint le chat."]
    assert room.news == ["Bob (127.0.0.1) a rejoint le chat."]


def test_un_nom_deja_pris_a_la_casse_pres_est_refuse():
    room, _, other = room_of("Élise", "")
    room.receive(other, ["E\u0301LISE".encode()])
    assert mail_of(other)[0].startswith("! Le nom ")
    assert other.name is None


def test_cinq_refus_ferment():
    room, client = room_of("")
    room.receive(client, [b"*", b"\xff", b"a b", b"!"])
    assert not client.leaving
    room.receive(client, [b"x" * 5000, b"Alice"])
    assert client.leaving and client.name is None
    assert [line[:2] for line in mail_of(client)] == ["! "] * 5


@pytest.mark.parametrize("word", ["exit", " EXIT ", "/quitter", "/exit maintenant", "/QUIT"])
def test_partir_sans_avoir_donne_de_nom_ne_laisse_aucune_trace(word):
    room, alice, other = room_of("Alice", "")
    room.receive(other, [word.encode(), b"Bob"])
    assert other.leaving
    assert mail_of(alice) == mail_of(other) == room.news == []


def test_les_departs_s_annoncent_une_fois():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(bob, [b"exit", b"encore"])
    room.leave(bob)
    assert mail_of(bob) == ["* Au revoir, Bob."]
    assert mail_of(alice) == ["* Bob a quitté le chat."]
    assert room.news == ["Bob a quitté le chat."]


@pytest.mark.parametrize("word", ["/privé", "/prive", "/MP", "/prive\u0301"])
def test_un_message_prive_ne_va_qu_a_un_seul(word):
    room, alice, bob, eve = room_of("Alice", "Bob", "Eve")
    room.receive(alice, [f"{word} BOB //à toi ".encode()])
    assert mail_of(bob) == ["Alice (privé) : //à toi "]
    assert mail_of(alice) == ["* Message privé envoyé à Bob."]
    assert mail_of(eve) == room.news == []


@pytest.mark.parametrize("line", ["/privé", "/privé Bob", "/privé Zoé salut", "/privé Alice moi"])
def test_un_message_prive_impossible_donne_une_seule_erreur(line):
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [line.encode()])
    assert [answer[:2] for answer in mail_of(alice)] == ["! "]
    assert mail_of(bob) == []


def test_l_aide_donne_une_commande_par_avis():
    room, alice = room_of("Alice")
    room.receive(alice, [b"/help"])
    lines = mail_of(alice)
    assert all(line.startswith("* ") for line in lines)
    for word in ("/liste", "/privé NOM message", "/quitter", "exit", "/aide", "//texte"):
        assert any(word in line for line in lines)


def test_une_commande_inconnue_est_recopiee_sans_danger():
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [b"/dan\x1bse vite"])
    assert mail_of(alice) == ["! Commande inconnue : /dan\ufffdse (tapez /aide)."]
    assert mail_of(bob) == room.news == []


@pytest.mark.parametrize("line", [b"\xff\xfe", b"x" * 4097], ids=["pas_utf8", "trop_longue"])
def test_une_mauvaise_ligne_ne_derange_que_son_auteur(line):
    room, alice, bob = room_of("Alice", "Bob")
    room.receive(alice, [line, b"suite"])
    assert [answer[:2] for answer in mail_of(alice)] == ["! "]
    assert mail_of(bob) == ["Alice : suite"]


def test_seuls_les_messages_les_arrivees_et_les_departs_sont_horodates():
    room, alice, bob, other = room_of("Alice", "Bob", "")
    room.start_round("[12:34] ")
    room.receive(other, [b"*", "Élise".encode()])
    room.receive(alice, [b"Bonjour", "/privé Bob Psst".encode(), b"/liste", b"/danse"])
    room.receive(other, [b"/quitter"])
    assert mail_of(bob) == [
        "[12:34] * Élise a rejoint le chat.",
        "[12:34] Alice : Bonjour",
        "[12:34] Alice (privé) : Psst",
        "[12:34] * Élise a quitté le chat.",
    ]
    bare = [line for line in mail_of(alice) + mail_of(other) if not line.startswith("[12:34] ")]
    assert [line.split()[1] for line in bare] == [
        "Message", "Connectés", "Commande", "Nom", "Bienvenue,", "Au",
    ]  # fmt: skip


# --- Le vrai serveur, sur la boucle locale -----------------------------------------


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


def test_tous_la_console_et_le_journal_ont_le_meme_ordre(serveur, tmp_path):
    """Messages, arrivées et départs se croisent ; personne ne les voit dans un autre ordre."""
    log = tmp_path / "journal.txt"
    server = serveur("--debit", "0", "--journal", str(log))
    ears = [server.connect(f"oreille{n}") for n in range(2)]
    assert ears[0].line() == "* oreille1 a rejoint le chat."
    talkers = [server.connect() for _ in range(5)]
    for number, talker in enumerate(talkers):
        text = f"parle{number}\n" + "".join(f"{n}\n" for n in range(200)) + "exit\n"
        threading.Thread(target=talker.send, args=[text]).start()
    seen = [[ear.line() for _ in range(5 * (1 + 200 + 1))] for ear in ears]
    assert seen[0] == seen[1]
    for number in range(5):
        name = f"parle{number}"
        assert [line for line in seen[0] if line.split()[name in line.split()[1]] == name] == [
            f"* {name} a rejoint le chat.",
            *(f"{name} : {n}" for n in range(200)),
            f"* {name} a quitté le chat.",
        ]
    assert server.stop() == 0
    shown = [line.replace(" (127.0.0.1)", "") for line in server.console_lines()[3:]]
    assert shown == [line.removeprefix("* ") for line in seen[0]]
    logged = log.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in logged] == server.console_lines()[1:]


def test_l_au_revoir_est_suivi_de_la_fermeture_sans_que_le_client_ferme(serveur):
    server = serveur(patch=f"s.FAREWELL_SECONDS = {10 * PATIENCE}")
    alice = server.connect("Alice")
    alice.send("exit\nencore\n")
    assert [alice.line(), alice.line()] == ["* Au revoir, Alice.", ""]


def test_mille_lignes_en_un_envoi_arrivent_toutes(serveur):
    server = serveur("--debit", "0")
    alice, bob = server.connect("Alice"), server.connect()
    bob.send("Bob\r\n" + "".join(f"{n}\r\n" for n in range(1000)) + "fin")
    bob.sock.shutdown(socket.SHUT_WR)
    assert alice.line() == "* Bob a rejoint le chat."
    assert alice.lines_until("* Bob a quitté le chat.") == [
        *(f"Bob : {n}" for n in range(1000)), "Bob : fin",
    ]  # fmt: skip


def test_un_caractere_coupe_entre_deux_envois_arrive_entier(serveur):
    server = serveur()
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    start, end = "é\n".encode()[:1], "é\n".encode()[1:]
    bob.send(b"/liste\n" + start)
    assert bob.line() == "* Connectés (2) : Alice, Bob"  # le début est donc lu
    bob.send(end)
    assert alice.line() == "Bob : é"


def test_un_bavard_est_freine_sans_rien_perdre_ni_gener_les_autres(serveur):
    server = serveur(patch="s.BURST_LINES = 5")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    bob.send("".join(f"{n}\n" for n in range(30)))
    seen = [alice.line()]
    alice.send("/liste\n")
    seen += [alice.line() for _ in range(30)]
    answer = seen.index("* Connectés (2) : Alice, Bob")
    assert answer < 30  # Alice n'a pas attendu que Bob ait fini
    del seen[answer]
    assert seen == [f"Bob : {n}" for n in range(30)]


def test_d_un_bavard_coupe_net_le_reste_est_jete(serveur):
    server = serveur("--debit", "5", patch="s.BURST_LINES = 5")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    bob.send("a\n" * 5000)
    assert alice.line() == "Bob : a"
    reset(bob)
    assert len(alice.lines_until("* Bob a quitté le chat.")) < 100


def reset(peer) -> None:
    """Coupe la connexion net : TCP envoie un reset, sans fin de flux."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def test_un_client_coupe_au_milieu_d_une_ligne_part_comme_un_autre(serveur):
    server = serveur()
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    bob.send("une moitié de li")
    reset(bob)
    assert alice.line() == "* Bob a quitté le chat."
    assert alice.barrier() == "* Connectés (1) : Alice"


def test_qui_ne_lit_plus_est_renvoye_et_les_autres_ne_perdent_rien(serveur):
    server = serveur("--debit", "0")
    stuck, alice, bob = (server.connect(name) for name in ("Bloque", "Alice", "Bob"))
    assert alice.line() == "* Bob a rejoint le chat."
    sent = [f"{number} {'x' * 3000}" for number in range(4000)]  # 12 Mo : plus que le système
    threading.Thread(target=bob.send, args=["\n".join(sent) + "\nexit\n"]).start()
    got = alice.lines_until("* Bob a quitté le chat.")
    assert [line for line in got if " : " in line] == [f"Bob : {line}" for line in sent]
    assert [line for line in got if " : " not in line] == ["* Bloque a quitté le chat."]
    assert server.error().startswith("Bloque (127.0.0.1) déconnecté")
    assert stuck.line()


def test_qui_part_en_retard_n_est_plus_attendu():
    """Sinon le courrier de tous serait retenu pour toujours."""
    with contextlib.ExitStack() as stack:
        postman, _ = postman_with(stack, "Alice", "Bob")
        late = next(iter(postman.clients))
        late.outbox.append(b"x" * 8_000_000)
        postman.make_round(None)
        assert list(postman.late) == [late]
        postman.make_round(serveur_exo.Mail(serveur_exo.Event.LINES, late, [b"exit"]))
        assert postman.late == {}


@pytest.mark.parametrize("option", [["--port", "70000"], ["--debit", "-1"], ["--hote", ""], ["-x"]])
def test_une_mauvaise_option_rend_2_et_une_seule_ligne(option, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", *option])
    assert serveur_exo.main() == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--hote", ".."], "Choisissez un autre --hote."),
        (["--hote", "nulle-part.invalid"], "Choisissez un autre --hote."),
        (["--hote", "203.0.113.1"], "Choisissez un autre --hote."),
        (["--journal", ""], "journal"),
        (["--journal", "/"], "c'est un dossier"),
        (["--journal", "/nulle/part"], "journal"),
    ],
)
def test_ce_qui_ne_peut_pas_marcher_rend_1_et_dit_quoi_faire(options, advice, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--port", "0", *options])
    assert serveur_exo.main() == 1
    errors = capfd.readouterr().err
    assert advice in errors and errors.count("\n") == 1


def test_un_port_pris_rend_1_et_dit_quoi_faire(serveur, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--port", str(serveur().port)])
    assert serveur_exo.main() == 1
    assert "ce port est déjà pris" in capfd.readouterr().err


def test_un_port_reserve_rend_1_et_dit_quoi_faire(capfd, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serveur_exo.socket, "create_server", refuse)
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--port", "80"])
    assert serveur_exo.main() == 1
    assert "Choisissez un --port à partir de 1024." in capfd.readouterr().err


def test_on_peut_relancer_aussitot_sur_le_meme_port(serveur):
    server = serveur()
    server.connect("Alice")
    assert server.stop() == 0
    again = serveur("--port", str(server.port))
    assert again.port == server.port
    again.connect("Alice")


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


def test_apres_un_kill_le_journal_a_ses_lignes_sans_trou_et_se_continue(serveur, tmp_path):
    log = tmp_path / "journal.txt"
    server = serveur("--journal", str(log), "--debit", "0")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send("".join(f"{n} {'x' * 100}\n" for n in range(5000)))
    assert alice.line() == "* Bob a rejoint le chat."
    while log.stat().st_size < 20_000:  # que le greffier soit en train d'écrire
        alice.send("/liste\n")
        alice.lines_until("* Connectés (2) : Alice, Bob")
    server.process.kill()
    server.process.wait()
    *lines, rest = log.read_text(encoding="utf-8").split("\n")
    numbers = [int(line.split()[3]) for line in lines[2:]]
    assert numbers == list(range(len(numbers))) and numbers
    carole = serveur("--journal", str(log)).connect("Carole")
    while not log.read_text(encoding="utf-8").endswith(" Carole (127.0.0.1) a rejoint le chat.\n"):
        assert carole.barrier()
    again = log.read_text(encoding="utf-8").splitlines()[:-1]
    assert again == lines + ([rest] if rest else [])


def test_le_journal_est_ecrit_a_chaque_tournee(serveur, tmp_path):
    log = tmp_path / "journal.txt"
    server = serveur("--journal", str(log))
    alice = server.connect("Alice")
    alice.send("Bonjour\n")
    while not log.read_text(encoding="utf-8").endswith(" Alice : Bonjour\n"):
        assert alice.barrier()


def test_un_journal_qui_ne_s_ecrit_plus_est_signale_une_fois(serveur):
    server = serveur("--journal", "/dev/full")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert server.error().startswith("Plus rien ne s'écrit dans le journal")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_une_console_que_personne_ne_lit_n_arrete_ni_le_chat_ni_la_fin(serveur):
    server = serveur("--debit", "0", stdout=subprocess.PIPE, patch="s.OUTPUT_BYTES = 1_000_000")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send(f"{'x' * 1000}\n" * 3000 + "exit\n")
    assert alice.line() == "* Bob a rejoint le chat."
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


def test_la_ligne_qui_dit_ce_qui_manque_vient_sans_que_personne_ne_parle_encore(serveur):
    """La première tournée qui ne tient pas peut aussi être la dernière."""
    patch = "s.OUTPUT_BYTES = 200; s.NAME_SECONDS = 1000"
    server = serveur("--debit", "0", stdout=subprocess.PIPE, patch=patch)
    alice = server.connect("Alice")
    assert server.process.stdout.readline() == b"Serveur en attente de connexions...\n"
    assert server.process.stdout.readline() == b"Alice (127.0.0.1) a rejoint le chat.\n"
    alice.send("x" * 1000 + "\n")
    assert select.select([server.process.stdout], [], [], PATIENCE)[0]
    assert server.process.stdout.readline().decode() == "… 1 lignes non affichées.\n"


def test_un_journal_bloque_ne_retarde_pas_stderr():
    """Les deux ont le même greffier."""
    log, writing = os.pipe()
    errors, speaking = os.pipe()
    clerk = serveur_exo.Clerk(report=None)
    stuck = serveur_exo.Output(writing, "le journal", clerk)
    other = serveur_exo.Output(speaking, "stderr", clerk)
    stuck.put(["x" * 1_000_000])
    other.put(["Serveur complet."])
    assert select.select([errors], [], [], PATIENCE)[0]
    assert os.read(errors, 100).decode() == "Serveur complet.\n"
    stuck.waiting.clear()  # le greffier peut finir
    clerk.finish(PATIENCE)
    for descriptor in (log, writing, errors, speaking):
        os.close(descriptor)


def test_un_tube_plein_n_empeche_pas_de_finir(serveur):
    server = serveur("--debit", "0", stdout=subprocess.PIPE)
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send(f"{'x' * 1000}\n" * 500 + "exit\n")
    assert len(alice.lines_until("* Bob a quitté le chat.")) == 501
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_terminal_fige_par_ctrl_s_n_arrete_ni_le_chat_ni_la_fin(serveur):
    master, terminal = pty.openpty()
    server = serveur(stdout=terminal)
    alice, bob = server.connect("Alice"), server.connect("Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    termios.tcflow(terminal, termios.TCOOFF)
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."
    os.close(terminal)
    os.close(master)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_l_arret_est_annonce_a_tous_sans_annoncer_de_departs(serveur, number):
    server = serveur()
    alice, bob, mute = server.connect("Alice"), server.connect("Bob"), server.connect()
    assert alice.line() == "* Bob a rejoint le chat."
    mute.send("*\n")
    assert mute.line().startswith("! ")  # il est donc accepté
    server.process.send_signal(number)
    server.process.send_signal(number)  # un second Ctrl+C ne gêne pas
    for peer in (alice, bob, mute):
        assert [peer.line(), peer.line()] == ["* Le serveur s'arrête.", ""]
    assert server.process.wait(PATIENCE) == 0
    assert server.error() == "Serveur arrêté."
    assert server.console_lines()[-1] == "Bob (127.0.0.1) a rejoint le chat."


def test_un_second_ctrl_c_au_dernier_instant_ne_gene_pas(serveur):
    server = serveur()
    server.process.send_signal(signal.SIGINT)
    assert server.error() == "Serveur arrêté."
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0


def test_qui_attendait_encore_d_etre_accepte_a_aussi_l_adieu():
    listener = serveur_exo.open_listener("127.0.0.1", 0)
    inbox = queue.SimpleQueue()
    with listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        admission = threading.BoundedSemaphore(3)
        postman = types.SimpleNamespace(inbox=inbox, defect=None, admission=admission)
        acceptor = serveur_exo.Acceptor(postman, 20)
        acceptor.stop()
        acceptor.run(listener)
    mails = [inbox.get(timeout=PATIENCE) for _ in range(3)]
    assert [mail.event for mail in mails] == [serveur_exo.Event.CONNECTED] * 3
    for mail in mails:
        mail.client.sock.close()


def test_des_arrivees_sans_fin_n_empechent_pas_de_finir():
    """Au moment de l'arrêt, accept ne doit plus attendre personne."""

    class Door:
        settimeout = setblocking = lambda door, value: setattr(door, "waits", bool(value))

        def accept(self):
            assert not self.waits
            raise BlockingIOError

    acceptor = serveur_exo.Acceptor(types.SimpleNamespace(defect=None), 20)
    acceptor.stop()
    acceptor.run(Door())


def test_stderr_parle_avant_la_console():
    process = subprocess.Popen(
        [sys.executable, "serveur_exo.py", "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with process.stdout as both:
        assert both.readline().decode().startswith("Écoute sur ")
        assert both.readline().decode() == "Serveur en attente de connexions...\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_une_sortie_fermee_des_le_depart_ne_gene_pas(serveur):
    server = serveur(stdout=None, preexec_fn=lambda: os.close(1))
    assert server.error().startswith("Plus rien ne s'écrit dans la console")
    alice, bob = server.connect("Alice"), server.connect("Bob")
    alice.send("Bonjour\n")
    assert bob.line() == "Alice : Bonjour"
    assert server.stop() == 0


def test_sans_stderr_rien_ne_s_ecrit_a_sa_place_dans_le_journal(tmp_path):
    """Le premier fichier ouvert prend le numéro que stderr a laissé."""
    log = tmp_path / "chat.log"
    process = subprocess.Popen(
        [sys.executable, "serveur_exo.py", "--port", "0", "--journal", log],
        cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2),
    )  # fmt: skip
    with process.stdout as console:
        assert console.readline().decode() == "Serveur en attente de connexions...\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert log.read_bytes() == b""


def test_une_sortie_perdue_n_est_signalee_qu_une_fois_meme_s_il_restait_des_lignes():
    reading, writing = os.pipe()
    os.close(reading)
    reports = []
    clerk = serveur_exo.Clerk(reports.append)
    output = serveur_exo.Output(writing, "la console", clerk)
    for _ in range(3):
        output.put(["Alice a rejoint le chat."])
    clerk.finish(PATIENCE)
    output.put(["Alice a quitté le chat."])
    os.close(writing)
    assert reports == [serveur_exo.loss_report("la console", "plus personne ne lit")]


def test_stderr_parle_encore_quand_la_console_est_un_tube_plein(serveur):
    server = serveur("--debit", "0", "--max-clients", "2", stdout=subprocess.PIPE)
    alice, bob = server.connect("Alice"), server.connect("Bob")
    bob.send(f"{'x' * 1000}\n" * 500 + "/liste\n")
    assert bob.line() == "* Connectés (2) : Alice, Bob"
    server.connect()
    assert server.error() == "Le serveur est complet : 127.0.0.1 refusé."


def test_un_vieux_terminal_recoit_son_encodage(monkeypatch):
    """Une console de Windows, par exemple ; un tube et le journal sont toujours en UTF-8."""
    monkeypatch.setattr(os, "device_encoding", lambda descriptor: "cp850")
    reading, writing = os.pipe()
    clerk = serveur_exo.Clerk(report=None)
    serveur_exo.Output(writing, "la console", clerk).put(["Élise : 👍"])
    clerk.finish(PATIENCE)
    assert os.read(reading, 100) == "Élise : ?\n".encode("cp850")
    for descriptor in (reading, writing):
        os.close(descriptor)


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


@pytest.mark.parametrize("drip", ["x", "\n", " \n"], ids=["sans_fin", "vides", "blanches"])
def test_qui_envoie_sans_cesse_sauf_un_nom_est_ferme_aussi(serveur, drip):
    server = serveur(patch="s.NAME_SECONDS = 0.5")
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
    assert lines[-1] == "! Pas de nom en 0.5 s : au revoir."
    reset(mute)
    thread.join()


def test_un_nom_donne_a_temps_n_est_plus_presse(serveur):
    server = serveur(patch="s.NAME_SECONDS = 0.2")
    alice, mute = server.connect("Alice"), server.connect()
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
    late = enter_when_there_is_room(server, "Bob")
    assert late.barrier() == "* Connectés (1) : Bob"


def test_quand_les_threads_manquent_on_refuse_et_le_chat_continue(serveur):
    patch = """
start = s.threading.Thread.start
def start_some(thread):
    if thread.name == "lecteur" and sum(t.name == "lecteur" for t in s.threading.enumerate()) > 1:
        raise RuntimeError("can't start new thread")
    start(thread)
s.threading.Thread.start = start_some
"""
    server = serveur(patch=patch)
    alice, bob, other = server.connect("Alice"), server.connect("Bob"), server.connect()
    assert alice.line() == "* Bob a rejoint le chat."
    assert other.line() == "! Le serveur est complet, réessayez plus tard."
    assert other.line() == ""
    assert server.error() == "Le système ne donne plus de thread : 127.0.0.1 refusé."
    bob.close()
    assert alice.line() == "* Bob a quitté le chat."
    enter_when_there_is_room(server, "Carole")


def enter_when_there_is_room(server, name: str):
    while True:
        peer = server.connect()
        peer.send(f"{name}\n")
        if peer.line().startswith(f"* Bienvenue, {name}"):
            return peer
        peer.close()


def test_quand_les_fichiers_manquent_on_le_dit_une_fois_et_l_accueil_reprend(serveur):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))"
    server = serveur(patch=f"{limit}\ns.SPARE_FILES = 0\ns.PAUSE_SECONDS = 0.01")
    assert server.error().startswith("20 clients au plus")
    peers = [server.connect() for _ in range(20)]
    for number, peer in enumerate(peers):
        peer.send(f"u{number}\n")
    assert server.error().startswith("Impossible d'accepter un client : ")
    assert peers[0].line().startswith("* Bienvenue, u0 !")
    for peer in peers[:10]:
        peer.close()
    for number in range(10, 20):
        assert peers[number].line().startswith(f"* Bienvenue, u{number} !")
    assert server.stop() == 0
    assert server.error() == "Serveur arrêté."


def test_un_accueil_qui_echoue_marque_une_pause(monkeypatch):
    """Sans elle, accept échouerait sans fin, à 100 % de processeur."""
    pauses = []
    monkeypatch.setattr(serveur_exo.time, "sleep", pauses.append)

    class NoMoreFiles:
        def accept(self):
            raise OSError(errno.EMFILE, "Too many open files")

    reports = []
    postman = types.SimpleNamespace(outputs=types.SimpleNamespace(report=reports.append))
    acceptor = serveur_exo.Acceptor(postman, 20)
    for _ in range(3):
        acceptor.accept(NoMoreFiles())
    assert pauses == [serveur_exo.PAUSE_SECONDS] * 3
    assert len(reports) == 1


def test_mille_clients_entrent_et_s_entendent(serveur):
    server = serveur()
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


def test_un_socket_accepte_est_sonde_et_envoie_sans_attendre():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as sock:
            serveur_exo.prepare(sock)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes == 120
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000


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
        reset(visitor) if number % 3 == 0 else visitor.close()
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


@pytest.mark.parametrize(
    "error",
    ["ValueError", "OSError", "ValueError('x' * 1_000_000)"],
    ids=["défaut", "défaut_qui_ressemble_à_une_coupure", "trace_plus_grosse_qu_un_tube_non_lu"],
)
def test_une_tournee_qui_echoue_arrete_le_serveur(error):
    server = Server(patch=f"def join(*_):\n    raise {error}\ns.Room.join = join")
    server.connect().send("Alice\n")
    assert server.process.wait(PATIENCE) == 1
    assert "Traceback" in server.end()


def test_ipv6_marche(serveur):
    server = serveur("--hote", "::1")
    assert server.listening == f"Écoute sur [::1]:{server.port} (Ctrl+C pour arrêter)."
    peer = Peer(socket.create_connection(("::1", server.port))).join("Alice")
    peer.close()


def test_ouvert_a_tous_en_ipv6_ipv4_entre_aussi(serveur):
    server = serveur("--hote", "::")
    server.connect("Alice")
    assert server.stop() == 0
    assert server.console_lines()[1] == "Alice (127.0.0.1) a rejoint le chat."


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


def test_le_banc_d_essai_rapide_trouve_tout_juste():
    result = subprocess.run(
        [sys.executable, "tests/banc_essai.py", "--rapide"],
        cwd=ROOT, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, b"juste\n", b"")
