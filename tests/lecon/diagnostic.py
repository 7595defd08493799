"""Le diagnostic : essayer son propre chat, et lire ce qui ne tient pas.

    python3 tests/lecon/diagnostic.py mon_serveur.py         un rapport
    python3 tests/lecon/diagnostic.py eleves/*.py            un tableau, une ligne par programme
    python3 tests/lecon/diagnostic.py --csv eleves/*.py      de même, pour un tableur

Un programme qui se connecte sans écouter est essayé comme un client. Verdicts : « oui » (cela
tient), « non », « autre » (un autre dialecte, sans faute), « ? » (pas pu voir), « - » (sans objet).
Le code de sortie vaut 0 si tout a pu être jugé, 1 sinon, 2 pour une option inconnue.

Ces programmes s'exécutent avec vos droits : n'essayez pas un fichier que vous n'oseriez pas lancer.
Rien de ce qu'ils lancent ne leur survit, leur mémoire et leurs fichiers sont limités, et aucun
fichier n'apparaît à côté d'eux. Sous Windows, ces limites n'existent pas, et l'on ne sait pas si
tout ce qu'un programme y a lancé finit avec lui. Un piège que seule une porte provoque est rare.
"""

import os
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import scenes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # le dossier de chat_protocol.py
import chat_protocol

AT_ONCE = 4  # programmes essayés à la fois
WIDTH = 80  # colonnes du rapport
PARTS = {  # scène → ce qu'elle essaie, pourquoi, où se trouve la réponse ; la plus grave en premier
    "L'énoncé": {
        "message": ("un message arrive à tous les autres",
                    "Le serveur envoie chaque message à tous les clients de sa liste.",
                    "étape 0, `broadcast`"),
        "exit": ("« exit » quitte le chat",
                 "Celui qui part sort de la liste, et les autres continuent.", "étape 0, `leave`"),
        "envoie": ("le client envoie son nom et ses messages",
                   "Le nom est la première ligne, les suivantes sont des messages.",
                   "client_exo.py, `main`"),
        "recoit": ("ce qui arrive se voit pendant que l'on tape",
                   "`input` occupe un thread : il en faut un autre pour recevoir.",
                   "client_exo.py, `receive`"),
        "console": ("l'écran du serveur montre « Nom : message »",
                    "L'énoncé demande de lire à l'écran du serveur qui dit quoi.",
                    "étape 0, `broadcast`"),
        "accents": ("les accents passent",
                    "`encode` et `decode` emploient UTF-8 si on ne leur dit rien.",
                    "étape 0, `tell`"),
    },
    "Les pièges": {
        "fige": ("un client qui ne lit plus",
                 "`sendall` attend que l'autre lise : le thread qui diffuse s'arrête là.",
                 "étape 7, `send_now`"),
        "muet": ("un client qui ne donne pas son nom",
                 "La boucle d'accept attend ce nom, et n'accepte plus personne.",
                 "étape 3, `read_client`"),
        "reset_avant": ("un client coupé avant d'avoir donné son nom",
                        "`recv` lève alors une exception, qui arrête la boucle d'accept.",
                        "étape 3, `read_client`"),
        "fin": ("un client qui ferme",
                'Après la fin, `recv` renvoie b"" sans attendre, à chaque appel.',
                "étape 1, `read_client`"),
        "coupure": ("un client coupé net",
                    "`recv` lève OSError : c'est une fin aussi, et le client sort de la liste.",
                    "étape 1, `read_client`"),
        "parti": ("un voisin qui vient de partir",
                  "L'envoi à un absent lève OSError dans le thread de celui qui parle.",
                  "étape 1, `tell`"),
        "colles": ("deux messages envoyés ensemble",
                   "TCP transporte des octets : un recv n'est pas un message.",
                   "étape 4, `LineBuffer.feed`"),
        "nom_colle": ("le nom et un message envoyés ensemble",
                      "TCP transporte des octets : un recv n'est pas un message.",
                      "étape 4, `Room.receive`"),
        "coupe": ("un « é » coupé en deux",
                  "« é » fait deux octets, et `decode` refuse la moitié d'un caractère.",
                  "étape 4, `decode_line`"),
        "liste": ("la liste change pendant une diffusion",
                  "Un départ décale la liste qu'un autre thread parcourt.",
                  "étape 5, `broadcast`"),
        "ordre": ("tous lisent dans le même ordre",
                  "Deux threads diffusent à la fois, et se doublent.", "étape 5, `read_client`"),
        "meme_socket": ("deux threads envoient dans un même socket",
                        "`sendall` peut s'y prendre en plusieurs fois, et l'autre passe entre.",
                        "étape 5, `read_client`"),
        "inscrit": ("un client parle dès qu'il est accepté",
                    "Dès `start`, le thread s'exécute : on inscrit le client avant.",
                    "étape 0, `main`"),
        "partiel": ("un envoi partiel",
                    "`send` renvoie combien d'octets sont partis ; `sendall` envoie le reste.",
                    "étape 0, `tell`"),
        "adieu": ("l'au revoir arrive",
                  "Fermer sans avoir tout lu fait envoyer un reset, qui détruit ce qui suit.",
                  "étape 2, `read_client`"),
    },
    "Les conseils": {
        "esc": ("un message ne commande pas le terminal des autres",
                "Un terminal exécute les codes (ESC) qu'il reçoit.", "étape 6, `clean`"),
        "doublon": ("deux clients n'ont pas le même nom",
                    "Sans vérification, on ne sait pas lequel a parlé.", "étape 6, `Room.enter`"),
        "imite": ("un nom n'imite pas la ligne d'un autre",
                  "Le nom est recopié devant chaque message.", "étape 6, `normalize_name`"),
        "adresse": ("le serveur ne s'ouvre pas au réseau sans le dire",
                    'L\'adresse "" ou 0.0.0.0 veut dire : toutes.', "étape 3, `main`"),
        "console_pleine": ("un écran que personne ne lit",
                           "`print` attend, après un Ctrl+S par exemple, et le chat avec lui.",
                           "serveur_exo.py, `Writer.put`"),
    },
}  # fmt: skip
CLIENT_LESSONS = {  # ce qui diffère quand le programme est un client
    "exit": ("« exit » quitte le chat",
             "Un programme ne finit qu'avec tous ses threads.", "client_exo.py, `main`"),
    "fin": ("le serveur s'arrête",
            "`input` attend une touche, quoi qu'il arrive au réseau.",
            "client_exo.py, `interrupt_keyboard`"),
}  # fmt: skip


