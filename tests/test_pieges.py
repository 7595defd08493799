"""Les pièges d'un chat à threads : chaque étape évite ceux qu'elle annonce, et eux seuls.

Une scène (lecon/scenes.py) joue un piège à coup sûr contre n'importe quel serveur : elle retient un
envoi, ou le résultat d'un recv, au pire moment. Une case du tableau de lecon/etapes.py est un test ;
la dernière colonne est serveur_exo.py. `python3 tests/lecon/sans_gardes.py` retire la protection de
chaque piège et vérifie que le test échoue alors.
"""

import contextlib
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import HAS, needs, wait_in_recv
from terminal import Session

LESSON = Path(__file__).parent / "lecon"
NAIVE_CLIENT = (LESSON / "client_naif.py").read_text(encoding="utf-8")
sys.path.insert(0, str(LESSON))
import etapes
import scenes

# --- Les serveurs ---------------------------------------------------------------


def demanded(trap: str, program: str) -> list[str]:
    """Renvoie ce que cette case demande au système (conftest.HAS)."""
    if program in ("etape7", "etape8"):
        return ["MSG_DONTWAIT"]
    return ["de n'attendre aucun envoi"] if (trap, program) == ("fige", "serveur_exo") else []


@pytest.fixture(scope="module")
def verdicts(request):
    """Joue les cases demandées, plusieurs à la fois : une scène attend plus qu'elle ne calcule."""
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    cells = [(given["trap"], given["program"]) for given in asked if "program" in given]
    cells = [cell for cell in cells if all(HAS[name] for name in demanded(*cell))]
    with ThreadPoolExecutor(etapes.AT_ONCE) as pool:
        yield etapes.start(pool, cells)
        pool.shutdown(cancel_futures=True)  # après un échec avec -x, il en reste


@pytest.mark.parametrize("program", etapes.PROGRAMS)
@pytest.mark.parametrize("trap", etapes.TRAPS)
def test_un_programme_evite_les_pieges_qu_il_annonce_et_eux_seuls(verdicts, trap, program):
    needs(*demanded(trap, program))
    found = verdicts[trap, program].result()
    assert found.verdict == etapes.expected(trap, program), found.seen


# Deux pièges qu'aucune étape n'a : ce qui les évite est là depuis le départ. Sans cela, on y tombe.
SABOTAGES = {
    "inscrit": (
        "            clients.append(client)\n"
        "        threading.Thread(target=read_client, args=[client], daemon=True).start()\n",
        "            pass\n"
        "        threading.Thread(target=read_client, args=[client], daemon=True).start()\n"
        "        clients.append(client)\n",
    ),
    "partiel": ("client.sock.sendall(", "client.sock.send("),
}


@pytest.mark.parametrize("trap", SABOTAGES)
def test_sans_ce_qui_l_evite_depuis_le_depart_on_tombe_dans_le_piege(trap, tmp_path):
    right, wrong = SABOTAGES[trap]
    source = etapes.STEPS[5].read_text(encoding="utf-8")
    assert source.count(right) == 1
    sabotaged = tmp_path / "etape5.py"
    sabotaged.write_text(source.replace(right, wrong), encoding="utf-8")
    assert scenes.run_scene(trap, str(sabotaged)).verdict == "non"


def test_chaque_etape_n_ajoute_qu_une_idee():
    """Elle tient en peu de lignes, et commence par dire ce qui gêne, l'idée, comment l'essayer."""
    for number, path in enumerate(etapes.STEPS):
        source = path.read_text(encoding="utf-8")
        assert source.startswith(f'"""Étape {number} : ')
        for part in ("\nCe qui gêne : ", "\nL'idée : ", "\nPour l'essayer : "):
            assert source.count(part) == 1, (number, part)
    assert etapes.size(etapes.STEPS[-1]) <= 150


# --- Ce serveur, où plusieurs protections se doublent : le texte exact ----------


def test_un_client_coupe_avant_son_nom_ne_laisse_pas_de_trace(start_server):
    """Un reset fait lever ConnectionResetError à recv, dans le thread de ce client seul.

    Protection : read_client rattrape OSError (start_server refuse un Traceback sur stderr).
    """
    server = start_server()
    server.connect().reset()
    assert server.connect("Alice").barrier() == "* Connectés (1) : Alice"


def test_plusieurs_departs_a_la_fois_ne_privent_personne(start_server):
    """Retirer un client de l'ensemble que l'on parcourt arrête la boucle (RuntimeError).

    Protection : make_round parcourt une copie.
    """
    server = start_server()
    witness, *others = server.room("Temoin", *(f"n{number}" for number in range(9)))
    for peer in others:
        peer.reset()
    gone = {witness.line() for _ in others}
    assert gone == {f"* n{number} a quitté le chat." for number in range(9)}
    assert witness.barrier() == "* Connectés (1) : Temoin"


SLOW_SENDS = """
send_now = s.send_now
def send_in_two(sock, data):
    half = len(data) // 2
    sent = send_now(sock, data[:half])
    s.time.sleep(0.01)
    return sent + send_now(sock, data[half:])
s.send_now = send_in_two
"""


def test_tous_lisent_le_meme_ordre_sans_rien_lire_deux_fois(start_server):
    """Deux tournées ensemble enverraient deux fois une même outbox, ou une ligne dans une autre.

    Protection : Hub.try_round, sous round_lock : une tournée sert tout le monde avant la suivante.
    """
    chloe, david, alice, bob = start_server(patch=SLOW_SENDS).room("Chloé", "David", "Alice", "Bob")
    for number in range(20):
        alice.send(f"aaaa {number}\n")
        bob.send(f"bbbb {number}\n")
    lines = [chloe.line() for _ in range(40)]
    assert lines == [david.line() for _ in range(40)]
    expected = {f"{who} {number}" for who in ("Alice : aaaa", "Bob : bbbb") for number in range(20)}
    assert set(lines) == expected


# --- Les clients : ce que l'on voit ---------------------------------------------


def enter(client: Session) -> None:
    """Tape un nom, et attend d'être accueilli et de pouvoir écrire."""
    client.wait_for("Entrez votre nom : ")
    client.type("Alice\r")
    client.wait_for("Bienvenue")
    client.wait_for("Votre message : ")


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
    Protection : handle_signal fait sortir d'input(), au signal suivant de l'horloge.
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
    Protection : shutdown, dans Client.close (client) et dans Hub.cut (serveur).
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
