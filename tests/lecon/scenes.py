"""Les scènes : un piège chacune, jouée contre un programme que l'on ne connaît pas.

    from scenes import run_scene
    verdict, seen = run_scene("fin", "tests/lecon/etape0.py")
    verdict, seen = run_scene("fin", "mon_serveur.py", ["5555"])    # avec des arguments

`verdict` vaut « oui » (cela tient), « non » (et `seen` dit ce qui a été vu), « autre » (un autre
dialecte, sans faute), « ? » (pas pu voir) ou « - » (sans objet). Les noms sont les clés de
SERVER_SCENES, de MORE_SCENES (d'autres pièges de l'escalier, que le rapport montre et que le
tableau n'a pas) et de CLIENT_SCENES. Une scène lance le programme dans un processus neuf (essai.py)
et fait ses courses avec des portes, qui retiennent un appel (prelude.py). Un « non » demande une
preuve : une exception, un blocage, un message reçu et pas transmis, un autre passé avant.

La docstring d'une scène est sa leçon : ce qui est essayé, pourquoi cela rate, où lire la réponse.
"""

import contextlib
import re
import socket
from typing import NamedTuple

from essai import (
    CALM_SECONDS, Dialect, Peer, Program, Subject, Trouble, compared_words, find_subject,
    is_signed, leave_words, start,
)  # fmt: skip


class Verdict(NamedTuple):
    verdict: str
    seen: str = ""


YES = Verdict("oui")


def no(seen: str) -> Verdict:
    return Verdict("non", seen)


def missed(s: Program, speaker: Peer, listener: Peer) -> Verdict:
    return no(f"{listener.name} n'entend plus {speaker.name} : {s.cause(speaker)}")


def still_heard(s: Program, speaker: Peer, listener: Peer) -> Verdict:
    return YES if s.reaches(speaker, [listener]) else missed(s, speaker, listener)


# --- L'énoncé ---------------------------------------------------------------------


def message(s: Program) -> Verdict:
    """Un message arrive à tous les autres.
    Le serveur l'envoie à chaque client de sa liste.
    étape 0, `broadcast`"""
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    for speaker, others in ((alice, [bob, chloe]), (chloe, [alice, bob])):
        word = s.word()
        if not s.reaches(speaker, others, word):
            return missed(s, speaker, next(one for one in others if word not in one.text()))
    if not is_signed(bob.text(), "Chloe", word):
        return Verdict("autre", "le serveur transmet le message sans le nom")
    return YES


def accents(s: Program) -> Verdict:
    """Les accents passent.
    `encode` et `decode` emploient UTF-8 si on ne leur dit rien d'autre.
    étape 0, `tell`"""
    alice, bob = s.room("Alice", "Bob")
    word = s.word()
    if s.reaches(alice, [bob], word + "éàç€"):
        return YES
    got = bob.text()[bob.text().find(word) :][:30] if word in bob.text() else ""
    why = f"Bob lit {got!r}" if got else s.cause(alice)
    return no(f"Alice envoie « {word}éàç€ » : {why}")


def console(s: Program) -> Verdict:
    """L'écran du serveur montre « Nom : message ».
    On y lit qui dit quoi.
    étape 0, `broadcast`"""
    alice, bob = s.room("Alice", "Bob")
    before, word = len(s.console), s.word()

    def written() -> str:
        return s.console[before:].decode(errors="replace") + s.stderr()

    if not s.reaches(alice, [bob], word):
        return missed(s, alice, bob)
    if not s.expect(lambda: word in written()):
        return no("le serveur transmet le message, et ne l'écrit pas à l'écran")
    s.pause()  # la fin de la ligne
    if "Alice" in written():
        return YES
    if not s.dialect.signed:
        return Verdict("autre", "le serveur ne sait pas qui parle")
    return no(f"l'écran montre {written().strip()[-40:]!r}, sans le nom d'Alice")


