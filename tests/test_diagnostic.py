"""Le diagnostic : ses verdicts sont ceux d'un lecteur du source, et rien ne lui survit.

`essais/` contient de petits programmes, écrits de toutes les manières que l'on rencontre. VERDICTS
dit, de chacun, ce qu'un lecteur en dirait.
"""

import ast
import concurrent.futures
import csv
import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HAS, PATIENCE, ROOT, needs

sys.path.insert(0, str(ROOT / "tests" / "lecon"))
import diagnostic
import essai
import scenes

ATTEMPTS = ROOT / "tests" / "essais"
TOOL = ROOT / "tests" / "lecon" / "diagnostic.py"
AT_ONCE = 8  # scènes à la fois : elles attendent presque toujours

LETTERS = {"o": "oui", "n": "non", "a": "autre", "?": "?", "-": "-"}
VERDICTS = {  # dans l'ordre de scenes.SERVER_SCENES, ou de CLIENT_SCENES
    "mot_machine": "a o n a n o n n a o n n n n o - n - n o",
    "question": "o o o a o n o o n n n n n n o - n n n n",
    "relais": "a o n a o o o o a o o o n o o o o - n o",
    "echo_ascii": "o n o a o n o o n - o n n n o n o n n n",
    "classe": "o o o o o o o o o o o o n o o o o o o n",
    "socketserver_lignes": "o o o a o n o o o o n n n n o n o n n n",
    "select_seul": "a o a a o o o o a o o o n o - o n - n n",
    "envoi_seul": "o o o a o n n n n n o n n n n - n n n n",
    "client_mot": "o o n n n",
    "client_select": "o o o o o",
    "client_alterne": "o n ? a n",
    "../../serveur_exo": "o o o o o o o o o o o o o o o o o o o o",
    "../../client_exo": "o o o o o",
}
UNKNOWN = {  # ce que le diagnostic dit d'un programme qu'il ne peut pas essayer
    "deux_recv": "ValueError: invalid literal for int() with base 10: b'Alic', ligne 11 (serve)",
    "json_lignes": "il dit « {\"type\": \"hello\"} »",
    "sans_ecoute": "le programme n'écoute pas et ne se connecte pas",
    "nom_inconnu": "NameError: name 'PROT' is not defined, ligne 6 (module)",
}  # fmt: skip


@pytest.fixture(scope="module")
def seen():
    """Renvoie, de chaque programme, ce qui en est dit et ses verdicts ; tous joués ensemble."""
    paths = {name: str(ATTEMPTS / f"{name}.py") for name in (*VERDICTS, *UNKNOWN)}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        subjects = dict(zip(paths, pool.map(essai.find_subject, paths.values())))
        played = [
            (name, scene, pool.submit(scenes.play, scene, paths[name], subject))
            for name, subject in subjects.items()
            if not subject.said
            for scene in scenes.table_of(subject.kind)
        ]
        verdicts: dict[str, dict] = {name: {} for name in paths}
        for name, scene, verdict in played:
            verdicts[name][scene] = verdict.result()
    return {name: (subjects[name], verdicts[name]) for name in paths}


@pytest.mark.parametrize("name", VERDICTS)
def test_les_verdicts_sont_ceux_d_un_lecteur(seen, name):
    if name == "client_select":
        needs("select sur le clavier")
    subject, verdicts = seen[name]
    expected = [LETTERS[letter] for letter in VERDICTS[name].split()]
    found = [(scene, verdict, text) for scene, (verdict, text) in verdicts.items()]
    assert len(found) == len(expected), subject.said
    unsure = [] if HAS["de n'attendre aucun envoi"] else ["fige"]
    wrong = [one for one, want in zip(found, expected) if one[1] != want]
    assert [one for one in wrong if one[0] not in unsure] == []


@pytest.mark.parametrize("name", UNKNOWN)
def test_ce_qui_ne_peut_pas_etre_essaye_est_dit(seen, name):
    assert UNKNOWN[name] in seen[name][0].said


def run(*words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, TOOL, *words],
        capture_output=True, encoding="utf-8", timeout=PATIENCE, **more,
    )  # fmt: skip


def test_le_rapport_est_une_lecon_de_80_colonnes(tmp_path):
    """Ce qui a été vu, pourquoi, où lire la réponse ; et une seule chose à corriger d'abord."""
    path = tmp_path / "mon_serveur.py"
    path.write_text((ATTEMPTS / "question.py").read_text(encoding="utf-8"), encoding="utf-8")
    report = run(str(path))
    lines = report.stdout.splitlines()
    assert report.returncode == 0 and report.stderr == ""
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if line in diagnostic.PARTS] == list(diagnostic.PARTS)
    words = " ".join(report.stdout.split())
    # BrokenPipeError: [Errno 32] … ; sous Windows, ConnectionResetError: [WinError 10054] …
    assert re.search(r"Error: \[\w+ \d+\] [^,]+, ligne 12 \(diffuser\)", words)
    assert "voir : étape 4, `LineBuffer.feed`" in words
    assert words.rpartition("À corriger d'abord : ")[2].startswith("coupure (étape 1, `read_client`)")


