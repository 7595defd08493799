"""La loupe : chaque scène montre ses étapes, dans l'ordre, sur 80 colonnes."""

import os
import re
import subprocess
import sys

import pytest
from conftest import PATIENCE, ROOT, needs

# Par scène, les rangées qui viennent dans cet ordre, entre d'autres (expressions régulières). Une
# étape que plusieurs threads peuvent faire est donnée sans son thread.
STEPS = {
    "message": [
        r"client Alice    sendall    b'Bonjour !\\n'",
        r"lecteur d'Alice recv       b'Bonjour !\\n'",
        r"lecteur d'Alice feed       1 ligne : \[b'Bonjour !'\]",
        r"lecteur d'Alice post       dépose 1 ligne d'Alice dans l'inbox",
        r"lecteur d'Alice acquire    a le verrou : fait une tournée",
        r"lecteur d'Alice receive    traite 1 ligne d'Alice",
        r"lecteur d'Alice send_now   Bob : 18 octets à envoyer, tous acceptés",
        r"client Bob      recv       b'Alice : Bonjour !\\n'",
    ],
    "coupe": [
        r"lecteur d'Alice recv       b'Un caf\\xc3'",
        r"lecteur d'Alice feed       aucune ligne entière ; garde b'Un caf\\xc3'",
        r"lecteur d'Alice recv       b'\\xa9 \?\\n'",
        r"lecteur d'Alice feed       1 ligne : \[b'Un caf\\xc3\\xa9 \?'\]",
        r"écriture        write      console : Alice : Un café \?",
    ],
    "rafale": [
        r"lecteur d'Alice acquire    a le verrou : fait une tournée",
        r"lecteur de Bob  acquire    verrou pris : repart sans attendre",
        r"lecteur de Zoé  acquire    verrou pris : repart sans attendre",
        r"lecteur d'Alice receive    traite 1 ligne d'Alice",
        r"lecteur d'Alice receive    traite 1 ligne de Bob",
        r"lecteur d'Alice receive    traite 1 ligne de Zoé",
        r"lecteur d'Alice send_now   \w+ : 2\d octets à envoyer, tous acceptés",
        r"lecteur d'Alice release    rend le verrou",
    ],
    "lent": [
        r".* send_now   Léo : \d+ octets à envoyer, tous acceptés",
        r".* send_now   Léo : \d+ octets à envoyer, 0 accepté",
        r".* send       Léo a plus de 1 Mio de retard : l'inbox reste fermée",
        r"lecteur de Bob  post       dépose 1 ligne de Bob dans l'inbox",
        r".* shutdown   coupe Léo, ce qui réveille son lecteur",
        r".* receive    traite 1 ligne de Bob",
        r"client Alice    recv       .*Bob : Tout.*",
    ],
    "depart": [
        r"lecteur d'Alice send_now   Alice : 20 octets à envoyer, tous acceptés",
        r"lecteur d'Alice shutdown   on n'enverra plus rien à Alice",
        r"client Alice    recv       b'' : le serveur n'enverra plus rien",
        r"client Alice    close      ferme la connexion",
        r"lecteur d'Alice recv       b'' : ce client n'enverra plus rien",
        r".* close      la connexion d'Alice est fermée",
    ],
}


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=PATIENCE)


@pytest.mark.parametrize("scene", STEPS)
def test_une_scene_montre_ses_etapes(scene):
    if scene == "lent":  # ce que l'on y voit du système est ce qu'en montre MSG_DONTWAIT
        needs("MSG_DONTWAIT")
    done = run("tests/lecon/loupe.py", scene)
    assert (done.returncode, done.stderr) == (0, "")
    header, _, steps = done.stdout.partition("ce qui se passe\n")
    rows = steps.splitlines()
    assert 10 <= len(rows) <= 30
    assert max(len(row) for row in done.stdout.splitlines()) <= 80
    assert "\x1b" not in done.stdout
    remaining = iter(rows)
    for step in STEPS[scene]:
        assert any(re.fullmatch(step, row) for row in remaining), (step, rows)


def test_la_loupe_finit_si_plus_personne_ne_la_lit():
    with subprocess.Popen(
        [sys.executable, "tests/lecon/loupe.py"], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0


def test_une_fonction_disparue_du_serveur_se_dit():
    program = "import sys; sys.path.insert(0, 'tests/lecon'); import loupe; del loupe.serveur_exo.send_now"
    done = run("-c", f"{program}; loupe.main()")
    assert done.returncode == 1
    reason = "serveur_exo.send_now n'existe plus : la loupe ne peut pas l'observer"
    assert done.stderr == f"loupe.py : {reason}.\n"


def test_une_etape_qui_n_a_pas_lieu_se_dit():
    program = "import sys; sys.path.insert(0, 'tests/lecon'); import loupe; loupe.PATIENCE = 0"
    done = run("-c", f"{program}; loupe.Lens(sys.stdout).wait_for('client Bob', 'recv', 'Salut')")
    assert done.returncode == 1
    assert done.stderr == "loupe.py : l'étape « client Bob : recv Salut » n'a pas eu lieu.\n"


@pytest.mark.parametrize("no_color", [{}, {"NO_COLOR": "1"}], ids=["en couleur", "sans couleur"])
def test_la_loupe_n_a_de_couleurs_que_sur_un_terminal_qui_en_veut(no_color):
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | no_color
    needs("un pty")
    master, slave = os.openpty()
    command = [sys.executable, "tests/lecon/loupe.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=slave, env=env):
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # Linux : plus personne n'écrit sur ce terminal
            pass
    os.close(master)
    assert "client Bob      recv".encode() in shown
    assert (b"\x1b[" in shown) == (not no_color)