def leave(s: Program) -> Verdict:
    """« exit » quitte le chat.
    Celui qui part sort de la liste, et les autres continuent.
    étape 0, `leave`"""
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    for word in leave_words(s.path):
        s.say(alice, word)
        s.expect(lambda: alice.is_closed or word in bob.text())
        s.settle(alice)
        is_unread = alice.port not in s.receiving and word not in bob.text()
        if s.exception() and not alice.is_closed:
            return no(f"après « {word} » : {s.exception()}")
        if alice.is_closed or is_unread:
            verdict = after_departure(s, alice, chloe, bob)
            if verdict == YES and word != "exit":
                return Verdict("autre", f"on quitte par « {word} »")
            return verdict
    return Verdict("autre", "« exit » est un message comme un autre : c'est au client de fermer")


def after_departure(s: Program, gone: Peer, speaker: Peer, listener: Peer) -> Verdict:
    """Trois messages après un départ : ils sont entendus, et rien n'est envoyé à l'absent."""
    for _ in range(3):
        before = len(s.events)
        if not s.reaches(speaker, [listener]):
            return missed(s, speaker, listener)
        s.settle(speaker)
    if s.happened("sending", gone.port, after=before):
        return no(f"{gone.name} est partie, et le serveur lui envoie encore les messages")
    return YES


# --- Les pièges : recevoir, accueillir ------------------------------------------------


def end_of_stream(s: Program) -> Verdict:
    """Un client ferme.
    Après la fin, `recv` renvoie b"" sans attendre, à chaque appel.
    étape 1, `read_client`"""
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    alice.sock.shutdown(socket.SHUT_WR)
    s.settle(alice)
    if s.happened("endless", alice.port):
        return no('Alice ferme : recv renvoie b"" sans fin, et le serveur continue')
    alice.close()
    return after_departure(s, alice, chloe, bob)


def cut_off(s: Program) -> Verdict:
    """Un client est coupé net.
    `recv` lève OSError : c'est une fin aussi, et le client sort de la liste.
    étape 1, `read_client`"""
    alice, bob, chloe = s.room("Alice", "Bob", "Chloe")
    alice.close(reset=True)
    s.settle(chloe)
    return after_departure(s, alice, chloe, bob)


def reset_early(s: Program) -> Verdict:
    """Un client est coupé avant d'avoir donné son nom.
    `recv` lève une exception, qui arrête la boucle d'accept.
    étape 3, `read_client`"""
    bob = s.enter("Bob")
    s.connect("Alice").close(reset=True)
    s.settle(bob)
    return newcomer_is_heard(s, bob)


def newcomer_is_heard(s: Program, bob: Peer) -> Verdict:
    try:
        return still_heard(s, s.enter("Chloe"), bob)
    except Trouble as reason:
        return no(f"{reason} : {s.exception() or 'le serveur attend autre chose'}")


def mute(s: Program) -> Verdict:
    """Un client ne donne pas son nom.
    La boucle d'accept attend ce nom, et n'accepte plus personne.
    étape 3, `read_client`"""
    bob = s.enter("Bob")
    s.connect("Muet")
    return newcomer_is_heard(s, bob)


def glued(s: Program) -> Verdict:
    """Deux messages arrivent ensemble.
    TCP transporte des octets : un recv n'est pas un message.
    étape 4, `LineBuffer.feed`"""
    alice, bob = s.room("Alice", "Bob")
    for end in dict.fromkeys(("\n", s.dialect.end)):
        first, second = s.word(), s.word()
        s.send(alice, (first + end + second + end).encode())
        if not s.hear([bob], second):
            return missed(s, alice, bob)
        s.settle(alice)
        if s.dialect.signed and is_signed(bob.text(), "Alice", second):
            return YES
        if s.dialect.end and not s.dialect.signed and re.search(rf"{first}\r?\n", bob.text()):
            return YES
    if not s.dialect.signed:
        return Verdict("autre", "rien ne sépare deux messages : le client doit savoir le faire")
    return no(f"Bob lit {bob.text()[bob.text().find(first) - 8 :][:50]!r}")