def lessons(kind: str, part: str) -> dict:
    found = {name: lesson for name, lesson in PARTS[part].items() if name in scenes.scenes_of(kind)}
    if kind == "client":
        found |= {name: lesson for name, lesson in CLIENT_LESSONS.items() if name in found}
    return found


def show_report(path: str, subject: scenes.Subject, verdicts: dict) -> None:
    say(f"{Path(path).name} : {describe(subject)}")
    first = None
    for part in PARTS:
        found = lessons(subject.kind, part)
        if not found:
            continue
        print(f"\n{part}\n")
        for name, (title, why, where) in found.items():
            if verdicts[name].verdict == "non":
                say(f"{name} : {title}.", "  ")
                say(f"vu : {verdicts[name].seen}", "      ")
                say(f"pourquoi : {why}", "      ")
                say(f"voir : {where}", "      ")
                first = first or (name, title, where)
        for verdict, meaning in (("?", "pas pu voir"), ("autre", "autrement, sans faute")):
            for name in found:
                if verdicts[name].verdict == verdict:
                    say(f"{meaning} : {name} ({verdicts[name].seen})", "  ")
        for verdict, meaning in (("-", "sans objet"), ("oui", "tient")):
            names = [name for name in found if verdicts[name].verdict == verdict]
            if names:
                say(f"{meaning} : {', '.join(names)}", "  ")
    if first:
        print()
        say(f"À corriger d'abord : {first[0]}, {first[1]} ({first[2]}).")


def describe(subject: scenes.Subject) -> str:
    """Dit en une phrase comment le programme parle."""
    if subject.kind == "client":
        return "un client."
    dialect = subject.dialect
    words = ["un serveur"]
    if dialect.greeting:
        words.append(f"qui parle le premier (« {dialect.greeting[:30]} »)")
    words.append("un nom d'abord" if dialect.handshake else "sans nom")
    words.append("une ligne par message" if dialect.end else "un message par envoi, sans fin de ligne")
    words.append("le nom devant chaque message" if dialect.signed else "le message tel quel")
    words += ["l'auteur le reçoit aussi"] * dialect.echo
    return ", ".join(words) + "."