def test_un_tableau_et_des_codes_de_sortie(tmp_path):
    server, client = ATTEMPTS / "relais.py", ATTEMPTS / "client_select.py"
    table = run("--csv", str(server), str(client))
    rows = list(csv.reader(io.StringIO(table.stdout)))
    assert rows[0] == ["programme", "scene", "verdict", "vu"] and table.returncode == 0
    assert [row[1] for row in rows[1:]] == [*scenes.SERVER_SCENES, *scenes.CLIENT_SCENES]
    assert {row[2] for row in rows[1:]} <= set(LETTERS.values())

    broken = ATTEMPTS / "nom_inconnu.py"
    assert run(str(broken)).returncode == 1
    wrong = run("--danse")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "Option « --danse » inconnue. Ajoutez --help.\n"
    assert "avec vos droits" in run("--help").stdout


def test_rien_n_apparait_a_cote_du_programme(tmp_path):
    program = "open('trace.txt', 'w').write('x')\nimport voisin\nvoisin.serve()\n"
    neighbour = "def serve():\n    raise ValueError('ici')\n"
    for name, text in (("essai.py", program), ("voisin.py", neighbour)):
        (tmp_path / name).write_text(text)
    plain = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    assert "ValueError: ici" in run(str(tmp_path / "essai.py"), env=plain).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["essai.py", "voisin.py"]


HOLD = (  # un enfant du programme, que rien n'enveloppe, garde une connexion ouverte vers le test
    "import signal, socket, subprocess, sys, time\n"
    "child = 'import socket, time; s = socket.create_connection((\"127.0.0.1\", {port}));'\n"
    "child += 's.sendall(b\".\"); time.sleep(1000)'\n"
    "subprocess.Popen([sys.executable, '-c', child], start_new_session=True)\n"
)
ENDLESS = {
    "n'écoute jamais": "while True: time.sleep(1)\n",
    "ignore les signaux": "signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)\n",
    "garde le GIL": "sum(range(10**15))\n",
    "écrit sans fin": "while True: print('x' * 1000)\n",
}


CASES = [(tail, getattr(signal, "SIGKILL", None)) for tail in ENDLESS]  # Windows ne l'a pas
CASES += [("ignore les signaux", signal.SIGINT), ("ignore les signaux", None)]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows n'a pas de groupes de processus")
@pytest.mark.parametrize(("tail", "how"), CASES)
def test_rien_ne_survit_au_diagnostic(tmp_path, tail, how):
    """De lui-même (None), par Ctrl+C ou par kill -9, il emporte le programme et ses enfants."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        program = tmp_path / "essai.py"
        port = str(listener.getsockname()[1])
        program.write_text(HOLD.replace("{port}", port) + ENDLESS[tail])
        (folder := tmp_path / "tmp").mkdir()
        tool = subprocess.Popen(
            [sys.executable, TOOL, str(program)],
            stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
        child, _ = listener.accept()
        child.settimeout(PATIENCE)
        assert child.recv(1) == b"."
        if how:
            tool.send_signal(how)
        with child, tool.stdout:
            assert child.recv(1) == b""
            tool.wait(PATIENCE)
        assert list(folder.iterdir()) == []  # ses fichiers non plus


def test_chaque_reponse_existe():
    """« étape 4, `LineBuffer.feed` » : ce nom est dans l'étape, ou dans un des programmes."""
    files = [ROOT / f"{name}.py" for name in ("chat_protocol", "serveur_exo", "client_exo")]
    known = {str(path.name): defined(path) for path in files}
    for path in (ROOT / "tests" / "lecon").glob("etape?.py"):
        known[f"étape {path.stem[-1]}"] = defined(path) | known["chat_protocol.py"]
    for kind in ("serveur", "client"):
        for name, scene in scenes.scenes_of(kind).items():
            where = diagnostic.lesson_of(scene).where
            place, function = re.fullmatch(r"(.*), `(.*)`", where).groups()
            assert function in known.get(place, set().union(*known.values())), f"{name} : {where}"


def defined(path: Path) -> set[str]:
    """Renvoie les fonctions d'un fichier, et Classe.méthode."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
    return names