def glued_name(s: Program) -> Verdict:
    """Le nom et un message arrivent ensemble.
    TCP transporte des octets : un recv n'est pas un message.
    étape 4, `LineBuffer.feed`"""
    if len(s.dialect.handshake) != 1 or not s.dialect.signed:
        return Verdict("-", "le nom n'est pas le premier message")
    bob, chloe, word = s.enter("Bob"), s.connect("Chloe"), s.word()
    s.send(chloe, f"Chloe\n{word}\n".encode())
    if not s.hear([bob], word):
        s.reaches(chloe, [bob])
    if is_signed(bob.text(), "Chloe", word):
        return YES
    return no(f"Bob lit {bob.text()[-40:]!r}")


def cut_character(s: Program) -> Verdict:
    """Un « é » arrive en deux morceaux.
    « é » fait deux octets, et `decode` refuse la moitié d'un caractère.
    étape 4, `decode_line`"""
    alice, bob = s.room("Alice", "Bob")
    if not s.reaches(alice, [bob], s.word() + "é"):
        return Verdict("-", "les accents ne passent pas")
    word = s.word()
    s.send(alice, word.encode() + b"\xc3")
    s.settle(alice)
    s.send(alice, b"\xa9" + s.dialect.end.encode())
    if s.hear([bob], word + "é"):
        return YES
    got = f"Bob lit {bob.text()[bob.text().find(word) :][:30]!r}" if word in bob.text() else ""
    return no(s.exception() or got or s.cause(alice))


# --- Les pièges : envoyer -------------------------------------------------------------


def hold_broadcast(s: Program, kind: str, speaker: Peer, others: list[Peer]):
    """Fait parler `speaker`, et retient la diffusion avant ou après le premier envoi à un autre.

    Renvoie celui qui recevait cet envoi, les autres, et le mot diffusé.
    """
    word = s.word()
    s.order("arm", kind, word=word, only=[peer.port for peer in others])
    s.say(speaker, word)
    if not s.expect(lambda: s.held(kind)):
        raise Trouble("la diffusion n'a pas pu être retenue")
    first = next(peer for peer in others if peer.port == s.held(kind))
    return first, [peer for peer in others if peer is not first], word


def changing_list(s: Program, reset: bool = False) -> Verdict:
    """La liste change pendant une diffusion.
    Un départ décale la liste qu'un autre thread parcourt : quelqu'un est sauté.
    étape 5, `broadcast`"""
    *others, speaker = s.room("Alice", "Bob", "Chloe", "David")
    gone, others, word = hold_broadcast(s, "after", speaker, others)
    go_away(s, gone, reset)
    if s.happened("endless", gone.port):  # celui-là ne sort de la liste que coupé net
        with start(s.path, s.dialect) as again:
            return changing_list(again, reset=True)
    s.order("open", "after")
    if s.hear(others, word):
        return YES
    deaf = next(peer for peer in others if word not in peer.text())
    why = s.exception() or f"{deaf.name} n'a pas le message"
    return no(f"{gone.name} part pendant la diffusion : {why}")


def go_away(s: Program, gone: Peer, reset: bool) -> None:
    """Quitte par un mot, puis par une fin de flux, puis net, jusqu'à ce que le serveur ferme."""

    def is_over() -> bool:
        ends = [["closed", gone.port], ["endless", gone.port]]
        return gone.is_closed or any(end in s.events for end in ends)

    for word in () if reset else leave_words(s.path):
        s.say(gone, word)
        if s.until(is_over, 3 * CALM_SECONDS):
            return s.pause()
    if not reset:
        with contextlib.suppress(OSError):
            gone.sock.shutdown(socket.SHUT_WR)
        s.until(is_over, 3 * CALM_SECONDS)
        s.pause()
    if not is_over():
        gone.close(reset=True)
        s.until(lambda: s.happened("closed", gone.port), 3 * CALM_SECONDS)


