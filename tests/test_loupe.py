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
    "reveil": [
        r"lecteur d'Alice release    \(la loupe retient cette tournée un instant\)",
        r"lecteur de Bob  post       dépose 1 ligne de Bob dans l'inbox",
        r"lecteur de Bob  acquire    verrou pris : repart sans attendre",
        r"lecteur d'Alice release    rend le verrou",
        r"lecteur d'Alice set        l'inbox n'est pas vide : réveille le veilleur",
        r"veilleur        acquire    a le verrou : fait une tournée",
        r"veilleur        receive    traite 1 ligne de Bob",
        r"veilleur        send_now   Alice : 11 octets à envoyer, tous acceptés",
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


LOUPE = "import sys; sys.path.insert(0, 'tests/lecon'); import loupe; sys.argv[1:] = []"


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
    done = run("-c", f"{LOUPE}; import serveur_exo; del serveur_exo.send_now; print(loupe.main())")
    assert done.stdout == "1\n"
    assert done.stderr == "loupe.py : send_now n'existe plus : la loupe ne peut pas l'observer.\n"


def test_une_etape_qui_n_a_pas_lieu_se_dit():
    wait = "setattr(loupe, 'PATIENCE', 0) or lens.wait_for('client Bob +recv +Salut')"
    scene = f"lambda lens, *_: {wait}"
    change = f"loupe.SCENES['message'] = ({scene}, *loupe.SCENES['message'][1:])"
    done = run("-c", f"{LOUPE}; {change}; print(loupe.main())")
    assert done.stdout.endswith("\n1\n")
    assert done.stderr == "loupe.py : l'étape « client Bob +recv +Salut » n'a pas eu lieu.\n"


def test_un_thread_du_serveur_qui_echoue_se_dit():
    change = "import serveur_exo as s; s.Room.enter = lambda *_: 1 / 0"
    done = run("-c", f"{LOUPE}; {change}; print(loupe.main())")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def shown_at_a_terminal(scene: str, **variables: str) -> bytes:
    """Renvoie ce que la loupe écrit dans un terminal, avec ces variables d'environnement."""
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    needs("un pty")
    master, slave = os.openpty()
    command = [sys.executable, "tests/lecon/loupe.py", scene]
    with subprocess.Popen(command, cwd=ROOT, stdout=slave, env=env | {"TERM": "xterm"} | variables):
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # Linux : plus personne n'écrit sur ce terminal
            pass
    os.close(master)
    return shown


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_la_loupe_n_a_de_couleurs_que_sur_un_terminal_qui_en_veut(variables):
    shown = shown_at_a_terminal("message", **variables)
    assert "client Bob      recv".encode() in shown
    assert (b"\x1b[" in shown) == (not variables)


def test_sur_un_terminal_etroit_une_rangee_se_coupe_entre_deux_mots():
    shown = shown_at_a_terminal("reveil", NO_COLOR="1", COLUMNS="60").decode().splitlines()
    rows = shown[shown.index("thread          appel      ce qui se passe") :]
    assert max(map(len, rows)) <= 60
    cut = rows.index("lecteur d'Alice post       dépose 1 ligne d'Alice dans")
    assert rows[cut + 1] == " " * 27 + "l'inbox"


def test_apres_une_scene_la_session_retrouve_tout_et_peut_recommencer():
    """Dans IPython ou Jupyter, l'interpréteur continue : il n'y reste rien de la loupe."""
    state = (
        "[sys.stdout, sys.stderr, sys.argv, sys.getprofile(), threading.getprofile(),"
        " threading.excepthook, signal.getsignal(2), serveur_exo.IDLE_SECONDS]"
    )
    program = f"{LOUPE}; import serveur_exo, signal, threading; before = {state}"
    done = run("-c", f"{program}; print([loupe.main(), loupe.main()], before == {state})")
    assert done.stdout.endswith("\n[0, 0] True\n")


def test_l_aide_et_une_erreur_sont_en_francais():
    assert "reveil    Bob parle trop tard" in run("tests/lecon/loupe.py", "--help").stdout
    done = run("tests/lecon/loupe.py", "tout")
    assert done.returncode == 1
    assert done.stderr == "loupe.py : scène inconnue : tout (--help les nomme).\n"


@pytest.mark.parametrize("scene", sorted(STEPS.keys() - {"lent"}))
def test_la_loupe_montre_aussi_l_etape_8(scene):
    needs("MSG_DONTWAIT")
    done = run("tests/lecon/loupe.py", "--etape", "8", scene)
    assert (done.returncode, done.stderr) == (0, "")
    rows = iter(done.stdout.splitlines())
    for step in [step for step in STEPS[scene] if "écriture" not in step]:
        assert any(re.fullmatch(step, row) for row in rows), (step, done.stdout)
