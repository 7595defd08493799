#!/usr/bin/env python3
"""Retire une à une les protections du chat, et vérifie que le test de chaque piège échoue alors.

    python3 tests/lecon/sans_gardes.py         toutes, en quelques minutes
    python3 tests/lecon/sans_gardes.py send    celles dont le test a « send » dans son nom

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
HANG_SECONDS = 120  # s : bien plus que le temps au bout duquel un test sans fin échoue de lui-même

# (test, fichier, la protection telle qu'elle y est, ce qui la remplace). Les protections sont des
# lignes de code, jamais des commentaires : on peut réécrire ceux-ci.
GUARDS = [
    (
        "un_recv_n_est_pas_un_message", "chat_protocol.py",
        '*lines, rest = data.split(b"\\n")',
        'lines, rest = [data] if data else [], b""',
    ),
    (
        "le_nom_ne_se_colle_pas_au_premier_message", "serveur_exo.py",
        "        for line in lines:\n            if client.leaving:",
        '        for line in [b" ".join(lines)]:\n            if client.leaving:',
    ),
    (
        "un_caractere_coupe_par_recv_ne_tue_pas_le_thread", "serveur_exo.py",
        "submit(buffer.feed(data),",
        "submit(buffer.feed(data.decode().encode()),",
    ),
    (
        "une_fin_de_flux_n_est_pas_un_message_vide", "serveur_exo.py",
        "while data := client.sock.recv(size):",
        "while (data := client.sock.recv(size)) is not None:",
    ),
    (
        "un_client_muet_n_empeche_pas_les_autres_d_entrer", "serveur_exo.py",
        "        reader.start()\n",
        "        reader.run()\n",
    ),
    (
        "un_client_qui_coupe_net_n_arrete_pas_l_accueil", "serveur_exo.py",
        "        submit(buffer.last_line(), client, broadcaster, bucket)\n    except OSError:",
        "        submit(buffer.last_line(), client, broadcaster, bucket)\n    except KeyError:",
    ),
    (
        "un_client_est_inscrit_avant_que_son_thread_demarre", "serveur_exo.py",
        "    broadcaster.clients.add(client)\n",
        "    threading.Timer(PATIENCE, broadcaster.clients.add, [client]).start()\n",
    ),
    (
        "deux_clients_n_ont_pas_le_meme_nom", "serveur_exo.py",
        "        if key in self.members:\n",
        "        if False:\n",
    ),
    (
        "un_nom_n_imite_pas_la_ligne_d_un_autre", "chat_protocol.py",
        "            if not strip(part) or not (is_word or part in \"-_.'’\"):",
        "            if False:",
    ),
    (
        "le_serveur_ne_s_ouvre_pas_au_reseau_sans_le_dire", "chat_protocol.py",
        'DEFAULT_HOST = "127.0.0.1"',
        'DEFAULT_HOST = "0.0.0.0"',
    ),
    (
        "la_liste_ne_change_pas_pendant_qu_on_la_parcourt", "serveur_exo.py",
        "        clients = list(self.clients)",
        "        clients = self.clients",
    ),
    (
        "send_peut_n_envoyer_que_le_debut", "serveur_exo.py",
        "        client.outbox = [data] if data else []",
        "        client.outbox = []",
    ),
    (
        "deux_threads_n_envoient_pas_sur_le_meme_socket", "serveur_exo.py",
        "        self.round_lock = threading.Lock()",
        "        self.round_lock = threading.Semaphore(9)",
    ),
    (
        "tous_voient_les_messages_dans_le_meme_ordre", "serveur_exo.py",
        "        self.round_lock = threading.Lock()",
        "        self.round_lock = threading.Semaphore(9)",
    ),
    (
        "un_client_parti_n_empeche_pas_de_lire_les_autres", "serveur_exo.py",
        "            data = data[send_now(client.sock, data) :]\n        except OSError:",
        "            data = data[send_now(client.sock, data) :]\n        except KeyError:",
    ),
    (
        "qui_ne_lit_plus_ne_bloque_pas_les_autres", "serveur_exo.py",
        "            return sock.send(data, DONT_WAIT)",
        "            return sock.send(data)",
    ),
    (
        "une_console_que_personne_ne_lit_n_arrete_pas_le_chat", "serveur_exo.py",
        '                self.waiting.append(f"{text}\\n")',
        "                print(text, file=self.stream, flush=True)",
    ),
    (
        "close_ne_reveille_pas_le_thread_qui_recoit", "serveur_exo.py",
        "            client.sock.shutdown(socket.SHUT_RDWR)",
        "            client.sock.close()",
    ),
    (
        "un_message_ne_pilote_pas_le_terminal_des_autres", "chat_protocol.py",
        'else _UNSAFE.sub("\\ufffd", text)',
        "else text",
    ),
    (
        "une_ligne_qui_arrive_ne_coupe_pas_celle_que_l_on_tape", "client_exo.py",
        "        if not (self.prompt and self.inserts_rows and rows):",
        "        if True:",
    ),
    (
        "la_fin_du_serveur_se_voit_sans_toucher_au_clavier", "client_exo.py",
        "        if self.is_reading and (is_resumed or self.is_interrupted or self.is_over):",
        "        if self.is_reading and (is_resumed or self.is_interrupted):",
    ),
    (
        "close_ne_reveille_pas_le_thread_qui_recoit", "client_exo.py",
        "        connection.close()\n        poll_until(lambda: connection.is_over, GOODBYE_SECONDS)",
        "        connection.sock.close()\n        poll_until(lambda: connection.is_over)",
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
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rs", "tests/test_pieges.py"]
        try:
            done = subprocess.run(
                [*command, "-k", f"test_{test}"], cwd=folder, timeout=HANG_SECONDS,
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
