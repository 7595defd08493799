#!/usr/bin/env python3
"""Les étapes et les pièges : qui évite quoi, mesuré ici, à l'instant, sur cette machine.

    python3 tests/lecon/etapes.py                tous les pièges, en une minute ou deux
    python3 tests/lecon/etapes.py coupe muet     ceux-là seulement

Une colonne est une étape (etape0.py, etape1.py…) ou serveur_exo.py ; une rangée est un piège, que
scenes.py joue à coup sûr. « . » : le programme l'évite ; « x » : il y tombe. Le code de sortie est 1
si le tableau n'est pas l'escalier attendu, 2 pour un piège inconnu.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import scenes
from diagnostic import MARKS
from essai import find_subject

HERE = Path(__file__).resolve().parent
STEPS = [HERE / f"etape{number}.py" for number in range(9)]
SERVER = HERE.parents[1] / "serveur_exo.py"
PROGRAMS = {path.stem: path for path in (*STEPS, SERVER)}

# Par scène : la première colonne qui évite le piège, et ce qui arrive dans les autres.
TRAPS = {
    "inscrit": (0, "un thread parle trop tôt"),
    "partiel": (0, "send n'envoie que le début"),
    "fin": (1, "un départ occupe un thread sans fin"),
    "coupure": (1, "une coupure prive un autre client"),
    "parti": (1, "un absent arrête un thread"),
    "adieu": (2, "l'au revoir se perd"),
    "muet": (3, "un client muet bloque l'entrée"),
    "reset_avant": (3, "une coupure bloque l'entrée"),
    "adresse": (3, "tout le réseau peut entrer"),
    "colles": (4, "deux messages n'en font qu'un"),
    "nom_colle": (4, "le nom et un message se collent"),
    "coupe": (4, "un « é » coupé arrête un thread"),
    "liste": (5, "un message oublie quelqu'un"),
    "ordre": (5, "chacun lit un autre ordre"),
    "meme_socket": (5, "deux messages se mêlent"),
    "doublon": (6, "deux clients ont le même nom"),
    "imite": (6, "un nom imite un message"),
    "esc": (6, "un message commande un terminal"),
    "fige": (7, "un client figé bloque tout"),
    "console_pleine": (9, "une console bloquée bloque tout"),
}
AT_ONCE = 8  # scènes à la fois : une scène attend bien plus qu'elle ne calcule


def expected(trap: str, program: str) -> str:
    """Renvoie le verdict que cette case doit avoir."""
    return "oui" if list(PROGRAMS).index(program) >= TRAPS[trap][0] else "non"


def table(verdict_of, traps: list[str], color_of=lambda verdict: "{}") -> Iterator[str]:
    """Donne les rangées du tableau, une à une ; `verdict_of` renvoie le verdict d'une case."""
    yield f"{'étape':<37} {''.join(map(str, range(len(STEPS))))}|serveur"
    for trap in traps:
        found = [verdict_of(trap, program) for program in PROGRAMS]
        *steps, server = [color_of(verdict).format(MARKS[verdict]) for verdict in found]
        yield f"{TRAPS[trap][1]:<37} {''.join(steps)}|{server}"
    yield f"lignes non vides : {' '.join(str(size(path)) for path in STEPS)}"


def size(path: Path) -> int:
    """Renvoie le nombre de lignes d'un programme, sans les lignes vides."""
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def start(pool: ThreadPoolExecutor, cells: list[tuple[str, str]]) -> dict[tuple, Future]:
    """Lance les cases (piège, programme) ; renvoie, pour chacune, son verdict à venir."""
    programs = dict.fromkeys(program for _, program in cells)
    list(pool.map(find_subject, (str(PROGRAMS[program]) for program in programs)))
    return {
        (trap, program): pool.submit(scenes.run_scene, trap, str(PROGRAMS[program]))
        for trap, program in cells
    }


def main() -> int:
    if "--help" in sys.argv:
        print(f"{__doc__}\nLes pièges : {' '.join(TRAPS)}.")
        return 0
    traps = sys.argv[1:] or list(TRAPS)
    if unknown := [trap for trap in traps if trap not in TRAPS]:
        known = " ".join(TRAPS)
        print(f"Piège inconnu : {unknown[0]}. Les pièges sont : {known}.", file=sys.stderr)
        return 2
    has_colors = sys.stdout.isatty() and os.name != "nt" and os.environ.get("TERM") != "dumb"
    colors = {"oui": "\x1b[32m{}\x1b[0m", "non": "\x1b[31m{}\x1b[0m"} if has_colors else {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = start(pool, [(trap, program) for trap in traps for program in PROGRAMS])

        def verdict_of(*cell) -> str:
            return verdicts[cell].result().verdict

        for row in table(verdict_of, traps, lambda verdict: colors.get(verdict, "{}")):
            print(row, flush=True)
    surprises = [cell for cell in verdicts if verdict_of(*cell) != expected(*cell)]
    for cell in surprises:
        print("Inattendu :", *cell, *verdicts[cell].result(), file=sys.stderr)
    return int(bool(surprises))


if __name__ == "__main__":
    sys.exit(main())