def gone_neighbour(s: Program) -> Verdict:
    """Un voisin vient de partir.
    L'envoi à un absent lève OSError, dans le thread de celui qui parle.
    étape 1, `tell`"""
    *others, speaker = s.room("Alice", "Bob", "Chloe")
    gone, others, word = hold_broadcast(s, "before", speaker, others)
    s.order("arm", "recv", only=[gone.port])  # la liste ne change pas : seul l'envoi échoue
    gone.close(reset=True)
    s.until(lambda: s.held("recv"), 3 * CALM_SECONDS)
    s.order("open", "before")
    is_heard = s.hear(others, word)
    s.order("open", "recv")
    return still_heard(s, speaker, others[0]) if is_heard else missed(s, speaker, others[0])


def frozen(s: Program) -> Verdict:
    """Un client ne lit plus.
    `sendall` attend qu'il lise : le thread qui diffuse s'arrête là.
    étape 7, `send_now`"""
    s.order("arm", "small buffers")  # sinon, il faudrait des mégaoctets
    stuck = s.enter("Fige", small=True)
    alice, bob = s.room("Alice", "Bob")
    stuck.reads = False
    word = flood(s, alice)
    if s.hear([bob], word):
        return YES
    why, is_blocked, stuck.reads = s.cause(alice), stuck.port in s.sending, True
    if s.hear([bob], word) and is_blocked:
        return no("Fige ne lit plus : un envoi l'attend, et Bob ne reçoit plus rien")
    return Verdict("?", why)


def flood(s: Program, speaker: Peer, count: int = 90) -> str:
    """Fait envoyer à `speaker` plus qu'un tube ne garde (64 Kio) ; renvoie le dernier mot."""
    for _ in range(count):
        s.say(speaker, "x" * 900)
        s.pump()
    word = s.word()
    s.say(speaker, word)
    return word


def one_order(s: Program) -> Verdict:
    """Tous lisent dans le même ordre.
    Deux threads diffusent à la fois, et se doublent.
    étape 5, `read_client`"""
    bob, david, alice, chloe = s.room("Bob", "David", "Alice", "Chloe")
    listeners, second = [bob, david], s.word()
    *_, first = hold_broadcast(s, "after", alice, listeners)
    s.say(chloe, second)
    s.until(lambda: all(second in peer.text() for peer in listeners), 4 * CALM_SECONDS)
    s.order("open", "after")
    if not (s.hear(listeners, first) and s.hear(listeners, second)):
        return Verdict("?", s.cause(alice))
    if len({peer.text().find(first) < peer.text().find(second) for peer in listeners}) == 1:
        return YES
    return no(f"Bob et David lisent « {first} » et « {second} » dans un ordre différent")


def late_registration(s: Program) -> Verdict:
    """Un client parle dès qu'il est accepté.
    Dès `start`, le thread s'exécute : on inscrit le client avant.
    étape 0, `main`"""
    bob = s.enter("Bob")
    s.order("arm", "start")
    chloe, word = s.enter("Chloe"), s.word()
    if not s.happened("held", None, "start"):
        return Verdict("-", "pas de thread par client")
    s.say(chloe, word)
    s.until(lambda: word in bob.text() or s.exception(), 4 * CALM_SECONDS)
    s.order("open", "start")
    if s.hear([bob], word):
        return YES
    if s.exception() or s.reaches(chloe, [bob]):
        return no(f"Chloe n'est pas encore inscrite : {s.exception() or 'son message se perd'}")
    return Verdict("?", s.cause(chloe))


def shared_socket(s: Program) -> Verdict:
    """Deux threads envoient dans un même socket.
    `sendall` peut s'y prendre en plusieurs fois, et l'autre passe entre ; c'est rare.
    étape 5, `read_client`"""
    bob, alice, chloe = s.room("Bob", "Alice", "Chloe")
    first, second = s.word() + "-un-message-plus-long", s.word()
    for kind in ("halves", "send"):
        s.order("arm", kind, word=first, only=[bob.port])
    s.say(alice, first)
    is_held = s.expect(lambda: s.held("halves") or s.held("send"))
    s.say(chloe, second)
    is_together = s.until(lambda: second in bob.text(), 4 * CALM_SECONDS)
    for kind in ("halves", "send"):
        s.order("open", kind)
    if not s.hear([bob], first):
        return no(f"Bob lit {bob.text()[-55:]!r}") if is_together else Verdict("?", s.cause(alice))
    if is_together or not is_held:
        return Verdict("-", "sendall n'est pas employé")
    return YES


