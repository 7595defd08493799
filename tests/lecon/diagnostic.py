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
tout ce qu'un programme y a lancé finit avec lui.
"""

import csv
import os
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import scenes
from essai import Subject, find_subject

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # le dossier de chat_protocol.py
import chat_protocol

AT_ONCE = 4  # programmes qui s'exécutent à la fois
WIDTH = 80  # colonnes du rapport
PARTS = {  # les scènes de chaque partie, la plus grave en premier
    "L'énoncé": "message envoie recoit exit console accents",
    "Les pièges": "fin coupure parti reset_avant muet fige colles nom_colle coupe liste ordre"
    " inscrit meme_socket partiel adieu",
    "Les conseils": "esc doublon imite adresse console_pleine",
}
MARKS = {"oui": ".", "non": "x", "autre": "~", "?": "?", "-": "-"}


class Lesson(NamedTuple):
    """Ce que la docstring d'une scène enseigne."""

    title: str  # ce qui est essayé
    why: str
    where: str  # l'étape et la fonction qui y répondent


def lesson_of(scene) -> Lesson:
    return Lesson(*(line.strip() for line in scene.__doc__.split("\n")))


# --- Essayer ----------------------------------------------------------------------


class Progress:
    """Une barre sur stderr, si c'est un terminal. Le thread principal seul s'en sert."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.start = time.monotonic()

    def follow(self, futures: list) -> list:
        """Attend ces résultats, et montre où l'on en est."""
        self.total += len(futures)
        self.show()
        for _ in as_completed(futures):
            self.done += 1
            self.show()
        return [future.result() for future in futures]

    def show(self) -> None:
        if not sys.stderr.isatty():
            return
        seconds = (time.monotonic() - self.start) / (self.done or 1) * (self.total - self.done)
        left = f"encore {seconds:.0f} s" if self.done else ""
        line = f"[{'#' * (40 * self.done // self.total):<40}] {self.done}/{self.total} {left:<15}"
        if self.done == self.total:
            line = " " * len(line) + "\r"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)


def try_all(paths: list[str]) -> list[tuple[str, Subject, dict]]:
    """Essaie ces programmes ; renvoie, de chacun, ce qui en a été trouvé et ses verdicts."""
    choose = scenes.scenes_of if len(paths) == 1 else scenes.table_of
    pool, progress = ThreadPoolExecutor(AT_ONCE), Progress()
    try:
        subjects = progress.follow([pool.submit(find_subject, path) for path in paths])
        results, jobs = [], []
        for path, subject in zip(paths, subjects):
            names = [] if subject.said else choose(subject.kind)
            played = {name: pool.submit(scenes.play, name, path, subject) for name in names}
            results.append((path, subject, played))
            jobs += played.values()
        if jobs:
            progress.follow(jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl+C : les scènes commencées finissent, seules
    return [
        (path, subject, {name: job.result() for name, job in played.items()})
        for path, subject, played in results
    ]


# --- Dire ce qui a été vu ------------------------------------------------------------


def show_report(path: str, subject: Subject, verdicts: dict) -> None:
    say(f"{Path(path).name} : {describe(subject)}")
    first = ""
    for part, names in PARTS.items():
        found = {name: verdicts[name] for name in names.split() if name in verdicts}
        lessons = {name: lesson_of(scenes.scenes_of(subject.kind)[name]) for name in found}
        print(f"\n{part}\n")
        for name in with_verdict(found, "non"):
            lesson = lessons[name]
            first = first or f"{name} ({lesson.where})"
            say(f"{name}, ne tient pas : {lesson.title}", "  ")
            for word, text in zip(("vu", "pourquoi", "voir"), (found[name].seen, *lesson[1:])):
                say(f"{word} : {text}", "      ")
        for verdict, meaning in (("?", "pas pu voir"), ("autre", "autrement, sans faute")):
            for name in with_verdict(found, verdict):
                say(f"{meaning} : {name} ({found[name].seen})", "  ")
        for verdict, meaning in (("-", "sans objet"), ("oui", "tient")):
            if names := with_verdict(found, verdict):
                say(f"{meaning} : {', '.join(names)}", "  ")
    if first:
        print(f"\nÀ corriger d'abord : {first}.")


def with_verdict(verdicts: dict, wanted: str) -> list[str]:
    return [name for name, (verdict, _) in verdicts.items() if verdict == wanted]


def describe(subject: Subject) -> str:
    """Dit en une phrase comment le programme parle."""
    if subject.kind == "client":
        return "un client."
    dialect, words = subject.dialect, ["un serveur"]
    if dialect.greeting:
        words.append(f"qui parle le premier (« {dialect.greeting[:30]} »)")
    words.append("le nom d'abord" if dialect.handshake else "sans nom")
    words.append("une ligne par message" if dialect.end else "des messages sans fin de ligne")
    words.append("le nom devant le message" if dialect.signed else "le message tel quel")
    words.append("à tous, son auteur compris" if dialect.echo else "à tous les autres")
    return ", ".join(words) + "."


def say(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def show_table(results: list, kind: str) -> None:
    """Montre une ligne par programme de cette sorte, et les sommes."""
    rows = [(path, found) for path, subject, found in results if found and subject.kind == kind]
    if not rows:
        return
    letters = dict(zip(scenes.table_of(kind), "abcdefghijklmnopqrstuvwxyz"))
    print(f"{kind:<30}", *letters.values(), "non")
    for path, verdicts in rows:
        count = len(with_verdict(verdicts, "non"))
        print(f"{Path(path).name[-30:]:<30}", *(MARKS[v.verdict] for v in verdicts.values()), count)
    print(". oui, x non, ~ autre dialecte, ? pas pu voir, - sans objet\n")
    for name, letter in letters.items():
        count = sum(verdicts[name].verdict == "non" for _, verdicts in rows)
        print(f"  {letter} {name:<15} non : {count} sur {len(rows)}")
    print()


def show_csv(results: list) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["programme", "scene", "verdict", "vu"])
    for path, subject, verdicts in results:
        for name in scenes.table_of(subject.kind):
            verdict, seen = verdicts.get(name, scenes.Verdict("?", subject.said))
            writer.writerow([path, name, verdict, " ".join(seen.split())])


def main() -> int:
    """Renvoie le code de sortie."""
    chat_protocol.set_up_stream(sys.stdout)
    words = sys.argv[1:]
    paths = [word for word in words if word != "--csv"]
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    if not paths or paths[0].startswith("-"):
        wrong = f"Option « {paths[0]} » inconnue" if paths else "Il manque un fichier"
        print(f"{wrong}. Ajoutez --help.", file=sys.stderr)
        return 2
    results = try_all(paths)
    if "--csv" in words:
        show_csv(results)
    elif len(paths) > 1:
        show_table(results, "serveur")
        show_table(results, "client")
    elif results[0][2]:
        show_report(*results[0])
    unknown = [(path, subject) for path, subject, verdicts in results if not verdicts]
    for path, subject in unknown:
        if "--csv" not in words:
            say(f"{Path(path).name} n'a pas pu être essayé : {subject.said}.")
    return 1 if unknown else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # plus personne ne lit, après « | head » par exemple
        os._exit(1)
