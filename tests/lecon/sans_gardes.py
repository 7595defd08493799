#!/usr/bin/env python3
"""Retire une à une les protections du chat, et vérifie que le test de chaque piège échoue alors.

    python3 tests/lecon/sans_gardes.py         toutes, en quelques minutes
    python3 tests/lecon/sans_gardes.py coupe   celles dont le piège a « coupe » dans son nom

Un test qui réussirait encore ne prouverait rien. Le code de sortie est alors 1 ; il est 2 quand les
tests n'ont pas pu répondre (pytest absent, une protection que l'on ne trouve plus…).
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("chat_protocol.py", "serveur_exo.py", "client_exo.py", "tests")
SHORT_PATIENCE = 8  # s : sans la protection, bien des tests attendraient pour rien
ON_A_PROGRAM = "test_un_programme_evite_les_pieges_qu_il_annonce_et_eux_seuls"
HANG_SECONDS = 120  # s : bien plus que le temps au bout duquel un test sans fin échoue de lui-même

# (piège, fichier, la protection telle qu'elle y est, ce qui la remplace). Un piège est une rangée
# de etapes.py, jouée contre serveur_exo.py, ou un autre test de test_pieges.py. Les protections
# sont des lignes de code, jamais des commentaires : on peut réécrire ceux-ci.
GUARDS = [
    (
        "inscrit", "serveur_exo.py",
        "    hub.clients.add(client)\n",
        "    threading.Timer(9, hub.clients.add, [client]).start()\n",
    ),
    (
        "partiel", "serveur_exo.py",
        "        client.outbox = [data] if data else []",
        "        client.outbox = []",
    ),
    (
        "fin", "serveur_exo.py",
        "while data := client.sock.recv(size):",
        "while (data := client.sock.recv(size)) is not None:",
    ),
    (
        "coupure", "serveur_exo.py",
        "    finally:\n        hub.post(client, DEPARTURE)",
        "    else:\n        hub.post(client, DEPARTURE)",
    ),
    (
        "parti", "serveur_exo.py",
        "            data = data[send_now(client.sock, data) :]\n        except OSError:",
        "            data = data[send_now(client.sock, data) :]\n        except KeyError:",
    ),
    (
        "adieu", "serveur_exo.py",
        "                client.sock.shutdown(socket.SHUT_WR)\n",
        "                client.sock.close()\n",
    ),
    (
        "muet", "serveur_exo.py",
        "        reader.start()\n",
        "        reader.run()\n",
    ),
    (
        "test_un_client_coupe_avant_son_nom_ne_laisse_pas_de_trace", "serveur_exo.py",
        "        submit(buffer.last_line(), client, hub, bucket)\n    except OSError:",
        "        submit(buffer.last_line(), client, hub, bucket)\n    except KeyError:",
    ),
    (
        "adresse", "chat_protocol.py",
        'DEFAULT_HOST = "127.0.0.1"',
        'DEFAULT_HOST = "0.0.0.0"',
    ),
    (
        "colles", "chat_protocol.py",
        '*lines, rest = data.split(b"\\n")',
        'lines, rest = [data] if data else [], b""',
    ),
    (
        "nom_colle", "serveur_exo.py",
        "        for line in lines:\n            if client.has_left:",
        '        for line in [b" ".join(lines)]:\n            if client.has_left:',
    ),
    (
        "coupe", "serveur_exo.py",
        "submit(buffer.feed(data),",
        "submit(buffer.feed(data.decode().encode()),",
    ),
    (
        "test_plusieurs_departs_a_la_fois_ne_privent_personne", "serveur_exo.py",
        "        clients = list(self.clients)",
        "        clients = self.clients",
    ),
    (
        "test_tous_lisent_le_meme_ordre_sans_rien_lire_deux_fois", "serveur_exo.py",
        "        self.round_lock = threading.Lock()",
        "        self.round_lock = threading.Semaphore(9)",
    ),
    (
        "meme_socket", "serveur_exo.py",
        "        self.round_lock = threading.Lock()",
        "        self.round_lock = threading.Semaphore(9)",
    ),
    (
        "doublon", "serveur_exo.py",
        "        if key in self.members:",
        "        if False:",
    ),
    (
        "imite", "chat_protocol.py",
        """            if not strip(part) or not (is_word or part in "-_.'’"):""",
        "            if False:",
    ),
    (
        "esc", "chat_protocol.py",
        'else _UNSAFE.sub("\\ufffd", text)',
        "else text",
    ),
    (
        "fige", "serveur_exo.py",
        "            return sock.send(data, DONT_WAIT)",
        "            return sock.send(data)",
    ),
    (
        "console_pleine", "serveur_exo.py",
        '                self.waiting.append(f"{text}\\n")',
        "                print(text, file=self.stream, flush=True)",
    ),
    (
        "test_close_ne_reveille_pas_le_thread_qui_recoit", "serveur_exo.py",
        "            client.sock.shutdown(socket.SHUT_RDWR)",
        "            client.sock.close()",
    ),
    (
        "test_une_ligne_qui_arrive_ne_coupe_pas_celle_que_l_on_tape", "client_exo.py",
        "        if not (self.prompt and self.inserts_rows and rows):",
        "        if True:",
    ),
    (
        "test_la_fin_du_serveur_se_voit_sans_toucher_au_clavier", "client_exo.py",
        "self.is_reading and (is_resumed or self.is_interrupted or self.is_over)",
        "self.is_reading and (is_resumed or self.is_interrupted)",
    ),
    (
        "test_close_ne_reveille_pas_le_thread_qui_recoit", "client_exo.py",
        "self.close()\n            if not poll_until(lambda: self.is_over, GOODBYE_SECONDS",
        "self.sock.close()\n            if not poll_until(lambda: self.is_over",
    ),
]  # fmt: skip


class NoAnswer(Exception):
    """On ne sait pas si le test échoue ; str() dit pourquoi."""


def answer_without(test: str, file: str, guard: str, instead: str) -> str:
    """Joue le test dans une copie du dépôt sans cette protection ; renvoie ce qu'il a fait."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        for path, old, new in (
            (file, guard, instead),
            ("tests/conftest.py", "PATIENCE = 60", f"PATIENCE = {SHORT_PATIENCE}"),
        ):
            path = Path(folder, path)
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                raise NoAnswer(f"{path.name} : la protection {old!r} n'y est pas, ou plus.")
            path.write_text(text.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rs"]
        node = f"{ON_A_PROGRAM}[{test}-serveur_exo]" if not test.startswith("test_") else test
        try:
            done = subprocess.run(
                [*command, f"tests/test_pieges.py::{node}"], cwd=folder, timeout=HANG_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"Le test {test} ne finit pas.") from None
    shown = done.stdout.decode(errors="replace")
    if done.returncode not in (0, 1):  # les codes de pytest : 0, aucun test n'échoue ; 1, l'un échoue
        raise NoAnswer(f"{shown}\npytest n'a pas pu jouer le test {test} (code {done.returncode}).")
    if done.returncode == 0 and (found := re.search("^SKIPPED .*: (.*)", shown, re.M)):
        return f"sauté ({found[1]})"
    return "échoue " if done.returncode else "RÉUSSIT"


def main() -> int:
    """Renvoie 1 si un test réussit sans sa protection, 2 si l'on ne peut pas le savoir."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    answers = []
    if word == "--help":
        print(__doc__)
        return 0
    try:
        if importlib.util.find_spec("pytest") is None:
            raise NoAnswer("Il faut pytest : la section « Tests » du README dit comment l'installer.")
        for test, *guard in GUARDS:
            if word in test:
                answers.append(answer_without(test, *guard))
                print(answers[-1], test, flush=True)
        if not answers:
            raise NoAnswer(f"Aucun de ces tests n'a « {word} » dans son nom.")
    except NoAnswer as reason:
        print(reason, file=sys.stderr)
        return 2
    return int("RÉUSSIT" in answers)


if __name__ == "__main__":
    sys.exit(main())
