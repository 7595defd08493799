#!/usr/bin/env python3
"""Enlève une à une les gardes du chat, et vérifie que l'épreuve de chaque piège échoue alors.

    python3 tests/sans_gardes.py            toutes, en quelques minutes
    python3 tests/sans_gardes.py send       celles dont l'épreuve a « send » dans son nom

Une épreuve qui passerait encore ne prouverait rien. Le code de sortie est alors 1.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("chat_protocol.py", "serveur_exo.py", "client_exo.py", "tests")
SHORT_PATIENCE = 8  # s : sans la garde, bien des épreuves attendraient pour rien
HANG_SECONDS = 90  # s : une épreuve qui ne finit pas a échoué aussi

# (épreuve, fichier, la garde telle qu'elle y est, ce qui la remplace)
GUARDS = [
    (
        "un_recv_n_est_pas_un_message", "chat_protocol.py",
        '*lines, self._data = self._data.split(b"\\n", max_lines)',
        'lines, self._data = [self._data] if self._data else [], b""',
    ),
    (
        "le_nom_ne_se_colle_pas_au_premier_message", "serveur_exo.py",
        "        for line in lines:\n            if client.leaving:",
        '        for line in [b" ".join(lines)]:\n            if client.leaving:',
    ),
    (
        "un_caractere_coupe_par_recv_ne_tue_pas_le_thread", "serveur_exo.py",
        "            buffer.feed(data)\n",
        '            buffer.feed(data.decode().encode())\n',
    ),
    (
        "une_fin_de_flux_n_est_pas_un_message_vide", "serveur_exo.py",
        "while data := client.sock.recv(size):",
        "while (data := client.sock.recv(size)) is not None:",
    ),
    (
        "un_client_muet_n_empeche_pas_les_autres_d_entrer", "serveur_exo.py", "            reader.start()\n", "            reader.run()\n"
    ),
    (
        "un_client_qui_coupe_net_n_arrete_pas_l_accueil", "serveur_exo.py",
        "    except OSError:\n        pass  # connexion coupée net",
        "    except ZeroDivisionError:\n        pass  # connexion coupée net",
    ),
    (
        "un_client_est_inscrit_avant_que_son_thread_demarre", "serveur_exo.py",
        "        client.mail_slot.acquire()\n        self.postman.inbox.put(Mail(Event.CONNECTED, client))\n",
        "        import functools\n"
        "        late = functools.partial(self.postman.inbox.put, Mail(Event.CONNECTED, client))\n"
        "        threading.Timer(1, late).start()\n",
    ),
    (
        "deux_clients_n_ont_pas_le_meme_nom", "serveur_exo.py", "        if key in self.members:\n", "        if False:\n"
    ),
    (
        "un_nom_n_imite_pas_la_ligne_d_un_autre", "chat_protocol.py", "        if not _is_allowed_in_name(char):", "        if False:"
    ),
    (
        "le_serveur_ne_s_ouvre_pas_au_reseau_sans_le_dire", "chat_protocol.py", 'DEFAULT_HOST = "127.0.0.1"', 'DEFAULT_HOST = "0.0.0.0"'
    ),
    (
        "la_liste_ne_change_pas_pendant_qu_on_la_parcourt", "serveur_exo.py", "for client in list(self.clients):", "for client in self.clients:"
    ),
    (
        "send_peut_n_envoyer_que_le_debut", "serveur_exo.py",
        "client.outbox = [data[sent:]] if sent < len(data) else []",
        "client.outbox = []",
    ),
    (
        "deux_threads_n_envoient_pas_sur_le_meme_socket", "serveur_exo.py",
        "        is_calm = self.inbox.empty() and not self.late\n",
        "        is_calm, self.round_lock = True, threading.Semaphore(9)\n",
    ),
    (
        "tous_voient_les_messages_dans_le_meme_ordre", "serveur_exo.py",
        "            with self.round_lock:\n                self.make_round(",
        "            with threading.Lock():\n                self.make_round(",
    ),
    (
        "un_client_mort_ne_fait_pas_taire_un_innocent", "serveur_exo.py",
        "        except OSError:  # plus personne au bout",
        "        except ZeroDivisionError:  # plus personne au bout",
    ),
    (
        "qui_ne_lit_plus_ne_bloque_pas_les_autres", "serveur_exo.py", "        return sock.send(data, DONT_WAIT)", "        return sock.send(data)"
    ),
    (
        "une_console_que_personne_ne_lit_n_arrete_pas_le_chat", "serveur_exo.py",
        "        self.clerk.bell.set()",
        "        os.write(self.descriptor, data)",
    ),
    (
        "close_ne_reveille_pas_le_thread_qui_recoit", "serveur_exo.py",
        "            shut(client.sock, socket.SHUT_RDWR)  # réveille son lecteur, qui dira GONE",
        "            client.sock.close()",
    ),
    (
        "un_message_ne_pilote_pas_le_terminal_des_autres", "chat_protocol.py", '    return _UNSAFE.sub("\\ufffd", text)', "    return text"
    ),
    (
        "une_ligne_qui_arrive_ne_coupe_pas_celle_que_l_on_tape", "client_exo.py",
        'INSERT = "\\x1bD\\x1b[A\\x1b7\\r\\x1b[L{}\\x1b8\\x1b[B"',
        'INSERT = "{}\\n"',
    ),
    (
        "la_fin_du_serveur_se_voit_sans_toucher_au_clavier", "client_exo.py", "        call_keyboard(connection)\n\n\n", "\n\n"
    ),
    (
        "close_ne_reveille_pas_le_thread_qui_recoit", "client_exo.py", "    shut(connection.sock)\n    if receiver.is_alive():  # Ctrl+C a pu venir avant qu'il démarre\n        receiver.join(GOODBYE_SECONDS)",
        "    receiver.join()",
    ),
]  # fmt: skip


def fails_without(test: str, file: str, guard: str, instead: str) -> bool:
    """Dit si l'épreuve échoue dans une copie du dépôt sans cette garde."""
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
            assert text.count(old) == 1, f"{path.name} : la garde {old!r} n'y est pas, ou plus"
            path.write_text(text.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_pieges.py"]
        try:
            done = subprocess.run(
                [*command, "-k", f"test_{test}"], cwd=folder, timeout=HANG_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        return bool(re.search(rb"^(FAILED|ERROR) .*::", done.stdout, re.M))


def main() -> int:
    """Rend 1 si une épreuve passe sans sa garde."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    useless = 0
    for test, *guard in GUARDS:
        if word in test:
            is_red = fails_without(test, *guard)
            print("rouge" if is_red else "VERTE", test, flush=True)
            useless += not is_red
    return int(useless > 0)


if __name__ == "__main__":
    sys.exit(main())