def partial_send(s: Program) -> Verdict:
    """Un envoi n'est que partiel.
    `send` renvoie combien d'octets sont partis ; `sendall` envoie aussi le reste.
    étape 0, `tell`"""
    alice, bob = s.room("Alice", "Bob")
    word = s.word() + "-un-message-plus-long"
    s.order("arm", "partial", word=word, only=[bob.port])
    if s.reaches(alice, [bob], word):
        return YES
    if s.held("partial"):
        return no(f"send n'envoie que le début, ce qui est rare : Bob lit {bob.text()[-30:]!r}")
    return missed(s, alice, bob)


def lost_farewell(s: Program) -> Verdict:
    """L'au revoir arrive.
    Fermer sans avoir tout lu fait envoyer un reset, qui détruit ce qui est en chemin.
    étape 2, `read_client`"""
    bob, alice = s.enter("Bob"), s.enter("Alice", small=True)
    alice.reads = False
    last = flood(s, bob, 20)  # Alice a du retard : l'au revoir attendra derrière
    s.settle(bob)
    s.order("arm", "after", only=[alice.port])
    for word in leave_words(s.path):
        s.say(alice, word)
        if s.expect(lambda: s.held("after")):
            break
    else:
        return Verdict("-", "le serveur ne répond rien à celui qui part")
    s.say(alice, "x" * 900)
    s.pause()
    s.order("open", "after")
    s.until(lambda: s.happened("closed", alice.port), 4 * CALM_SECONDS)
    alice.reads = True
    if not s.expect(lambda: alice.is_closed):
        return Verdict("-", "le serveur ne ferme pas la connexion de celui qui part")
    if alice.text().partition(last)[2].strip():
        return YES
    return no("l'au revoir envoyé à Alice est détruit, car elle écrivait encore")


# --- Les conseils ---------------------------------------------------------------------


def same_name(s: Program) -> Verdict:
    """Deux clients n'ont pas le même nom.
    Sans vérification, on ne sait pas lequel a parlé.
    étape 6, `enter`"""
    if not s.dialect.handshake or not s.dialect.signed:
        return Verdict("-", "les messages ne portent pas de nom")
    alice, bob = s.room("Alice", "Bob")
    true, false = s.word(), s.word()
    s.reaches(alice, [bob], true)
    double = s.enter("Alice")
    if not double.is_closed and s.reaches(double, [bob], false):
        if is_signed(bob.text(), "Alice", false):
            if between(bob.text(), "Alice", true) == between(bob.text(), "Alice", false):
                return no("deux clients s'appellent Alice, et Bob ne sait pas qui parle")
            return Verdict("?", f"Bob lit {bob.text()[-40:]!r}")
    if alice.is_closed:
        return Verdict("autre", "la seconde Alice remplace la première")
    return still_heard(s, alice, bob)


def between(text: str, name: str, word: str) -> str:
    """Renvoie ce qui sépare ce nom de ce mot, sans les heures."""
    return re.sub(r"[\d:]{4,8}", "", text.partition(word)[0].rpartition(name)[2])


def false_line(s: Program) -> Verdict:
    """Un nom n'imite pas la ligne d'un autre.
    Le nom est recopié devant chaque message.
    étape 6, `normalize_name`"""
    if not s.dialect.handshake or not s.dialect.signed:
        return Verdict("-", "les messages ne portent pas de nom")
    alice, bob = s.room("Alice", "Bob")
    liar, word = s.enter("Alice : oui, et"), s.word()
    if s.reaches(liar, [bob], word) and is_signed(bob.text(), "Alice : oui, et", word):
        return no(f"Alice n'a rien dit ; Bob lit {bob.text()[-45:]!r}")
    return still_heard(s, alice, bob)