def say(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def show_table(results: list, kind: str) -> None:
    """Montre une ligne par programme de cette sorte, et les sommes."""
    names = scenes.table_of(kind)
    rows = [(path, verdicts) for path, subject, verdicts in results if subject.kind == kind and verdicts]
    if not rows:
        return
    letters = "abcdefghijklmnopqrstuvwxyz"
    print(f"{kind:<30}", *letters[: len(names)], "non")
    for path, verdicts in rows:
        marks = [{"oui": ".", "non": "N", "autre": "~"}.get(verdicts[n].verdict, verdicts[n].verdict)
                 for n in names]  # fmt: skip
        print(f"{Path(path).name[-30:]:<30}", *marks, f"{marks.count('N'):>3}")
    print("(. oui, N non, ~ autre dialecte, ? pas pu voir, - sans objet)\n")
    for letter, name in zip(letters, names):
        count = sum(verdicts[name].verdict == "non" for _, verdicts in rows)
        print(f"  {letter} {name:<15} non : {count} sur {len(rows)}")
    print()


def show_csv(results: list) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["programme", "scene", "verdict", "vu"])
    for path, subject, verdicts in results:
        for name in scenes.table_of(subject.kind):
            verdict, seen = verdicts.get(name, scenes.Verdict("?", subject.said))
            writer.writerow([path, name, verdict, " ".join(seen.split())])


class Progress:
    """Une barre sur stderr, si c'est un terminal. Le thread principal seul s'en sert."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.show()

    def advance(self) -> None:
        self.done += 1
        self.show()

    def show(self) -> None:
        if not sys.stderr.isatty():
            return
        left = ""
        if self.done:
            seconds = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            left = f"encore {seconds:.0f} s"
        bar = "#" * (40 * self.done // self.total)
        end = "" if self.done < self.total else "\r\x1b[K"
        print(f"\r[{bar:<40}] {self.done}/{self.total} {left:<15}", end=end, file=sys.stderr, flush=True)


def try_program(path: str, names) -> tuple:
    subject = scenes.find_subject(path)
    if subject.said:
        return path, subject, {}
    names = names or scenes.table_of(subject.kind)
    return path, subject, {name: scenes.play(name, path, subject) for name in names}


def try_one(path: str) -> tuple:
    """Essaie un seul programme, plusieurs scènes à la fois."""
    subject = scenes.find_subject(path)
    if subject.said:
        return path, subject, {}
    names = list(scenes.scenes_of(subject.kind))
    progress, verdicts = Progress(len(names)), {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, verdict in zip(names, pool.map(lambda n: scenes.play(n, path, subject), names)):
            verdicts[name] = verdict
            progress.advance()
    return path, subject, verdicts


def try_many(paths: list[str]) -> list:
    """Essaie plusieurs programmes à la fois, et chacun scène par scène."""
    progress, results = Progress(len(paths)), []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for result in pool.map(lambda path: try_program(path, None), paths):
            results.append(result)
            progress.advance()
    return results


def main() -> int:
    """Renvoie le code de sortie."""
    chat_protocol.set_up_stream(sys.stdout)
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    paths = [word for word in words if word != "--csv"]
    wrong = [word for word in paths if word.startswith("-")]
    if wrong or not paths:
        what = f"Option « {wrong[0]} » inconnue" if wrong else "Il manque un fichier"
        print(f"{what}. Tapez --help.", file=sys.stderr)
        return 2
    results = [try_one(paths[0])] if len(paths) == 1 else try_many(paths)
    if "--csv" in words:
        show_csv(results)
    elif len(paths) > 1:
        show_table(results, "serveur")
        show_table(results, "client")
    elif results[0][2]:
        show_report(*results[0])
    for path, subject, verdicts in results:
        if not verdicts and "--csv" not in words:
            say(f"{Path(path).name} n'a pas pu être essayé : {subject.said}.")
    return 0 if all(verdicts for *_, verdicts in results) else 1


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    os._exit(code)