def terminal_codes(s: Program) -> Verdict:
    """Un message ne commande pas le terminal des autres.
    Un terminal exécute les codes (ESC) qu'il reçoit.
    étape 6, `clean`"""
    alice, bob = s.room("Alice", "Bob")
    word = s.word()
    s.say(alice, "\x1b[2J" + word)
    if not s.hear([bob], word):
        return Verdict("?", s.cause(alice)) if s.exception() else YES
    if "\x1b[2J" in bob.text():
        return no(f"Bob reçoit « ESC[2J{word} », et son terminal efface l'écran")
    return YES


def unread_console(s: Program) -> Verdict:
    """Personne ne lit l'écran du serveur.
    `print` attend, après un Ctrl+S par exemple, et le chat avec lui.
    serveur_exo.py, `Writer.put`"""
    alice, bob = s.room("Alice", "Bob")
    s.reads_console = False
    word = flood(s, alice)
    if s.hear([bob], word):
        return YES
    why, s.reads_console = s.cause(alice), True
    if s.hear([bob], word):
        return no("l'écran du serveur n'est plus lu, et Bob ne reçoit plus rien")
    return Verdict("?", why)


def open_address(s: Program) -> Verdict:
    """Le serveur ne s'ouvre pas au réseau sans le dire.
    L'adresse "" ou 0.0.0.0 veut dire : toutes celles de cette machine.
    étape 3, `main`"""
    hosts = [event[1] for event in s.events if event[0] == "bound"]
    if any(host in ("", "0.0.0.0", "::") for host in hosts):
        return no(f"le serveur écoute sur {hosts[0]!r} : tout le réseau peut entrer")
    return YES


# --- Un client ------------------------------------------------------------------------


def enter_chat(s: Program) -> Peer:
    """Mène un client jusqu'à ce qu'il puisse envoyer un message ; renvoie le serveur joué ici."""
    if not s.peers:
        raise Trouble("le client ne se connecte pas")
    (server,) = s.peers
    s.settle(server)
    if not s.is_asking() and not server.heard:
        call_client(s, server)
    if not s.typed:
        s.type("Alice")
        s.settle(server)
    if not s.is_asking():
        tell(s, server, "* Bienvenue, Alice !\n")
    return server


def tell(s: Program, server: Peer, text: str) -> None:
    s.send(server, text.encode())
    s.settle(server)


def call_client(s: Program, server: Peer) -> None:
    """Envoie les mots que le client attend, d'après son source, jusqu'à ce qu'il réponde."""
    before = len(server.heard)
    for word in compared_words(s.path):
        if word not in leave_words(s.path) and len(server.heard) == before and not s.has_ended:
            tell(s, server, word)


def is_shown(s: Program, word: str) -> bool:
    return s.expect(lambda: word.encode() in s.console)


def sends(s: Program) -> Verdict:
    """Le client envoie son nom et ses messages.
    Le nom est la première ligne, les suivantes sont des messages.
    client_exo.py, `Client.join`"""
    server = enter_chat(s)
    for word in (s.word(), s.word()):
        if not s.is_asking():  # il attend peut-être une réponse à chaque message
            tell(s, server, "Bob : oui\n")
        s.type(word)
        if not s.hear([server], word):
            why = s.exception() or s.has_ended and "le client se termine"
            return no(why) if why else Verdict("?", "le serveur ne reçoit pas ce qui est tapé")
    if b"Alice" not in server.heard:
        call_client(s, server)
    return YES if b"Alice" in server.heard else Verdict("autre", "le client n'envoie pas de nom")


def shows(s: Program) -> Verdict:
    """Ce qui arrive se voit pendant que l'on tape.
    `input` occupe un thread : il en faut un autre pour recevoir.
    client_exo.py, `Client.receive_lines`"""
    server, word = enter_chat(s), s.word()
    tell(s, server, f"Bob : {word}\n")
    if is_shown(s, word):
        return YES
    if s.exception():
        return no(s.exception())
    s.type(s.word())
    if is_shown(s, word):
        return no("une ligne reçue ne se voit qu'après la touche Entrée")
    return Verdict("?", "la ligne reçue n'apparaît pas sur la sortie du programme")


def shows_cut_character(s: Program) -> Verdict:
    """Un « é » arrive en deux morceaux.
    « é » fait deux octets, et `decode` refuse la moitié d'un caractère.
    étape 4, `decode_line`"""
    server, word = enter_chat(s), s.word()
    s.send(server, f"Bob : {word}".encode() + b"\xc3")
    s.settle(server)
    s.send(server, b"\xa9\n")
    if is_shown(s, word + "é"):
        return YES
    if s.exception():
        return no(s.exception())
    if word.encode() in s.console:
        return no("« é » arrive en deux morceaux, et s'affiche mal")
    return Verdict("?", "la ligne reçue n'apparaît pas sur la sortie du programme")


def leaves(s: Program) -> Verdict:
    """« exit » quitte le chat.
    Un programme ne finit qu'avec tous ses threads.
    client_exo.py, `Client.type_lines`"""
    server = enter_chat(s)
    for word in leave_words(s.path):
        s.type(word)
        s.expect(lambda: s.has_ended or server.is_closed or s.is_asking())
        s.until(lambda: s.has_ended, 4 * CALM_SECONDS)
        if not s.has_ended and not server.is_closed and not s.is_asking():
            tell(s, server, "Bob : oui\n")
        if s.is_asking() and not server.is_closed:
            continue
        server.close()  # comme un serveur, après « exit »
        if not s.expect(lambda: s.has_ended):
            return no(f"après « {word} », le programme ne se termine pas")
        return YES if word == "exit" else Verdict("autre", f"on quitte par « {word} »")
    return no("le client demande encore un message")


def loses_server(s: Program) -> Verdict:
    """Le serveur s'arrête.
    `input` attend une touche, quoi qu'il arrive au réseau.
    client_exo.py, `Client.receive_lines`"""
    server = enter_chat(s)
    s.settle(server)
    before = len(s.console) + len(s.stderr())
    server.close()
    s.expect(lambda: s.has_ended or s.happened("endless"))
    if s.happened("endless"):
        return no('le serveur ferme : recv renvoie b"" sans fin, et le client continue')
    if s.exception() and not s.has_ended:
        return no(s.exception())
    if s.has_ended or len(s.console) + len(s.stderr()) > before:
        return YES
    return no("le serveur est parti : rien ne le dit, et le client attend une touche")


SERVER_SCENES = {
    "message": message, "accents": accents, "console": console, "exit": leave,
    "fin": end_of_stream, "coupure": cut_off, "reset_avant": reset_early, "muet": mute,
    "colles": glued, "coupe": cut_character, "liste": changing_list, "parti": gone_neighbour,
    "fige": frozen, "ordre": one_order, "inscrit": late_registration,
    "meme_socket": shared_socket, "partiel": partial_send, "doublon": same_name,
    "esc": terminal_codes, "console_pleine": unread_console,
}  # fmt: skip
MORE_SCENES = {
    "adieu": lost_farewell, "adresse": open_address, "nom_colle": glued_name, "imite": false_line,
}  # fmt: skip
CLIENT_SCENES = {
    "envoie": sends, "recoit": shows, "coupe": shows_cut_character, "exit": leaves,
    "fin": loses_server,
}  # fmt: skip


def scenes_of(kind: str) -> dict:
    return CLIENT_SCENES if kind == "client" else {**SERVER_SCENES, **MORE_SCENES}


def table_of(kind: str) -> dict:
    """Renvoie les scènes du tableau, et de --csv."""
    return CLIENT_SCENES if kind == "client" else SERVER_SCENES


def run_scene(name: str, path: str, args: list | None = None) -> Verdict:
    """Joue une scène contre un serveur ou un client, et renvoie son verdict."""
    subject = find_subject(str(path), None if args is None else tuple(args))
    return Verdict("?", subject.said) if subject.said else play(name, str(path), subject)


def play(name: str, path: str, subject: Subject) -> Verdict:
    try:
        with start(path, subject.dialect) as program:
            return scenes_of(subject.kind)[name](program)
    except Trouble as reason:
        return Verdict("?", str(reason))
